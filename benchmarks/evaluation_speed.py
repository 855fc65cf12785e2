"""Windows evaluated per second."""

import statistics
from pathlib import Path

import torch

from benchmarks.contenders import REFERENCE_BATCH, RandomRows, evaluate_plainly, large_batch, new_model
from benchmarks.timing import seconds_of
from common.devices import keep_freed_memory
from evaluation.loss import SingleCLMEvaluator

PLAIN = "plain float32, batches of 8"
EVALUATION_SECONDS = 10  # as long, so that what an evaluation does once weighs little


def time_evaluation(folder: Path, device: torch.device, repeats: int, quick: bool) -> list[dict]:
    """Windows per second of our evaluator, which also measures accuracy and bits per byte, and of the 2020 way."""
    model = new_model(folder, device).eval()
    trial = RandomRows(REFERENCE_BATCH, model)
    evaluate_plainly(model, trial)
    batch_s = seconds_of(lambda: evaluate_plainly(model, trial), device)
    rows = RandomRows(REFERENCE_BATCH * (2 if quick else min(512, max(2, round(EVALUATION_SECONDS / batch_s)))), model)
    large = min(len(rows), max(REFERENCE_BATCH, large_batch(model, device)))
    runs = {PLAIN: lambda: evaluate_plainly(model, rows)}
    for batch in sorted({8, large}):
        evaluator = SingleCLMEvaluator(rows, batch_size=batch)
        runs[f"ours, batches of {batch}"] = lambda evaluator=evaluator: evaluator(model)
    seconds = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            keep_freed_memory(name != PLAIN)
            seconds[name].append(seconds_of(run, device))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    plain = medians[PLAIN]
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


def evaluation_table(rows: list[dict]) -> str:
    lines = [f"\n{'evaluation':<42}{'windows/s':>10}{'x plain':>10}"]
    lines += [f"{row['name']:<42}{row['windows_per_second']:>10,.2f}{row['times_plain']:>10.2f}" for row in rows]
    return "\n".join(lines) + "\n"
