"""Pure functions of the step: its learning rate, its windows, and its random numbers."""

import math

import torch
from torch import Tensor


def lr_factor(scheduler: str, step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the fraction of the peak learning rate at optimizer step `step`, counted from 0.

    The reference takes these five schedules from transformers.optimization. There, hard restarts have one cycle by
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


def epoch_order(rows: int, epoch: int, seed: int, shape: tuple[int, ...]) -> Tensor:
    """Return row numbers [steps, *shape] of one epoch: each row once, and -1 where the last step has no rows left.

    A step's rows depend only on the product of `shape`, not on its division into micro-batches and processes.
    """
    generator = torch.Generator().manual_seed((seed + 1_000_003 * epoch) % 2**63)
    per_step = math.prod(shape)
    order = torch.full((math.ceil(rows / per_step) * per_step,), -1)
    order[:rows] = torch.randperm(rows, generator=generator)
    return order.view(-1, *shape)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for one step, so that a restarted run draws the same dropout.

    The state of the generators is a function of the step, so it does not need to be saved.
    """
    torch.manual_seed(((seed * 1_000_003 + step) * 1_009 + rank) % 2**63)
