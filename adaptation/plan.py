"""Before an adaptation trains: which model it starts from, and a training that ends in time."""

import math
import time
from pathlib import Path

import torch

from adaptation.budget import LARGEST_WHOLE, ROWS, Machine, batch_flags, choose_bases, shape_of
from adaptation.comparison import load_model, measure_loss
from adaptation.state import LOSS_SHARE, MEASURE_SHARE, State
from common.command import InputError
from common.devices import autocast, choose_dtype
from common.model_files import find_pretrained, fingerprint, load_tokenizer
from data import SrcCodeDataset, TokenBatches
from model import GPTSingleHead
from training.fim import learn_fim_words
from training.step import SummedLoss

EVALUATIONS = 8  # during training
EVALUATION_SHARE = 0.05  # of the training time; the loss of middles takes as much again
CONTEXT_RATE = 0.25
LEAST_STEPS = 10
TIMINGS = 2  # how often a row is timed


def better_start(state: State, base: str, earlier: str, row: int) -> str:
    """Return the last adaptation's model if it has base's vocabulary and is better on today's held-out files."""
    if fingerprint(load_tokenizer(base)) != fingerprint(load_tokenizer(earlier)):
        return base
    losses = {path: measure_loss(load_model(path, row), state.files["project"], 32) for path in (base, earlier)}
    bits = {path: of_path["bits_per_byte"] for path, of_path in losses.items()}
    better = min(bits, key=bits.get)
    print(f"bits per byte of held-out files: {', '.join(f'{path} {bits[path]:.3f}' for path in bits)}; from {better}")
    return better


def plan_training(state: State, machine: Machine, base: str, row: int, train_windows: int) -> None:
    """Measure the model's speed, and save train.py's settings for a training that ends in time.

    Raises:
        InputError: there is too little time.
    """
    flags, model = state.flags, load_model(base, row)
    shape = shape_of(model)
    lora_r = flags.lora_r if flags.lora_r >= 0 else 16 * (shape.parameters > LARGEST_WHOLE)
    batch = batch_flags(shape, machine, bool(lora_r))
    fim_rate = 0.5 if can_infill(model) else 0.0
    window_seconds, step_seconds = time_rows(model, state.files["project"], bool(lora_r))
    step_seconds *= ROWS * (4 / 3 if batch["gradient_checkpointing"] else 1)  # which repeats the forward pass
    seconds = state.seconds * (1 - 2 * MEASURE_SHARE) - state.spent
    if (steps := int(seconds / step_seconds)) < LEAST_STEPS:
        needed = (state.spent + LEAST_STEPS * step_seconds) / (1 - 2 * MEASURE_SHARE) / 60
        raise InputError(
            f"{base}: {flags.minutes:g} minutes are too few to gain anything, about {max(0, steps)} steps of training; "
            f"give --minutes {math.ceil(10 * needed) / 10:g} or more, or a smaller --model_select"
        )
    how = f"LoRA of rank {lora_r}" if lora_r else "the whole model"
    passes = steps * ROWS / train_windows
    print(f"training: about {steps} steps of {ROWS} x {row} tokens, {passes:.1f} passes over the files, {how}")
    config = {
        "model_select": base,
        "dataset_name": state.name,
        "run_name": state.name,
        "max_steps": 2 * steps,  # reduced at the first evaluation
        "num_epochs_train": 1_000_000,
        "max_seq_length": row,
        "fim_rate": fim_rate,
        "context_rate": CONTEXT_RATE if fim_rate else 0.0,
        "lora_r": lora_r,
        "lora_alpha": 2.0 * lora_r or 32.0,
        "lr": flags.lr or (1e-3 if lora_r else 2e-4),
        "warmup_ratio": 0.1,
        "evaluation_steps": max(1, steps // EVALUATIONS),
        "logging_steps": max(1, steps // EVALUATIONS // 4),
        "dev_windows": max(8, int(EVALUATION_SHARE * seconds / EVALUATIONS / window_seconds)),
        "early_stop": 1000,
        "seed": flags.seed,
        **batch,
    }
    loss_windows = max(8, int(LOSS_SHARE * state.seconds / window_seconds))
    state.save(config=config, loss_windows=loss_windows, total_steps=config["max_steps"])


def time_rows(model: GPTSingleHead, file: Path, lora: bool) -> tuple[float, float]:
    """Return the seconds that one row takes in evaluation and in training.

    Args:
        file: the row is the longest one of this jsonl file.
        lora: compute no gradients of the layers' weights, only those that pass through the layers.
    """
    batches = TokenBatches(SrcCodeDataset(file, model), model.pad_id, model.device)
    ids, labels = batches.gather(batches.lengths.argmax()[None])
    for parameter in model.parameters():
        parameter.requires_grad_(not lora)
    model.gpt.get_input_embeddings().weight.requires_grad_(True)  # they come first, so the gradient goes through all
    loss, dtype, seconds = SummedLoss(model), choose_dtype("auto", model.device), []

    def evaluate() -> float:
        with torch.inference_mode(), autocast(model.device, dtype):
            return model.scores(ids, labels)[0].sum().item()  # reading the value waits for a GPU

    def train() -> float:
        with autocast(model.device, dtype):
            nats = loss(ids, labels)
        nats.backward()
        return nats.item()

    for work in (evaluate, train):
        work()  # the first time takes longer
        began = time.monotonic()
        for _ in range(TIMINGS):
            work()
        seconds.append((time.monotonic() - began) / TIMINGS)
    return seconds[0], seconds[1]


def can_infill(model: GPTSingleHead) -> bool:
    """Whether the model can learn to infill. If not, prints the reason."""
    try:
        learn_fim_words(model)
    except InputError as error:
        print(f"note: it will not learn to infill: {error}")
        return False
    return True


def choose_base(state: State, machine: Machine) -> str:
    """Return the model to start from, and print why it was chosen."""
    names, reasons = choose_bases(machine, state.seconds * (1 - 2 * MEASURE_SHARE))
    for name in names:
        try:
            find_pretrained(name)
        except InputError as error:
            reasons.append(str(error))
            continue
        print(f"base model: {name}, the best that this machine can train in this time; " + "; ".join(reasons))
        return name
    raise AssertionError("tiny is always there")
