"""Strength: how much of what a round trained is used.

    W = W₀ + s · (W₁ − W₀),   0 < s ≤ 1

W₀ are the weights that training started from, W₁ the trained ones. Where training went too far, a smaller s goes back
(WiSE-FT, Wortsman et al., CVPR 2022, arXiv 2109.01903). Ours: it is done to LoRA's factors, so that the rank stays.
From the bare base on, where W₁ − W₀ = (α/r) B A, it is s · B, exactly. From another adapter on, both factors move in
a straight line from that one's: both ends are exact, and between them the product bends.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["interpolate"]


def interpolate(
    start: Mapping[str, Tensor] | None, trained: Mapping[str, Tensor], strength: float
) -> dict[str, Tensor]:
    """Return an adapter between the one that training started from and the trained one.

    Args:
        start: tensors keyed as PEFT's files key them; None for the bare base.
        trained: tensors of the same keys and shapes.
        strength: 1 gives `trained`, bit for bit.
    """
    if start is None:
        start = {key: torch.zeros_like(tensor) if ".lora_B." in key else tensor for key, tensor in trained.items()}
    return {key: torch.lerp(start[key], tensor, strength) for key, tensor in trained.items()}
