"""The contenders of the benchmarks: this project's training, plain PyTorch loops, Hugging Face's Trainer."""

import contextlib
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import AutoConfig, GPT2Config

from common.command import InputError, first_line
from common.devices import choose_dtype
from common.model_files import find_pretrained, load_tokenizer
from common.source_code import SPECIAL_WORDS
from data import TokenBatches
from model import GPTSingleHead, use_fast_kernels
from training.checkpoint import Progress
from training.config import TrainConfig
from training.step import TrainStep

LENGTH = 256  # tokens of a window, as train.py's default
REFERENCE_BATCH = 8  # windows in one forward pass of the 2020 reference's evaluation


class RandomRows:
    """Windows of random tokens without padding, with the interface of SrcCodeDataset."""

    def __init__(self, rows: int, model: GPTSingleHead):
        self.max_seq_length = model.max_seq_length
        dtype = np.min_scalar_type(len(model.tokenizer) - 1)
        self.tokens = np.random.default_rng(0).integers(len(model.tokenizer), size=(rows, LENGTH), dtype=dtype)
        self.tokens = self.tokens[:, : self.max_seq_length].copy()
        self.lengths = np.full(rows, self.max_seq_length, np.int32)
        self.content = "random"

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.tokens[index].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def shape_folder(model: str, tokenizer: str, folder: Path) -> Path:
    """Make a folder with a model's configuration and a tokenizer's vocabulary, for `new_model`."""
    if model == "distilgpt2":  # GPT-2's vocabulary and this project's three control words, with any tokenizer
        config = GPT2Config(n_layer=6, vocab_size=50_260)
    else:
        source = find_pretrained(model, weights=False)
        try:
            config = AutoConfig.from_pretrained(source)
        except Exception as error:  # the library raises many kinds of errors for an edited file
            reason = first_line(error)
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
    """Return the largest power of two with which the plain float32 loop needs at most half of the free memory.

    On a CPU it is at most 16, because larger batches take minutes and are not faster.
    """
    config = model.gpt.config
    # Floats per token: logits, their softmax and both gradients; for each layer about 32 activations of the model's
    # width, and two attention maps.
    floats = 4 * config.vocab_size + config.num_hidden_layers * (
        32 * config.hidden_size + 2 * config.num_attention_heads * model.max_seq_length
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4 << 30
    windows = free / 2 / (4 * floats * model.max_seq_length)
    return min(1 << max(2, int(math.log2(windows))), 1024 if device.type == "cuda" else 16)


def ours(model: GPTSingleHead, batch: int, compiled: bool = False) -> Callable[[], object]:
    """Return a function that makes one optimizer step, as train.py does it."""
    use_fast_kernels(model.gpt)
    config = TrainConfig(per_gpu_train_batch_size=batch, compile="on" if compiled else "off")
    step, batches = TrainStep(model.train(), config), TokenBatches(RandomRows(2 * batch, model), 0, model.device)
    step.prepare(batches, Progress())
    order = torch.arange(batch, device=model.device).view(1, 1, batch)
    return lambda: step(batches, order, config.lr)


def plain(model: GPTSingleHead, batch: int) -> Callable[[], object]:
    """Return a function that makes one optimizer step in float32, as the 2020 reference does it."""
    gpt, device = model.gpt.train(), model.device
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=2e-5)
    loader = DataLoader(RandomRows(max(64, 2 * batch), model), batch_size=batch, shuffle=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def step() -> None:
        loss = gpt(**{name: values.to(device) for name, values in next(batches).items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def hugging_face(model: GPTSingleHead, batch: int, steps: list[int], folder: Path, compiled: bool) -> list[float]:
    """Return the wall seconds of turns with these numbers of steps, one after the other in the Trainer's own loop."""
    dtype, on_gpu = choose_dtype("auto", model.device), model.device.type == "cuda"
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        max_steps=sum(steps),
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        torch_compile=compiled,
        optim="adamw_torch_fused",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # it would wait for the device in every step
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
    )
    ends, times = set(itertools.accumulate(steps)), [time.perf_counter()]

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, _arguments, state, _control, **_):
            if state.global_step in ends:
                if on_gpu:
                    torch.cuda.synchronize()
                times.append(time.perf_counter())

    rows = RandomRows(max(64, 2 * batch), model)
    trainer = transformers.Trainer(model.gpt, arguments, train_dataset=rows, callbacks=[Clock()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return [after - before for before, after in itertools.pairwise(times)]


def evaluate_plainly(model: GPTSingleHead, rows: RandomRows) -> float:
    total = 0.0
    with torch.no_grad():
        for batch in DataLoader(rows, batch_size=REFERENCE_BATCH):
            total += model.gpt(**{name: values.to(model.device) for name, values in batch.items()}).loss.item()
    return total
