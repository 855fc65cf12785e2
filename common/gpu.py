"""Whether there is a GPU, and whether PyTorch can use it. Importing this does not import PyTorch."""

import ctypes
import os
import sys


def has_gpu() -> bool:
    """Whether NVIDIA's driver has a GPU that this process may use. Asking PyTorch would take seconds."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        count = ctypes.c_int()
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        return False


def usable_gpu() -> bool:
    """Whether PyTorch can compute on a GPU. If there is a GPU that it cannot use, prints the reason on stderr."""
    import torch

    if problem := gpu_problem():
        print(f"note: there is a GPU, but {problem}; until then the CPU is used", file=sys.stderr)
        return False
    return torch.cuda.is_available()


def gpu_problem() -> str | None:
    """Why PyTorch cannot use the GPU, and what to install. None if it can, or if there is no GPU."""
    import torch

    if not has_gpu():
        return None
    if torch.version.cuda is None:
        return "this PyTorch is built for CPUs only: install a CUDA build (pytorch.org/get-started)"
    if not torch.cuda.is_available():
        return (
            f"its driver is too old for this PyTorch, which is built for CUDA {torch.version.cuda}: update the driver, "
            "or install a PyTorch for an older CUDA (pytorch.org/get-started/previous-versions)"
        )
    major, minor = torch.cuda.get_device_capability()
    built_for = [int("".join(filter(str.isdigit, name))) for name in torch.cuda.get_arch_list()]
    if built_for and 10 * major + minor < min(built_for):
        return (
            f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}, and this PyTorch supports "
            f"{min(built_for) / 10} and newer: install an older PyTorch (pytorch.org/get-started/previous-versions)"
        )
    return None
