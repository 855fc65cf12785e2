"""Wall time and peak memory on any device."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import torch


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
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    left @ right
    return 3 * 2 * size**3 / seconds_of(lambda: left @ right, device, 3)
