"""Optimizer steps and evaluated windows per second, and seconds to convert and to load a dataset."""

import contextlib
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.contenders import (
    REFERENCE_BATCH,
    RandomRows,
    evaluate_plainly,
    hugging_face,
    large_batch,
    new_model,
    ours,
    plain,
)
from benchmarks.turns import compare, take_turns
from charts.tables import text_table
from common.command import InputError
from common.devices import choose_dtype, keep_freed_memory, memory, peak_memory
from common.files import ROOT
from data import SrcCodeDataset
from evaluation.loss import SingleCLMEvaluator
from model import GPTSingleHead, use_fast_kernels

TURN_SECONDS = 0.5  # the slowest contender's turn takes at least this long
EVALUATION_SECONDS = 10  # a turn of evaluation takes longer, so that its fixed costs matter little


def seconds_of(work: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Return the wall seconds of `times` calls, until the device has finished them."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return time.perf_counter() - started


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


class Facts(NamedTuple):
    """What is measured of a contender before its turns."""

    dtype: torch.dtype
    first_step_s: float
    peak: int  # bytes, beyond what was in use before


def time_training(
    folder: Path, device: torch.device, batch: int, repeats: int, can_compile: bool, has_trainer: bool
) -> list[dict]:
    """Return the rates of all contenders at one batch size. Those that do not own their loop take turns."""
    torch.compiler.reset()  # or the second batch size would be compiled for any size
    fast = choose_dtype("auto", device)
    starts = {"plain float32 loop": (torch.float32, plain), "ours": (fast, ours)}
    if can_compile:
        starts["ours, compiled"] = (fast, partial(ours, compiled=True))
    steps, facts = {}, {}
    for name, (dtype, start) in starts.items():
        steps[name], *measured = first_steps(lambda start=start: start(new_model(folder, device), batch), device)
        facts[name] = Facts(dtype, *measured)
    a_turn = max(1, round(TURN_SECONDS / max(seconds_of(step, device) for step in steps.values())))

    def turn(name: str) -> float:
        keep_freed_memory(name.startswith("ours"))  # as train.py does; the others use the C library's default
        steps[name]()
        return seconds_of(steps[name], device, a_turn) / a_turn

    products = {str(dtype): partial(matrix_product_s, dtype, device) for dtype in {fast, torch.float32}}
    seconds = take_turns(products | {name: partial(turn, name) for name in steps}, repeats)
    ceilings = {name: 2 * matrix_size(device) ** 3 / statistics.median(seconds.pop(name)) for name in products}
    steps.clear()
    gc.collect()
    if has_trainer:
        name = "Hugging Face Trainer" + ", compiled" * can_compile
        keep_freed_memory(False)
        reset_peak(device)
        before, model = memory(device), new_model(folder, device)
        first, *turns = hugging_face(model, batch, [1, 3, *[a_turn] * repeats], folder / "trainer", can_compile)
        seconds[name] = [each / a_turn for each in turns[1:]]
        facts[name] = Facts(fast, first, peak_memory(device) - before)
    model = new_model(folder, torch.device("cpu"))
    rows = compare(seconds)
    return [training_row(row, facts[row["name"]], model, batch, ceilings) | {"steps_per_turn": a_turn} for row in rows]


def first_steps(
    start: Callable[[], Callable[[], object]], device: torch.device
) -> tuple[Callable[[], object], float, int]:
    """Return a contender's step, the seconds until its first step is over, and the peak memory of the second."""
    keep_freed_memory(False)
    before, began = memory(device), time.perf_counter()
    step = start()
    seconds_of(step, device)
    first_step_s = time.perf_counter() - began
    reset_peak(device)
    step()
    return step, first_step_s, peak_memory(device) - before


def matrix_size(device: torch.device) -> int:
    return 8192 if device.type == "cuda" else 2048


def matrix_product_s(dtype: torch.dtype, device: torch.device) -> float:
    """Return the seconds of a large matrix product, the fastest that this machine can compute."""
    size = matrix_size(device)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    left @ right
    return seconds_of(lambda: left @ right, device, 3) / 3


def training_row(row: dict, facts: Facts, model: GPTSingleHead, batch: int, ceilings: dict[str, float]) -> dict:
    """Return a contender's row of the results. `ceilings` are FLOP/s of matrix products, by dtype."""
    rate, ceiling = batch * model.max_seq_length / row["seconds"], ceilings[str(facts.dtype)]
    return row | {
        "batch": batch,
        "dtype": str(facts.dtype).removeprefix("torch."),
        "tokens_per_second": rate,
        "first_step_s": facts.first_step_s,
        "peak_gib": facts.peak / 2**30 if facts.peak > 0 else None,
        "matmul_tflops": ceiling / 1e12,
        "flops_utilization": rate * model.flops_per_token() / ceiling,
    }


def training_table(rows: list[dict]) -> str:
    cells = [["training", "batch", "tokens/s", "speedup", "step s", "first s", "peak GiB", "of matmul", "dtype"]]
    for row in rows:
        numbers = f"{row['batch']} {row['tokens_per_second']:,.0f} {row['speedup']:.2f} {row['seconds']:.3f}".split()
        peak = f"{row['peak_gib']:.2f}" if row["peak_gib"] else "-"
        use = f"{row['flops_utilization']:.1%}"
        cells.append([row["name"], *numbers, f"{row['first_step_s']:.1f}", peak, use, row["dtype"]])
    return f"\n{text_table(cells)}\n"


def time_evaluation(folder: Path, device: torch.device, repeats: int, quick: bool) -> list[dict]:
    """Return windows per second of the reference's evaluation, and of ours with accuracy and bits per byte."""
    plain_model, our_model = new_model(folder, device).eval(), new_model(folder, device).eval()
    use_fast_kernels(our_model.gpt)
    trial = RandomRows(REFERENCE_BATCH, plain_model)
    evaluate_plainly(plain_model, trial)
    batch_s = seconds_of(lambda: evaluate_plainly(plain_model, trial), device)
    batches = 2 if quick else min(512, max(2, round(EVALUATION_SECONDS / batch_s)))
    rows = RandomRows(REFERENCE_BATCH * batches, plain_model)
    runs = {f"plain float32, batches of {REFERENCE_BATCH}": lambda: evaluate_plainly(plain_model, rows)}
    for batch in sorted({8, min(len(rows), max(REFERENCE_BATCH, large_batch(our_model, device)))}):
        runs[f"ours, batches of {batch}"] = partial(SingleCLMEvaluator(rows, batch_size=batch), our_model)

    def turn(name: str) -> float:
        keep_freed_memory(name.startswith("ours"))
        return seconds_of(runs[name], device)

    found = compare(take_turns({name: partial(turn, name) for name in runs}, repeats))
    return [row | {"windows": len(rows), "windows_per_second": len(rows) / row["seconds"]} for row in found]


def time_data(folder: Path, scratch: Path, quick: bool) -> dict[str, float]:
    """Return the seconds of the whole convert.py command, and of loading the dataset the first time and later."""
    source = "dataset/Python" if (ROOT / "dataset" / "Python").is_dir() else "stdlib"
    if quick:
        source = str(Path(json.__file__).parent)
    target = ROOT / "dataset" / f"benchmark_{os.getpid()}"
    model = new_model(folder, torch.device("cpu"))

    def convert() -> None:
        flags = ["--source", source, "--tokenizer", folder, "--dataset_name", target.name]
        done = subprocess.run([sys.executable, "dataset/convert.py", *flags], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"convert.py failed: {done.stderr.strip().splitlines()[-1]}")

    def load() -> None:
        SrcCodeDataset(target / "json" / "train.jsonl", model, scratch / "cache")

    def load_first() -> None:
        shutil.rmtree(scratch / "cache", ignore_errors=True)
        load()

    runs = {"convert": convert, "load, first time": load_first, "load, from the cache": load}
    cpu = torch.device("cpu")
    try:
        seconds = take_turns({name: partial(seconds_of, run, cpu) for name, run in runs.items()}, 1 if quick else 3)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return {f"{name} ({Path(source).name})": statistics.median(values) for name, values in seconds.items()}
