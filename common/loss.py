"""The loss and scores of a language model's last layer, with few passes over the logits.

The logits are the largest tensor of a step: 8 windows of 256 GPT-2 tokens take 412 MB in float32, and the usual
computation writes and reads them several times. Here their gradient overwrites them, in the matrix products' dtype.
"""

import functools
import importlib.util
import logging

import torch
from torch import Tensor

from common.command import first_line

logger = logging.getLogger(__name__)

IGNORED = -100  # a label that does not count in the loss (PyTorch's default for cross_entropy)
# Rows are computed in slices whose logits, in float32, have this many bytes. On a CPU this depends on the dtype of the
# product. In bf16, slices that fit into the cache are fastest. In float32 the product takes most of the time, and each
# slice reads the whole weight again: slices of 62 rows (GPT-2's vocabulary) took twice as long as slices of 1,000.
_CPU_SLICE_BYTES = {torch.float32: 256 << 20, torch.bfloat16: 12 << 20}
_GPU_SLICE_BYTES = 1 << 30  # enough to keep the GPU busy


def next_token_nats(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed negative log-likelihood of the targets: scalar, float32, in nats, differentiable.

    Args:
        hidden: [N, H], floating; under autocast the matrix products take its dtype.
        weight: [V, H], of the layer that computes logits from hidden states.
        targets: [N] int64; positions with IGNORED do not count.
    """
    return _NextTokenNats.apply(hidden, weight, targets)


@torch.no_grad()
def next_token_scores(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood [N] float32 (0 at IGNORED), and whether the target is the most likely token [N] bool."""
    matrix = _matrix(weight, _dtype(hidden))
    scores = [
        _score(hidden[rows].to(matrix.dtype) @ matrix.T, targets[rows], len(weight), False)
        for rows in _slices(hidden, matrix)
    ]
    nats, hits = zip(*scores, strict=True)
    return torch.cat(nats), torch.cat(hits)


class _NextTokenNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        matrix = _matrix(weight, _dtype(hidden))
        # The gradient of the nats with respect to the logits.
        errors = hidden.new_empty((len(hidden), len(matrix)), dtype=matrix.dtype)
        nats = hidden.new_zeros((), dtype=torch.float32)
        for rows in _slices(hidden, matrix):
            torch.mm(hidden[rows].to(matrix.dtype), matrix.T, out=errors[rows])
            nats += _score(errors[rows], targets[rows], len(weight), True)[0].sum()
        ctx.save_for_backward(hidden, matrix, errors, targets != IGNORED)
        ctx.vocabulary = len(weight)
        return nats

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, matrix, errors, counted = ctx.saved_tensors
        grads = (grad * counted)[:, None]  # [N, 1]
        grad_hidden = (errors @ matrix).to(hidden.dtype) * grads
        grad_weight = errors.T @ (hidden * grads).to(errors.dtype)
        return grad_hidden, grad_weight[: ctx.vocabulary].to(hidden.dtype), None


def _dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight with rows of 0 added up to a multiple of 64, which tensor cores need: [V padded, H]."""
    matrix = weight.new_empty((-(-len(weight) // 64) * 64, weight.shape[1]), dtype=dtype)
    matrix[: len(weight)] = weight
    matrix[len(weight) :] = 0
    return matrix


def _slices(hidden: Tensor, matrix: Tensor) -> list[slice]:
    on_cpu = hidden.device.type == "cpu"
    size = _CPU_SLICE_BYTES.get(matrix.dtype, 256 << 20) if on_cpu else _GPU_SLICE_BYTES
    rows = max(1, size // (4 * len(matrix)))
    return [slice(start, start + rows) for start in range(0, len(hidden), rows)]


def _score(logits: Tensor, targets: Tensor, vocabulary: int, to_errors: bool) -> tuple[Tensor, Tensor]:
    """Nats of the targets [n] float32 and whether each is the most likely token [n] bool.

    Args:
        logits: [n, V padded]; with `to_errors` the gradient of the summed nats overwrites them.
        targets: [n] int64; at IGNORED the nats are 0, but the gradient is not.
    """
    if logits.device.type == "cuda" and kernel_works(logits.device):
        return torch.ops.autocoder.score(logits, targets, vocabulary, to_errors)
    targets = targets[:, None]
    log_probs = logits[:, :vocabulary].log_softmax(-1, dtype=torch.float32)
    own = log_probs.gather(1, targets.clamp(min=0))
    nats = -own.masked_fill(targets == IGNORED, 0)[:, 0]
    if not to_errors:
        return nats, log_probs.argmax(-1) == targets[:, 0]
    logits[:, :vocabulary] = log_probs.exp_().scatter_(1, targets.clamp(min=0), own.expm1())
    logits[:, vocabulary:] = 0
    return nats, nats > 0  # training does not use the second result


@torch.library.custom_op("autocoder::score", mutates_args={"logits"})
def _score_by_kernel(logits: Tensor, targets: Tensor, vocabulary: int, to_errors: bool) -> tuple[Tensor, Tensor]:
    """`_score` in one kernel. It reads a row twice, the second time from the cache, and writes it at most once."""
    from common.loss_kernel import score_rows

    nats, hits = _like_scores(logits, targets, vocabulary, to_errors)
    score_rows[(len(logits),)](
        logits, targets.contiguous(), nats, hits, logits.stride(0), vocabulary, to_errors, 8192, num_warps=16
    )
    return nats, hits


@_score_by_kernel.register_fake
def _like_scores(logits: Tensor, targets: Tensor, vocabulary: int, to_errors: bool) -> tuple[Tensor, Tensor]:
    return logits.new_empty(len(logits), dtype=torch.float32), logits.new_empty(len(logits), dtype=torch.bool)


@functools.cache
def kernel_works(device: torch.device) -> bool:
    """Whether Triton can compile the kernel here: it needs a C compiler, and a GPU that it supports."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        logits = torch.zeros((2, 64), device=device)
        nats, _ = _score_by_kernel(logits, torch.tensor([1, IGNORED], device=device), 50, True)
        return torch.allclose(nats.cpu(), torch.tensor([50.0, 1.0]).log())
    except Exception as error:  # of many kinds
        logger.warning("the loss is computed without Triton's kernel, which is slower (%s)", first_line(error))
        return False
