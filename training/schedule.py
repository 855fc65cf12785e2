"""The learning rate schedules that train.py's --scheduler names."""

import math

SCHEDULERS = ("constantlr", "warmuplinear", "warmupconstant", "warmupcosine", "warmupcosinewithhardrestarts")


def lr_factor(scheduler: str, step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the fraction of the peak learning rate at optimizer step `step`, counted from 0.

    The 2020 reference took these five schedules from transformers.optimization. There, hard restarts have one cycle by
    default, which is the same as the cosine schedule.
    """
    if scheduler == "constantlr":
        return 1.0
    if step < warmup_steps:
        return step / warmup_steps
    if scheduler == "warmupconstant":
        return 1.0
    left = max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
    if scheduler == "warmuplinear":
        return left
    return 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
