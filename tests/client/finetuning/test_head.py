import math

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from client.finetuning.head import weighted_nll


@given(count=st.integers(1, 9), chunk=st.integers(1, 10), vocabulary=st.integers(2, 7), seed=st.integers(0, 99))
def test_loss_and_gradient_are_those_of_cross_entropy(count: int, chunk: int, vocabulary: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(4, vocabulary)
    hidden = torch.randn(count, 4, generator=generator).requires_grad_()
    targets = torch.randint(vocabulary, (count,), generator=generator)
    weights = torch.rand(count, generator=generator)
    expected = F.cross_entropy(head(hidden), targets, reduction="none")
    (slope,) = torch.autograd.grad(3 * expected @ weights, hidden)
    loss, losses = weighted_nll(hidden, targets, weights, head, chunk=chunk)
    assert torch.allclose(loss, expected @ weights, atol=1e-6)
    assert torch.allclose(losses, expected, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(3 * loss, hidden)[0], slope, atol=1e-6)


@given(distance=st.floats(0, 200), level=st.floats(-300, 300))
def test_losses_next_to_zero_and_far_from_it_are_exact(distance: float, level: float) -> None:
    """Reference: log(1 + exp(−d)) and d more, in float64."""
    logits = torch.tensor([[level, level - distance]], dtype=torch.float32)
    _, losses = weighted_nll(logits.expand(2, 2), torch.tensor([0, 1]), torch.ones(2), nn.Identity(), chunk=2)
    exact = float(logits[0, 0].double() - logits[0, 1].double())
    expected = [math.log1p(math.exp(-exact)), math.log1p(math.exp(-exact)) + exact]
    torch.testing.assert_close(losses.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-6)


def test_without_a_gradient_only_the_losses_are_computed() -> None:
    loss, losses = weighted_nll(torch.ones(3, 2), torch.tensor([0, 1, 2]), torch.ones(3), nn.Linear(2, 4), chunk=2)
    assert not loss.requires_grad
    assert losses.shape == (3,)
