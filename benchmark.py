"""Measure training, evaluation, completion and data: this project beside a plain PyTorch loop and Hugging Face's ways.

python benchmark.py --quick                                     (the embedded model's shape, under a minute)
python benchmark.py --model distilgpt2 --output bench.json --chart bench.png

All train the same shape from random weights on the same random tokens, taking turns; the numbers are medians over
turns. A turn's clock stops when the device has finished. Peak memory on a CPU is that of the process, libraries left
out; on a GPU that of tensors.
"""

import contextlib
import gc
import importlib.util
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common import (
    ROOT,
    InputError,
    atomic_write,
    flag,
    keep_freed_memory,
    memory,
    parse_flags,
    peak_memory,
    run_command,
)

if TYPE_CHECKING:
    import torch

    from model import GPTSingleHead

PLAIN, PLAIN_EVALUATION = "plain float32 loop", "plain float32, batches of 8"
TURN_SECONDS = 0.5  # the slowest contender's turn lasts at least this long
EVALUATION_SECONDS = 10  # as long, so that what an evaluation does once weighs little


@dataclass
class BenchmarkFlags:
    """Flags of benchmark.py."""

    model: str = flag("tiny", "whose shape: distilgpt2, tiny or a folder with a config.json; weights are random")
    tokenizer: str = flag("tiny", "vocabulary for conversion and loading: a name, a Hub id or a folder")
    repeats: int = flag(5, "turns of each contender; their median counts")
    quick: bool = flag(False, "two turns, batch 4 alone, nothing compiled, a small source: whether it all runs")
    output: str = flag("", "write all numbers as JSON to this file")
    chart: str = flag("", "draw the rates as bars into this PNG file")

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise InputError(f"--repeats {self.repeats}: must be at least 1")
        if self.quick:
            self.repeats = 2


@dataclass
class Contender:
    name: str
    step: Callable[[], None]  # one optimizer step
    dtype: "torch.dtype"
    first_step_s: float
    peak_bytes: int  # 0 or less where it cannot be measured


def main() -> None:
    flags = parse_flags(BenchmarkFlags, __doc__)
    logging.disable(logging.WARNING)
    has_trainer = importlib.util.find_spec("accelerate") is not None
    if not has_trainer:
        print("left out: Hugging Face Trainer, as it needs `pip install accelerate`", file=sys.stderr)
    import torch
    import transformers

    from completion_benchmark import completion_table, time_completion
    from contenders import large_batch, new_model, shape_folder
    from model import choose_device

    transformers.utils.logging.set_verbosity_error()
    device = choose_device()
    can_compile = not flags.quick and (device.type == "cuda" or any(map(shutil.which, ("c++", "g++", "clang++"))))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = scratch  # so that a first step shows what compilation takes
        folder = shape_folder(flags.model, flags.tokenizer, Path(scratch) / "shape")
        shape = new_model(folder, torch.device("cpu"))
        results = describe(flags, shape, device)
        print(headline(results))
        batches = [4] if flags.quick else sorted({4, large_batch(shape, device)})
        results["training"] = []
        for batch in batches:
            with contextlib.ExitStack() as stack:
                contenders = enter_contenders(stack, folder, device, batch, can_compile, has_trainer)
                results["training"] += time_training(contenders, batch, flags.repeats, shape, device)
                del contenders
            gc.collect()  # the Trainer and its model refer to each other
        print(training_table(results["training"]))
        results["evaluation"] = time_evaluation(folder, device, flags)
        print(evaluation_table(results["evaluation"]))
        results["completion"] = time_completion(folder, device, flags.repeats, flags.quick)
        print(completion_table(results["completion"]) + "\n")
        results["data"] = time_data(flags, folder, Path(scratch))
        print("\n".join(f"{name:<42}{seconds:>10.2f} s" for name, seconds in results["data"].items()))
    if flags.output:
        with atomic_write(Path(flags.output)) as file:
            json.dump(results, file, indent=2)
    if flags.chart:
        draw(results, Path(flags.chart))


