"""The loss of a language model's last layer, and what evaluation needs beside it, without the logits of a whole batch.

In float32 the logits of 8 windows of 256 GPT-2 tokens take 412 MB, which the usual way writes and reads several times.
Here a slice of rows is taken from its hidden states to its loss before the next.
"""

import torch
from torch import Tensor

IGNORED = -100  # the label that counts in no loss (PyTorch's own default for cross_entropy)
# Bytes of float32 logits at a time, by the dtype of the product on a CPU. In bf16 what the cache holds is fastest. In
# float32 the product takes longer than all else, and every slice reads the whole weight again: 62 rows of GPT-2's
# vocabulary at a time took twice as long as 1,000. On a GPU, enough to keep it busy.
_CPU_SLICE_BYTES = {torch.float32: 256 << 20, torch.bfloat16: 12 << 20}
_SLICE_BYTES = 256 << 20


def next_token_nats(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed negative log-likelihood of the targets: scalar, float32, in nats, differentiable.

    Args:
        hidden: [N, H], floating; under autocast the matrix products take its dtype.
        weight: [V, H], of the layer that makes logits of hidden states.
        targets: [N] int64, IGNORED where nothing is to be predicted.
    """
    return _NextTokenNats.apply(hidden, weight, targets)


@torch.no_grad()
def next_token_scores(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood [N] float32, 0 at IGNORED, and whether the target is the likeliest token [N] bool."""
    matrix = _matrix(weight, _dtype(hidden))
    nats, hits = [], []
    for start, log_probs in _log_probs(hidden, matrix, len(weight)):
        slice_targets = targets[start : start + len(log_probs), None]
        own = log_probs.gather(1, slice_targets.clamp(min=0)).masked_fill(slice_targets == IGNORED, 0)
        nats.append(-own[:, 0])
        hits.append(log_probs.argmax(-1) == slice_targets[:, 0])
    return torch.cat(nats), torch.cat(hits)


class _NextTokenNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        dtype = _dtype(hidden)
        matrix = _matrix(weight, dtype)
        nats = hidden.new_zeros((), dtype=torch.float32)
        errors = hidden.new_empty((len(hidden), len(matrix)), dtype=dtype)  # gradient of the nats for the logits
        errors[:, len(weight) :] = 0
        for start, log_probs in _log_probs(hidden, matrix, len(weight)):
            slice_targets = targets[start : start + len(log_probs), None]
            index = slice_targets.clamp(min=0)
            own = log_probs.gather(1, index)
            nats -= own.masked_fill(slice_targets == IGNORED, 0).sum()
            slice_errors = log_probs.exp_().scatter_(1, index, own.expm1())  # probabilities, less 1 at the target
            errors[start : start + len(log_probs), : len(weight)] = slice_errors
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
    """The weight with rows of 0 up to a multiple of 64, which tensor cores want: [V padded, H]."""
    matrix = weight.new_empty((-(-len(weight) // 64) * 64, weight.shape[1]), dtype=dtype)
    matrix[: len(weight)] = weight
    matrix[len(weight) :] = 0
    return matrix


def _log_probs(hidden: Tensor, matrix: Tensor, vocabulary: int):
    """Yields the first row of a slice and its log-probabilities [rows, V] float32."""
    size = _CPU_SLICE_BYTES.get(matrix.dtype, _SLICE_BYTES) if hidden.device.type == "cpu" else _SLICE_BYTES
    rows = max(1, size // (4 * len(matrix)))
    for start in range(0, len(hidden), rows):
        logits = hidden[start : start + rows].to(matrix.dtype) @ matrix.T
        yield start, logits[:, :vocabulary].log_softmax(-1, dtype=torch.float32)
