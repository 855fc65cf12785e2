"""Optimizer steps per second: ours, a plain loop, Hugging Face's Trainer."""

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import contenders as ways
from benchmarks.timing import matmul_flops, reset_peak, seconds_of
from common.devices import choose_dtype, keep_freed_memory, memory, peak_memory
from model import GPTSingleHead

PLAIN = "plain float32 loop"
TURN_SECONDS = 0.5  # the slowest contender's turn lasts at least this long


@dataclass
class Contender:
    name: str
    step: Callable[[], None]  # one optimizer step
    dtype: torch.dtype
    first_step_s: float
    peak_bytes: int  # 0 or less where it cannot be measured


def enter_contenders(
    stack: contextlib.ExitStack, folder: Path, device: torch.device, batch: int, can_compile: bool, has_trainer: bool
) -> list[Contender]:
    """The contenders, each warmed up with two steps, so that whatever compiles has compiled."""
    torch.compiler.reset()  # or the second batch size would be compiled for any size
    fast = choose_dtype("auto", device)
    starts = [
        ("ours", fast, partial(ways.ours, folder=folder / "ours", compiled=False)),
        (PLAIN, torch.float32, ways.plain),
    ]
    if can_compile:
        starts.append(("ours, compiled", fast, partial(ways.ours, folder=folder / "compiled", compiled=True)))
    if has_trainer:
        name = "Hugging Face Trainer" + ", compiled" * can_compile
        trainer = partial(ways.hugging_face, folder=folder / "trainer", compiled=can_compile)
        starts.append((name, fast, trainer))
    entered = []
    for name, dtype, start in starts:
        keep_freed_memory(False)
        before = memory(device)
        model = ways.new_model(folder, device)
        started = time.perf_counter()
        step = stack.enter_context(start(model, ways.RandomRows(max(64, 2 * batch), model), batch))
        seconds_of(step, device)
        first_step_s = time.perf_counter() - started  # with what compiles before it
        reset_peak(device)
        step()
        entered.append(Contender(name, step, dtype, first_step_s, peak_memory(device) - before))
    return entered


def time_training(
    contenders: list[Contender], batch: int, repeats: int, model: GPTSingleHead, device: torch.device
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