def enter_contenders(
    stack: contextlib.ExitStack, folder: Path, device: "torch.device", batch: int, can_compile: bool, has_trainer: bool
) -> list[Contender]:
    """The contenders, each warmed up with two steps, so that whatever compiles has compiled."""
    import torch

    import contenders
    from model import choose_dtype

    torch.compiler.reset()  # or the second batch size would be compiled for any size
    fast = choose_dtype("auto", device)
    starts = [
        ("ours", fast, partial(contenders.ours, folder=folder / "ours", compiled=False)),
        (PLAIN, torch.float32, contenders.plain),
    ]
    if can_compile:
        starts.append(("ours, compiled", fast, partial(contenders.ours, folder=folder / "compiled", compiled=True)))
    if has_trainer:
        name = "Hugging Face Trainer" + ", compiled" * can_compile
        trainer = partial(contenders.hugging_face, folder=folder / "trainer", compiled=can_compile)
        starts.append((name, fast, trainer))
    entered = []
    for name, dtype, start in starts:
        keep_freed_memory(False)
        before = memory(device)
        model = contenders.new_model(folder, device)
        started = time.perf_counter()
        step = stack.enter_context(start(model, contenders.RandomRows(max(64, 2 * batch), model), batch))
        seconds_of(step, device)
        first_step_s = time.perf_counter() - started  # with what compiles before it
        reset_peak(device)
        step()
        entered.append(Contender(name, step, dtype, first_step_s, peak_memory(device) - before))
    return entered


def time_training(
    contenders: list[Contender], batch: int, repeats: int, model: "GPTSingleHead", device: "torch.device"
) -> list[dict]:
    """Let the contenders take turns of as many steps each, after one for practice; between them a matrix product."""
    slowest = max(seconds_of(contender.step, device) for contender in contenders)
    steps = max(1, round(TURN_SECONDS / slowest))
    dtypes = {contender.dtype for contender in contenders}
    seconds = {contender.name: [] for contender in contenders}
    ceilings = {dtype: [] for dtype in dtypes}
    for _ in range(repeats):
        for dtype in dtypes:
            ceilings[dtype].append(matmul_flops(dtype, device))
        for contender in contenders:
            keep_freed_memory(contender.name.startswith("ours"))  # as train.py does; the others have it as it is
            contender.step()
            seconds[contender.name].append(seconds_of(contender.step, device, steps) / steps)
    plain = statistics.median(seconds[PLAIN])
    results = []
    for contender in contenders:
        step_s = statistics.median(seconds[contender.name])
        tokens = batch * model.max_seq_length
        ceiling = statistics.median(ceilings[contender.dtype])
        results.append(
            {
                "name": contender.name,
                "batch": batch,
                "dtype": str(contender.dtype).removeprefix("torch."),
                "tokens_per_second": tokens / step_s,
                "times_plain": plain / step_s,
                "step_s": step_s,
                "step_s_all": seconds[contender.name],
                "steps_per_turn": steps,
                "first_step_s": contender.first_step_s,
                "peak_gib": contender.peak_bytes / 2**30 if contender.peak_bytes > 0 else None,
                "matmul_tflops": ceiling / 1e12,
                "flops_utilization": tokens * model.flops_per_token() / step_s / ceiling,
            }
        )
    return results


def matmul_flops(dtype: "torch.dtype", device: "torch.device") -> float:
    """FLOP/s of one large square matrix product."""
    import torch

    size = 8192 if device.type == "cuda" else 2048
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    left @ right
    return 3 * 2 * size**3 / seconds_of(lambda: left @ right, device, 3)


# ---- evaluation and data


