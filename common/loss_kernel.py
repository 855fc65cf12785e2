"""The Triton kernel of loss.py, for GPUs."""

import triton
import triton.language as tl


@triton.jit
def score_rows(
    logits,
    targets,
    nats,
    hits,
    stride: tl.constexpr,
    vocabulary: tl.constexpr,
    to_errors: tl.constexpr,
    block: tl.constexpr,
):
    """loss._score, a row of `stride` logits in each program."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    own = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)  # before anything is written
    largest, total, likeliest = -float("inf"), 0.0, 0
    for start in range(0, vocabulary, block):
        columns = start + tl.arange(0, block)
        values = tl.load(logits + columns, mask=columns < vocabulary, other=-float("inf")).to(tl.float32)
        top, place = tl.max(values, 0, return_indices=True)
        likeliest = tl.where(top > largest, start + place, likeliest)
        previous, largest = largest, tl.maximum(largest, top)
        total = total * tl.exp(previous - largest) + tl.sum(tl.exp(values - largest), 0)
    normalizer = largest + tl.log(total)  # the logarithm of the sum of all exponentials
    tl.store(nats + row, tl.where(target >= 0, normalizer - own, 0.0))
    tl.store(hits + row, likeliest == target)
    if to_errors:
        for start in range(0, stride, block):
            columns = start + tl.arange(0, block)
            values = tl.load(logits + columns, mask=columns < vocabulary, other=-float("inf")).to(tl.float32)
            errors = tl.exp(values - normalizer) - tl.where(columns == target, 1.0, 0.0)
            tl.store(logits + columns, errors.to(logits.dtype.element_ty), mask=columns < stride)
