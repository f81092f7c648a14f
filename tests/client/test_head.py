import copy

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from client.head import output_head
from client.model import BaseModel


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
