"""What benchmark.py compares: this project's training step, a plain PyTorch loop and Hugging Face's Trainer.

Each is a context manager that yields a function making one optimizer step on a batch of `rows`.
"""

import contextlib
import itertools
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import AutoConfig, GPT2Config

from common.command import InputError
from common.devices import choose_dtype
from common.model_files import find_pretrained, load_tokenizer
from common.source_code import SPECIAL_WORDS
from evaluation.loss import SingleCLMEvaluator
from model import GPTSingleHead
from trainer import ModelTrainer
from training.config import TrainConfig

LENGTH = 256  # tokens of a window, as train.py's default
REFERENCE_BATCH = 8  # windows in one forward pass of the 2020 reference's evaluation
Step = Callable[[], object]


class RandomRows:
    """Stands for a SrcCodeDataset: windows of random tokens, none of them padded."""

    def __init__(self, rows: int, model: GPTSingleHead):
        dtype = np.min_scalar_type(len(model.tokenizer) - 1)
        shape = (rows, model.max_seq_length)
        self.max_seq_length = model.max_seq_length
        self.tokens = np.random.default_rng(0).integers(len(model.tokenizer), size=shape, dtype=dtype)
        self.lengths = np.full(rows, self.max_seq_length, np.int32)
        self.content = "random"

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.tokens[index].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def shape_folder(model: str, tokenizer: str, folder: Path) -> Path:
    """A folder with a model's configuration and a tokenizer's vocabulary, from which models are made."""
    if model == "distilgpt2":  # GPT-2's vocabulary and this project's three words, whatever the tokenizer
        config = GPT2Config(n_layer=6, vocab_size=50_260)
    else:
        source = find_pretrained(model, weights=False)
        try:
            config = AutoConfig.from_pretrained(source)
        except Exception as error:  # a file that someone edited fails somewhere in the library, in any way
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(f"{source}: its config.json cannot be read ({reason}); take a complete copy") from None
    config.vocab_size = max(config.vocab_size, load_tokenizer(tokenizer).get_vocab_size())
    config.save_pretrained(folder)
    vocabulary = find_pretrained(tokenizer, weights=False)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(vocabulary / name, folder)
    return folder


def new_model(folder: Path, device: torch.device) -> GPTSingleHead:
    torch.manual_seed(0)
    return GPTSingleHead(str(folder), LENGTH, special_words_to_add=SPECIAL_WORDS, from_scratch=True).to(device)


def large_batch(model: GPTSingleHead, device: torch.device) -> int:
    """The largest power of two whose activations in the plain float32 loop take at most half of the free memory.

    On a CPU at most 16, where larger batches gain nothing and take minutes.
    """
    config = model.gpt.config
    # Logits, their softmax and both gradients; about 32 activations of the width and two attention maps a layer.
    floats = 4 * config.vocab_size + config.num_hidden_layers * (
        32 * config.hidden_size + 2 * config.num_attention_heads * model.max_seq_length
    )
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else available_bytes()
    windows = free / 2 / (4 * floats * model.max_seq_length)
    return min(1 << max(2, int(math.log2(windows))), 1024 if device.type == "cuda" else 16)


def available_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not Linux
        return 4 << 30


@contextlib.contextmanager
def ours(model: GPTSingleHead, rows: RandomRows, batch: int, folder: Path, compiled: bool) -> Iterator[Step]:
    config = TrainConfig(per_gpu_train_batch_size=batch, compile="on" if compiled else "off")
    trainer = ModelTrainer(model, rows, rows, SingleCLMEvaluator(), config, folder)
    trainer._begin()
    model.train()
    order = torch.arange(batch, device=model.device).view(1, 1, batch)
    yield lambda: trainer._train_step(order)
    trainer.metrics.close()


@contextlib.contextmanager
def plain(model: GPTSingleHead, rows: RandomRows, batch: int) -> Iterator[Step]:
    gpt, device = model.gpt.train(), model.device
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=2e-5)
    loader = DataLoader(rows, batch_size=batch, shuffle=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def step() -> None:
        inputs = {name: values.to(device) for name, values in next(batches).items()}
        loss = gpt(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    yield step


@contextlib.contextmanager
def hugging_face(model: GPTSingleHead, rows: RandomRows, batch: int, folder: Path, compiled: bool) -> Iterator[Step]:
    """The Trainer owns its loop, so it runs in a thread that stops before each step until it is asked for it."""
    dtype = choose_dtype("auto", model.device)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        max_steps=1_000_000,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        torch_compile=compiled,
        optim="adamw_torch_fused",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # it would wait for the device in every step
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=model.device.type == "cuda",
    )
    asked, done, errors = threading.Semaphore(0), threading.Semaphore(0), []
    ended = threading.Event()

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *args, **kwargs) -> None:
            asked.acquire()
            if ended.is_set():
                raise EOFError  # the one way out of a Trainer before its next step

        def on_step_end(self, *args, **kwargs) -> None:
            done.release()

    def train() -> None:
        try:
            transformers.Trainer(model.gpt, arguments, train_dataset=rows, callbacks=[Turns()]).train()
        except EOFError:
            pass
        except Exception as error:
            errors.append(error)
            done.release()

    def step() -> None:
        asked.release()
        done.acquire()
        if errors:
            raise errors[0]

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    yield step
    ended.set()
    asked.release()
    thread.join()


def evaluate_plainly(model: GPTSingleHead, rows: RandomRows) -> float:
    total = 0.0
    with torch.no_grad():
        for batch in DataLoader(rows, batch_size=REFERENCE_BATCH):
            inputs = {name: values.to(model.device) for name, values in batch.items()}
            total += model.gpt(**inputs).loss.item()  # waits for the device
    return total
