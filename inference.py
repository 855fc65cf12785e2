"""Make a model fast at generating: 8-bit weights on a CPU, 16 bits on a GPU, as many threads as help."""

import time
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from common import InputError
from model import GPTSingleHead, choose_dtype

# Up to this many rows the 8-bit kernel is faster than unpacked weights (measured at 768 x 3072, AVX-512 and AVX2).
FEW_ROWS = 16


def prepare(model: GPTSingleHead, precision: str, device: torch.device) -> GPTSingleHead:
    """Move a model to a device and into a precision, for inference only, and choose PyTorch's number of threads.

    Args:
        precision: fp32, bf16, fp16 (GPU only), int8 (CPU only), or auto: int8 on a CPU, bf16 or fp16 on a GPU.
    Raises:
        InputError: the device cannot do that.
    """
    if precision == "int8" and device.type != "cpu":
        raise InputError("--precision int8 is for CPUs; on a GPU use --precision auto")
    model = model.eval().requires_grad_(False).to(device)
    available = torch.get_num_threads()
    torch.set_num_threads(1)  # what follows is short
    if device.type == "cpu" and precision in ("auto", "int8"):
        quantize(model.gpt)
    else:
        model.gpt.to(choose_dtype(precision, device))
    torch.set_num_threads(fastest_threads(model, available) if device.type == "cpu" else available)
    return model


def quantize(module: nn.Module, few_rows: int = FEW_ROWS) -> None:
    """Replace every linear layer below a module by an `Int8Linear`."""
    for name, child in module.named_children():
        if isinstance(child, Conv1D):  # GPT-2's linear layer, with its weight transposed
            setattr(module, name, Int8Linear(child.weight.detach().T, child.bias, few_rows))
        elif isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child.weight.detach(), child.bias, few_rows))
        else:
            quantize(child, few_rows)


class Int8Linear(nn.Module):
    """A linear layer whose weights are 8-bit integers with one scale for each output.

    Generation reads every weight once for each token, so its time is that of reading memory: a quarter of float32's.
    The kernel rounds its results to bf16. So that this costs no precision where all results share a large offset, as
    the logits of GPT-2 do, the mean over the outputs is taken out of the weights and added in float32.

    Args:
        weight: [outputs, inputs] float32.
        bias: [outputs] float32, or None.
        few_rows: with more rows than that the weights are unpacked first.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, few_rows: int = FEW_ROWS):
        super().__init__()
        self._few_rows = few_rows
        self._unpacked = choose_dtype("auto", torch.device("cpu"))  # bf16 is slow on CPUs that do not have it
        mean = weight.mean(0)
        scale = ((weight - mean).abs().amax(1) / 127).clamp(min=1e-12).bfloat16()
        packed = ((weight - mean) / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.register_buffer("mean", mean)  # [inputs]
        self.register_buffer("scale", scale)  # [outputs]
        self.register_buffer("weight", packed.contiguous())  # [outputs, inputs]
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # [rows, inputs]
        if len(rows) <= self._few_rows:
            y = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, self.scale)
        else:
            y = F.linear(rows.to(self._unpacked), self.weight.to(self._unpacked)) * self.scale
        y = y.float() + (rows @ self.mean)[:, None]  # [rows, outputs]
        if self.bias is not None:
            y += self.bias
        return y.unflatten(0, x.shape[:-1])


@torch.inference_mode()
def fastest_threads(model: GPTSingleHead, available: int) -> int:
    """The number of threads with which one token takes least time here and now.

    A small model gains nothing from a second thread, and on a machine with many cores it loses.
    """
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    seconds: dict[int, float] = {}
    for threads in sorted({1, (available + 1) // 2, available}):
        torch.set_num_threads(threads)
        times = []
        while len(times) < 3 and (not times or min(times) < 2 * min(seconds.values(), default=inf)):
            began = time.perf_counter()
            model.gpt(ids)
            times.append(time.perf_counter() - began)
        seconds[threads] = min(times)
    return min(seconds, key=seconds.get)
