"""The shape of seedling: a small Llama with tied embeddings and grouped-query attention."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from training.tokenizer import BOS, END, MAX_POSITIONS, PAD, SPECIAL_TOKENS, VOCABULARY_SIZE


def model_config(vocabulary_size: int = VOCABULARY_SIZE) -> LlamaConfig:
    """Return the configuration of seedling (7.5 M parameters)."""
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(END),
    )


def new_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """Make an untrained model; layers that write into the residual stream start small.

    The scale 1/sqrt(2 layers) keeps the residual stream's variance independent of the depth.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    scale = (2 * config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(scale)
    return model
