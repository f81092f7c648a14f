from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from client.adapters import PERSONAL, AdaptedModel, AdapterConfig
from client.model import BaseModel
from client.strength import interpolate

LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj")
strengths = st.floats(0.0, 1.0, exclude_min=True)


def factors(seed: int, rank: int = 2) -> dict[str, Tensor]:
    """Draw an adapter of two layers, `(4, rank)` and `(rank, 3)`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"A": (rank, 3), "B": (4, rank)}
    return {
        f"{layer}.lora_{factor}.weight": torch.randn(shape, generator=generator)
        for layer in LAYERS
        for factor, shape in shapes.items()
    }


def update(state: dict[str, Tensor], layer: str) -> Tensor:
    return state[f"{layer}.lora_B.weight"].double() @ state[f"{layer}.lora_A.weight"].double()


def test_by_hand() -> None:
    """From A = 2, B = 4 to A = 6, B = 8, a quarter of the way is A = 3, B = 5; from the base it is A = 6, B = 2."""
    start = {"x.lora_A.weight": torch.tensor([[2.0]]), "x.lora_B.weight": torch.tensor([[4.0]])}
    trained = {"x.lora_A.weight": torch.tensor([[6.0]]), "x.lora_B.weight": torch.tensor([[8.0]])}
    assert {key: tensor.item() for key, tensor in interpolate(start, trained, 0.25).items()} == {
        "x.lora_A.weight": 3.0,
        "x.lora_B.weight": 5.0,
    }
    assert {key: tensor.item() for key, tensor in interpolate(None, trained, 0.25).items()} == {
        "x.lora_A.weight": 6.0,
        "x.lora_B.weight": 2.0,
    }


@given(seed=st.integers(0, 99), strength=strengths)
def test_from_the_base_on_the_update_is_scaled(seed: int, strength: float) -> None:
    trained = factors(seed)
    weakened = interpolate(None, trained, strength)
    for layer in LAYERS:
        assert torch.allclose(update(weakened, layer), strength * update(trained, layer), atol=1e-5)


@given(seed=st.integers(0, 99), strength=strengths)
def test_from_another_adapter_on_every_tensor_moves_in_a_straight_line(seed: int, strength: float) -> None:
    start, trained = factors(seed), factors(seed + 100)
    for key, tensor in interpolate(start, trained, strength).items():
        assert torch.allclose(tensor, (1 - strength) * start[key] + strength * trained[key], atol=1e-5)
    assert all(torch.equal(tensor, start[key]) for key, tensor in interpolate(start, start, strength).items())


@pytest.mark.parametrize("start", [None, factors(1)], ids=["base", "adapter"])
def test_full_strength_is_the_trained_adapter_to_the_bit(start: dict[str, Tensor] | None) -> None:
    trained = factors(2)
    assert all(torch.equal(tensor, trained[key]) for key, tensor in interpolate(start, trained, 1.0).items())


def test_the_model_s_weights_are_interpolated(tiny_model: BaseModel) -> None:
    """A quarter of the strength is a quarter of α, which the model itself multiplies the update by."""
    logits = []
    ids = torch.tensor([[1, 9, 30, 7, 12]])
    for alpha, strength in ((16.0, 0.25), (4.0, 1.0)):
        model = AdaptedModel(tiny_model, AdapterConfig(rank=2, alpha=alpha), slots=(PERSONAL,))
        trained = {key: torch.full_like(tensor, 0.1) for key, tensor in model.state(PERSONAL).items()}
        model.load_state(PERSONAL, interpolate(None, trained, strength))
        with model.active(PERSONAL), torch.inference_mode():
            logits.append(model.module(ids).logits)
        model.detach()
    with torch.inference_mode():
        bare = tiny_model.module(ids).logits
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert not torch.allclose(logits[0], bare, atol=1e-3)
