"""Before an adaptation trains: which model it starts from, and a training that ends in time."""

import math
import time

from adaptation.budget import LARGEST_WHOLE, ROWS, Machine, batch_flags, choose_bases, shape_of
from adaptation.comparison import load_model, measure_loss
from adaptation.state import LOSS_SHARE, MEASURE_SHARE, State
from common.command import InputError
from common.model_files import find_pretrained, fingerprint, load_tokenizer
from model import GPTSingleHead
from training.fim import learn_fim_words

EVALUATIONS = 8  # during training
EVALUATION_SHARE = 0.05  # of the training time; the loss of middles takes as much again
CONTEXT_RATE = 0.25
LEAST_STEPS = 10


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
    flags, model, began = state.flags, load_model(base, row), time.monotonic()
    windows = min(8, measure_loss(model, state.files["project"], 8)["tokens"] // row + 1)
    window_seconds = (time.monotonic() - began) / windows
    shape = shape_of(model)
    lora_r = flags.lora_r if flags.lora_r >= 0 else 16 * (shape.parameters > LARGEST_WHOLE)
    step_seconds = window_seconds * ROWS * (2.2 if lora_r else 3)  # a backward pass takes as long as two forward passes
    seconds = state.seconds * (1 - 2 * MEASURE_SHARE) - state.spent
    if (steps := int(seconds / step_seconds)) < LEAST_STEPS:
        needed = (state.spent + LEAST_STEPS * step_seconds) / (1 - 2 * MEASURE_SHARE) / 60
        raise InputError(
            f"{base}: {flags.minutes:g} minutes are too few to gain anything, about {max(0, steps)} steps of training; "
            f"give --minutes {math.ceil(10 * needed) / 10:g} or more, or a smaller --model_select"
        )
    fim_rate = 0.5 if can_infill(model) else 0.0
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
        **batch_flags(shape, machine, bool(lora_r)),
    }
    loss_windows = max(8, int(LOSS_SHARE * state.seconds / window_seconds))
    state.save(config=config, loss_windows=loss_windows, total_steps=config["max_steps"])


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
