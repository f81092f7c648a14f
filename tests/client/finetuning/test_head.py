import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from client.finetuning.head import output_head, weighted_nll
from client.model import BaseModel


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


def test_without_a_gradient_only_the_losses_are_computed() -> None:
    loss, losses = weighted_nll(torch.ones(3, 2), torch.tensor([0, 1, 2]), torch.ones(3), nn.Linear(2, 4), chunk=2)
    assert not loss.requires_grad
    assert losses.shape == (3,)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_head_gives_the_logits_of_the_model(softcap: float | None) -> None:
    config = Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.5,
        final_logit_softcapping=softcap,
    )
    model = Gemma2ForCausalLM(config)
    ids = torch.tensor([[3, 1, 4]])
    hidden = model.model(ids).last_hidden_state
    assert torch.allclose(output_head(model)(hidden), model(ids).logits, atol=1e-6)


@pytest.mark.parametrize(("name", "value", "factor"), [("logit_scale", 0.5, 0.5), ("logits_scaling", 4.0, 0.25)])
def test_scaled_logits_are_scaled(shared_tiny_model: BaseModel, name: str, value: float, factor: float) -> None:
    module = copy.deepcopy(shared_tiny_model.module)
    hidden = torch.ones(1, 32)
    plain = output_head(module)(hidden)
    setattr(module.config, name, value)
    assert torch.allclose(output_head(module)(hidden), plain * factor)
