"""HetLoRA: pad to the largest rank, weigh by norm, truncate per device (Cho et al., arXiv 2401.06432).

    Ā = Σ wᵢ pad(Aᵢ),  B̄ = Σ wᵢ pad(Bᵢ),  wᵢ ∝ pᵢ ‖BᵢAᵢ‖_F

A device of rank r receives the first r rows of Ā and columns of B̄. Ours: the paper's pruning of ranks is left out,
since here a device's rank is what its memory allows; and the weight multiplies the device's pᵢ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from florilegium.tensors import Tensors, mean
from strategies.factors import join, layers, pad, truncate
from strategies.rule import Individual, Reply, Turn

__all__ = ["HetLoRA"]


@dataclass(frozen=True, slots=True)
class HetLoRA(Individual):
    """Average zero-padded factors, weighted by the norm of their product."""

    name: ClassVar[str] = "hetlora"
    mixed_ranks: ClassVar[bool] = True

    def down(self, state: Tensors, turn: Turn) -> Tensors:
        """Cut to the device's rank."""
        return join({layer: truncate(pair, turn.rank) for layer, pair in layers(state).items()})

    def up(self, before: Tensors, after: Tensors, down: Tensors, turn: Turn) -> Tensors:
        """Send both factors."""
        return dict(after)

    def advance(self, state: Tensors, replies: Sequence[Reply], turn: Turn) -> Tensors:
        """Average; where nobody's product is more than zero, all count as they are weighted."""
        padded = [
            join({layer: pad(pair, turn.rank) for layer, pair in layers(reply.tensors).items()}) for reply in replies
        ]
        norms = [math.hypot(*(pair.norm() for pair in layers(reply.tensors).values())) for reply in replies]
        weights = [reply.weight * (norm if any(norms) else 1.0) for reply, norm in zip(replies, norms, strict=True)]
        return mean(zip(weights, padded, strict=True))
