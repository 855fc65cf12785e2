"""The device that computes, its precision and its memory."""

import contextlib
import ctypes
from pathlib import Path

import torch

from common.command import InputError
from common.gpu import usable_gpu

FP16_DEVICES = ("cuda",)  # tests add the CPU, which is slow in fp16


def choose_device() -> torch.device:
    """The first GPU if there is one that PyTorch can use, else the CPU."""
    return torch.device("cuda" if usable_gpu() else "cpu")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the matrix multiplications.

    Args:
        precision: fp32, bf16, fp16 or auto. auto gives bf16 on GPUs since Ampere (compute capability 8.0) and on CPUs
            with AVX512-BF16 or AMX, fp16 on older GPUs, and fp32 on other CPUs.
    Raises:
        InputError: fp16 on a CPU, where it is slower than fp32 and gradients overflow.
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
    """Have the C library keep freed memory for later allocations; `False` returns it and restores the default.

    A training step on a CPU frees and allocates gigabytes. By default the system maps and clears them again, page by
    page: at distilgpt2's shape that took 30 to 40 % of an eager step.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # only glibc has these functions
        c_library = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # mallopt(3), malloc.h
        c_library.mallopt(trim_threshold, -1 if keep else 128 << 10)
        c_library.mallopt(mmap_max, 0 if keep else 65536)
        if not keep:
            c_library.malloc_trim(0)


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was too little memory. Allocators, driver, cuBLAS and cuDNN have different messages for it."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in words)
    )


def memory(device: torch.device, key: str = "VmRSS") -> int:
    """Bytes in use: by tensors on a GPU, by the process on a CPU under Linux, elsewhere 0."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def peak_memory(device: torch.device) -> int:
    """The largest value that `memory` has had."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory(device, "VmHWM")