def time_evaluation(folder: Path, device: "torch.device", flags: BenchmarkFlags) -> list[dict]:
    """Windows per second of our evaluator, which also measures accuracy and bits per byte, and of the 2020 way."""
    from contenders import REFERENCE_BATCH, RandomRows, evaluate_plainly, large_batch, new_model
    from evaluate import SingleCLMEvaluator

    model = new_model(folder, device).eval()
    trial = RandomRows(REFERENCE_BATCH, model)
    evaluate_plainly(model, trial)
    batch_s = seconds_of(lambda: evaluate_plainly(model, trial), device)
    rows = RandomRows(
        REFERENCE_BATCH * (2 if flags.quick else min(512, max(2, round(EVALUATION_SECONDS / batch_s)))), model
    )
    large = min(len(rows), max(REFERENCE_BATCH, large_batch(model, device)))
    runs = {PLAIN_EVALUATION: lambda: evaluate_plainly(model, rows)}
    for batch in sorted({8, large}):
        evaluator = SingleCLMEvaluator(rows, batch_size=batch)
        runs[f"ours, batches of {batch}"] = lambda evaluator=evaluator: evaluator(model)
    seconds = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(flags.repeats):
        for name, run in runs.items():
            keep_freed_memory(name != PLAIN_EVALUATION)
            seconds[name].append(seconds_of(run, device))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    plain = medians[PLAIN_EVALUATION]
    return [
        {
            "name": name,
            "windows": len(rows),
            "windows_per_second": len(rows) / median,
            "times_plain": plain / median,
            "seconds_all": seconds[name],
        }
        for name, median in medians.items()
    ]


def time_data(flags: BenchmarkFlags, folder: Path, scratch: Path) -> dict[str, float]:
    """Seconds of the whole convert.py command, and of the dataset's first and later loading."""
    import torch

    from contenders import new_model
    from data import SrcCodeDataset

    name = f"benchmark_{os.getpid()}"
    source = "dataset/Python" if (ROOT / "dataset" / "Python").is_dir() else "stdlib"
    if flags.quick:
        source = str(Path(json.__file__).parent)
    command = [sys.executable, ROOT / "dataset" / "convert.py", "--source", source, "--tokenizer", folder]
    model = new_model(folder, torch.device("cpu"))
    target = ROOT / "dataset" / name
    seconds = {"convert": [], "load, first": [], "load, cached": []}
    try:
        for turn in range(min(flags.repeats, 3)):
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


# ---- measuring


def seconds_of(work: Callable[[], object], device: "torch.device", times: int = 1) -> float:
    """Wall seconds of `times` calls, the device's part included."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return time.perf_counter() - started


def reset_peak(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


# ---- showing


def describe(flags: BenchmarkFlags, model: "GPTSingleHead", device: "torch.device") -> dict:
    import torch
    import transformers

    name = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    return {
        "model": flags.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "window": model.max_seq_length,
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "repeats": flags.repeats,
    }


def cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def headline(results: dict) -> str:
    return (
        "{model}: {parameters:,} parameters, windows of {window} random tokens; {device}, {threads} CPU threads, "
        "torch {torch}, transformers {transformers}; medians of {repeats} turns".format(**results)
    )


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


def evaluation_table(rows: list[dict]) -> str:
    lines = [f"\n{'evaluation':<42}{'windows/s':>10}{'x plain':>10}"]
    lines += [f"{row['name']:<42}{row['windows_per_second']:>10,.2f}{row['times_plain']:>10.2f}" for row in rows]
    return "\n".join(lines) + "\n"


def draw(results: dict, path: Path) -> None:
    """Bars of the training rates, one panel for each batch, and of the evaluation rates."""
    from matplotlib.figure import Figure

    panels = {
        f"training, batch {batch}: tokens/s": {
            row["name"]: row["tokens_per_second"] for row in results["training"] if row["batch"] == batch
        }
        for batch in sorted({row["batch"] for row in results["training"]})
    }
    panels["evaluation: windows/s"] = {row["name"]: row["windows_per_second"] for row in results["evaluation"]}
    figure = Figure(figsize=(7, 2.2 * len(panels)), layout="constrained")
    for axes, (title, rates) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        colours = ["#0072B2" if name.startswith("ours") else "#999999" for name in rates]
        bars = axes.barh(list(rates), list(rates.values()), color=colours)
        axes.bar_label(bars, fmt=lambda rate: f"{rate:,.{0 if rate >= 100 else 2}f}", padding=3)
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=10)
    figure.suptitle(f"{results['model']}, {results['device']}", fontsize=10)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)


if __name__ == "__main__":
    run_command(main)
