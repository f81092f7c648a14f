"""The output head: from final hidden states to logits, so that only the positions asked for are projected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Head", "output_head"]

Head = Callable[[Tensor], Tensor]


def output_head(module: nn.Module) -> Head:
    """Return the function from final hidden states to logits, with the scaling that some architectures add."""
    projection: nn.Module = module.get_output_embeddings()  # type: ignore[operator]
    config: Any = module.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3
    factor = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = projection(hidden)
        if factor != 1.0:  # Cohere multiplies, Granite divides
            logits = logits * factor
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    return head
