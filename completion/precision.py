"""Make a model fast at generating: 8-bit weights on a CPU, 16 bits on a GPU, as many threads as help."""

import time
import warnings
from math import inf

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from common.command import InputError
from common.devices import choose_dtype
from model import GPTSingleHead, fuse_activations

_LEVELS = 63  # of 7 bits: with more, two products of 8 bits would overflow 16, in which AVX2 adds pairs of them
_TINY = torch.tensor(1e-12)


def prepare(model: GPTSingleHead, precision: str, device: torch.device) -> GPTSingleHead:
    """Move a model to a device and into a precision, for inference only, and choose PyTorch's number of threads.

    Args:
        precision: fp32, bf16, fp16 (GPU only), int8 (x86 CPU only), or auto: bf16 or fp16 on a GPU, on a CPU int8 where
            that can be had.
    Raises:
        InputError: the device cannot do that.
    """
    if precision == "int8" and not (device.type == "cpu" and has_int8()):
        raise InputError("--precision int8 needs an x86 CPU, and PyTorch's kernels for it; use --precision auto")
    model = model.eval().requires_grad_(False).to(device)
    fuse_activations(model.gpt)
    available = torch.get_num_threads()
    torch.set_num_threads(1)  # what follows is short
    if device.type == "cpu" and precision in ("auto", "int8") and has_int8():
        quantize(model.gpt)
    else:
        model.gpt.to(choose_dtype(precision, device))
    torch.set_num_threads(fastest_threads(model, available) if device.type == "cpu" else available)
    return model


def has_int8() -> bool:
    """Whether `quantize` works on this CPU with this PyTorch, whose later versions may leave its kernel out."""
    engines = torch.backends.quantized.supported_engines
    return "fbgemm" in engines and hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")


def quantize(module: nn.Module) -> None:
    """Replace every linear layer below a module by one with 8-bit weights."""
    for name, child in module.named_children():
        if isinstance(child, Conv1D):  # GPT-2's linear layer, with its weight transposed
            setattr(module, name, Int8Linear(child.weight.T, child.bias))
        elif isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child.weight, child.bias))
        else:
            quantize(child)


class Int8Linear(nn.Module):
    """A linear layer whose weights are 8-bit integers with one scale for each output.

    Generation reads every weight once for each token, so its time is that of reading memory: a quarter of float32's.
    FBGEMM's kernel wants inputs of few bits too. So that this costs no precision, each row goes in twice: rounded to 7
    bits, and what that leaves, in 7 bits again. Next to reading the weights, a second row takes hardly any time. The
    mean over the outputs is taken out of the weights, so that 8 bits go further where all outputs share a large offset,
    as GPT-2's logits do.

    Args:
        weight: [outputs, inputs] float32.
        bias: [outputs] float32, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        weight = weight.detach()
        mean = weight.mean(0)
        weight = weight - mean
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)  # [outputs]
        self._product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a later PyTorch will not have this; see has_int8
            zeros = torch.zeros(len(weight), dtype=torch.long)
            packed = torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(packed, None)
        torch.backends.quantized.engine = engine
        self.register_buffer("mean", mean)  # [inputs]
        self.register_buffer("bias", torch.zeros(len(weight)) if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] float32 -> [..., outputs]. Few operations, as each costs time for every token."""
        size = torch.add(_TINY, x.abs().amax(-1, keepdim=True), alpha=1 / _LEVELS)
        scaled = x / size  # in -_LEVELS .. _LEVELS
        coarse = scaled.round()
        rest = scaled.sub_(coarse).mul_(2 * _LEVELS)
        y, y_of_rest = self._product(torch.stack((coarse, rest)), 1.0, _LEVELS + 1, self._packed).unbind()
        y = torch.addcmul(self.bias, torch.add(y, y_of_rest, alpha=1 / (2 * _LEVELS)), size)
        return y.add_((x @ self.mean)[..., None])


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
