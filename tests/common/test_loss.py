"""The loss by slices against PyTorch's cross_entropy on all logits at once: values, gradients, likeliest tokens."""

import pytest
import torch
import torch.nn.functional as F

from common import loss
from common.loss import IGNORED, next_token_nats, next_token_scores


@pytest.fixture(params=[1, 7, 1000], ids="{} rows a slice".format)
def problem(request, monkeypatch):
    """A vocabulary of 101, which is no multiple of 64; a third of the targets are ignored."""
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setitem(loss._CPU_SLICE_BYTES, dtype, 4 * 128 * request.param)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 16, generator=generator, requires_grad=True)
    weight = torch.randn(101, 16, generator=generator, requires_grad=True)
    targets = torch.randint(101, (20,), generator=generator)
    targets[::3] = IGNORED
    return hidden, weight, targets


def test_value_and_gradients_are_those_of_cross_entropy(problem):
    hidden, weight, targets = problem
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    found = next_token_nats(hidden, weight, targets)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found * 0.3, (hidden, weight)),
        torch.autograd.grad(expected * 0.3, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_under_autocast_it_differs_by_rounding_alone(problem):
    hidden, weight, targets = problem
    exact = torch.autograd.grad(next_token_nats(hidden, weight, targets), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        found = next_token_nats(hidden, weight, targets)
    assert found.dtype == torch.float32
    for ours, reference in zip(torch.autograd.grad(found, (hidden, weight)), exact, strict=True):
        assert ours.dtype == torch.float32
        assert 0 < (ours - reference).abs().max() < 0.03 * reference.abs().max()


def test_scores(problem):
    hidden, weight, targets = problem
    targets[1] = (hidden @ weight.T)[1].argmax()
    nats, hits = next_token_scores(hidden, weight, targets)
    torch.testing.assert_close(nats, F.cross_entropy(hidden @ weight.T, targets, reduction="none").detach())
    assert hits.tolist() == ((hidden @ weight.T).argmax(-1) == targets).tolist()
    assert hits[1]


def test_the_kernel_for_gpus_computes_the_same(monkeypatch):
    """Triton interprets it on a CPU; where Triton is not installed nothing can."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="Triton is not installed")
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 16, generator=generator, requires_grad=True)
    weight = torch.randn(9000, 16, generator=generator, requires_grad=True)  # more than one block
    targets = torch.tensor([0, 8999, IGNORED, 5, 8500, 77])
    for dtype in (torch.float32, torch.bfloat16):
        for to_errors in (False, True):
            with torch.inference_mode():
                logits = torch.zeros(6, 9024, dtype=dtype)
                logits[:, :9000] = (hidden @ weight.T).to(dtype)
                targets[3] = logits[3, :9000].argmax()
                copy = logits.clone()
                expected = loss._score(logits, targets, 9000, to_errors)
                found = torch.ops.autocoder.score(copy, targets, 9000, to_errors)
            torch.testing.assert_close(found[0], expected[0])
            if to_errors:
                counted = targets != IGNORED
                torch.testing.assert_close(copy[counted], logits[counted])
            else:
                assert found[1].tolist() == expected[1].tolist()
                assert found[1][3]
    expected = torch.autograd.grad(next_token_nats(hidden, weight, targets), (hidden, weight))
    monkeypatch.setattr(loss, "_score", torch.ops.autocoder.score)
    found = torch.autograd.grad(next_token_nats(hidden, weight, targets), (hidden, weight))
    torch.testing.assert_close(found, expected)
