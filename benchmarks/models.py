"""A model of the shape of Qwen2.5-0.5B with random weights: it takes as long as the real one, without a download."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["HALF_BILLION", "half_billion"]

HALF_BILLION: Final = "random-0.5b"


def half_billion(dtype: str) -> Any:
    """Make the module, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4_864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype=dtype,
    )
    models: Any = AutoModelForCausalLM
    return models.from_config(config).eval()
