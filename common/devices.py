"""The device that computes, its precision and its memory."""

import contextlib
import ctypes
from pathlib import Path

import torch

from common.command import InputError
from common.gpu import usable_gpu

FP16_DEVICES = ("cuda",)  # tests add the CPU, which takes its time over it


def choose_device() -> torch.device:
    """The first GPU if there is one that PyTorch can use, else the CPU."""
    return torch.device("cuda" if usable_gpu() else "cpu")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the matrix multiplications: what `precision` says, or for "auto" what the hardware is fast at.

    bf16 on GPUs since Ampere (compute capability 8.0) and on CPUs with AVX512-BF16 or AMX, fp16 on older GPUs.

    Raises:
        InputError: fp16 on a CPU, where it is slower than float32 and its gradients overflow.
    """
    if precision == "fp16" and device.type not in FP16_DEVICES:
        raise InputError("--precision fp16 needs a GPU; on this CPU use --precision auto")
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    fast = any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which matrix multiplications run in `dtype`; float32 switches it off."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def keep_freed_memory(keep: bool = True) -> None:
    """Have the C library keep freed memory for the next allocation instead of giving it back to the system each time.

    A training step on a CPU frees and takes gigabytes, which the system would otherwise map and clear anew, page by
    page: at distilgpt2's shape that took 30 to 40 % of an eager step. `False` gives it back, and restores the default.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc alone has these functions
        c_library = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # mallopt(3), malloc.h
        c_library.mallopt(trim_threshold, -1 if keep else 128 << 10)
        c_library.mallopt(mmap_max, 0 if keep else 65536)
        if not keep:
            c_library.malloc_trim(0)


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was too little memory. Allocators, driver, cuBLAS and cuDNN each say it differently."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in words)
    )


def memory(device: torch.device, key: str = "VmRSS") -> int:
    """Bytes in use: of tensors on a GPU, of the process on a CPU under Linux, elsewhere 0."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def peak_memory(device: torch.device) -> int:
    """The most that was in use, as `memory` counts it."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory(device, "VmHWM")
