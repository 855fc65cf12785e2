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
from common.command import InputError
from common.devices import choose_dtype, keep_freed_memory, memory, peak_memory
from common.files import ROOT
from data import SrcCodeDataset
from evaluation.loss import SingleCLMEvaluator
from model import use_fast_kernels

PLAIN = "plain float32 loop"
TURN_SECONDS = 0.5  # a turn of the slowest contender lasts at least this long
EVALUATION_SECONDS = 10  # as long, so that what an evaluation does once weighs little


def seconds_of(work: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Wall seconds of `times` calls, the device's part included."""
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


def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of one large square matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    left @ right
    return 3 * 2 * size**3 / seconds_of(lambda: left @ right, device, 3)


def time_training(
    folder: Path, device: torch.device, batch: int, repeats: int, can_compile: bool, has_trainer: bool
) -> list[dict]:
    """Rates of all contenders at one batch size; those whose loop is ours to run take turns."""
    torch.compiler.reset()  # or the second batch size would be compiled for any size
    fast = choose_dtype("auto", device)
    starts = {"ours": (fast, ours), PLAIN: (torch.float32, plain)}
    if can_compile:
        starts["ours, compiled"] = (fast, partial(ours, compiled=True))
    steps, rows = {}, {}
    for name, (dtype, start) in starts.items():
        keep_freed_memory(False)
        before, started = memory(device), time.perf_counter()
        steps[name] = start(new_model(folder, device), batch)
        seconds_of(steps[name], device)
        rows[name] = {"dtype": dtype, "first_step_s": time.perf_counter() - started}
        reset_peak(device)
        steps[name]()
        rows[name]["peak_bytes"] = peak_memory(device) - before
    a_turn = max(1, round(TURN_SECONDS / max(seconds_of(step, device) for step in steps.values())))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    ceilings = {dtype: [] for dtype in (fast, torch.float32)}
    for _ in range(repeats):
        for dtype, rates in ceilings.items():
            rates.append(matmul_flops(dtype, device))
        for name, step in steps.items():
            keep_freed_memory(name.startswith("ours"))  # as train.py does; the others have it as it is
            step()
            seconds[name].append(seconds_of(step, device, a_turn) / a_turn)
    steps.clear()
    gc.collect()
    if has_trainer:
        name = "Hugging Face Trainer" + ", compiled" * can_compile
        keep_freed_memory(False)
        reset_peak(device)
        before, model = memory(device), new_model(folder, device)
        first, *turns = hugging_face(model, batch, [1, 3, *[a_turn] * repeats], folder / "trainer", can_compile)
        seconds[name] = [each / a_turn for each in turns[1:]]
        rows[name] = {"dtype": fast, "first_step_s": first, "peak_bytes": peak_memory(device) - before}
    model = new_model(folder, torch.device("cpu"))
    tokens, slowest = batch * model.max_seq_length, statistics.median(seconds[PLAIN])
    results = []
    for name, row in rows.items():
        step_s, ceiling = statistics.median(seconds[name]), statistics.median(ceilings[row["dtype"]])
        results.append(
            {
                "name": name,
                "batch": batch,
                "dtype": str(row["dtype"]).removeprefix("torch."),
                "tokens_per_second": tokens / step_s,
                "times_plain": slowest / step_s,
                "step_s": step_s,
                "step_s_all": seconds[name],
                "steps_per_turn": a_turn,
                "first_step_s": row["first_step_s"],
                "peak_gib": row["peak_bytes"] / 2**30 if row["peak_bytes"] > 0 else None,
                "matmul_tflops": ceiling / 1e12,
                "flops_utilization": tokens * model.flops_per_token() / step_s / ceiling,
            }
        )
    return results


def training_table(rows: list[dict]) -> str:
    names = ("batch", "tokens/s", "x plain", "step s", "first s", "peak GiB", "of matmul", "dtype")
    lines = [f"\n{'training':<32}" + "".join(f"{name:>10}" for name in names)]
    for row in rows:
        peak = f"{row['peak_gib']:.2f}" if row["peak_gib"] else "-"
        lines.append(
            f"{row['name']:<32}{row['batch']:>10}{row['tokens_per_second']:>10,.0f}{row['times_plain']:>10.2f}"
            f"{row['step_s']:>10.3f}{row['first_step_s']:>10.1f}{peak:>10}{row['flops_utilization']:>10.1%}"
            f"{row['dtype']:>10}"
        )
    return "\n".join(lines)


def time_evaluation(folder: Path, device: torch.device, repeats: int, quick: bool) -> list[dict]:
    """Windows per second of our evaluator, which also measures accuracy and bits per byte, and of the 2020 way."""
    # Two models, since ours changes its kernels.
    slow, fast = new_model(folder, device).eval(), new_model(folder, device).eval()
    trial = RandomRows(REFERENCE_BATCH, slow)
    evaluate_plainly(slow, trial)
    batch_s = seconds_of(lambda: evaluate_plainly(slow, trial), device)
    rows = RandomRows(REFERENCE_BATCH * (2 if quick else min(512, max(2, round(EVALUATION_SECONDS / batch_s)))), slow)
    first = f"plain float32, batches of {REFERENCE_BATCH}"
    runs = {first: lambda: evaluate_plainly(slow, rows)}
    use_fast_kernels(fast.gpt)
    for batch in sorted({8, min(len(rows), max(REFERENCE_BATCH, large_batch(fast, device)))}):
        runs[f"ours, batches of {batch}"] = partial(SingleCLMEvaluator(rows, batch_size=batch), fast)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):  # the first warms up
        for name, run in runs.items():
            keep_freed_memory(name != first)
            seconds[name].extend([seconds_of(run, device)] * (turn > 0))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        {
            "name": name,
            "windows": len(rows),
            "windows_per_second": len(rows) / median,
            "times_plain": medians[first] / median,
            "seconds_all": seconds[name],
        }
        for name, median in medians.items()
    ]


def evaluation_table(rows: list[dict]) -> str:
    lines = [f"\n{'evaluation':<42}{'windows/s':>10}{'x plain':>10}"]
    lines += [f"{row['name']:<42}{row['windows_per_second']:>10,.2f}{row['times_plain']:>10.2f}" for row in rows]
    return "\n".join(lines) + "\n"


def time_data(folder: Path, scratch: Path, repeats: int, quick: bool) -> dict[str, float]:
    """Seconds of the whole convert.py command, and of the dataset's first and later loading."""
    name = f"benchmark_{os.getpid()}"
    source = "dataset/Python" if (ROOT / "dataset" / "Python").is_dir() else "stdlib"
    if quick:
        source = str(Path(json.__file__).parent)
    command = [sys.executable, ROOT / "dataset" / "convert.py", "--source", source, "--tokenizer", folder]
    model = new_model(folder, torch.device("cpu"))
    target = ROOT / "dataset" / name
    seconds = {"convert": [], "load, first": [], "load, cached": []}
    try:
        for turn in range(min(repeats, 3)):
            started = time.perf_counter()
            done = subprocess.run([*command, "--dataset_name", name], cwd=ROOT, capture_output=True, text=True)
            seconds["convert"].append(time.perf_counter() - started)
            if done.returncode:
                raise InputError(f"convert.py failed: {done.stderr.strip().splitlines()[-1]}")
            for what in ("load, first", "load, cached"):
                started = time.perf_counter()
                SrcCodeDataset(target / "json" / "train.jsonl", model, scratch / f"cache{turn}")
                seconds[what].append(time.perf_counter() - started)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return {f"{what} ({Path(source).name})": statistics.median(values) for what, values in seconds.items()}
