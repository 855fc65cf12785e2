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
