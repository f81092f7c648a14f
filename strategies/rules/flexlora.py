"""FlexLoRA: average the products and cut them down to each device's rank (Bai et al., arXiv 2402.11505).

    s B A ← SVD_R(Σ pᵢ sᵢ BᵢAᵢ),  a device of rank r receives the first r singular directions

The singular values are found from the stacked factors, without multiplying the products out. What lies beyond rank R is
lost in every round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from florilegium.tensors import Tensors
from strategies.factors import join, layers, stack, truncate, truncated_svd
from strategies.rule import Individual, Reply, Turn, shares

__all__ = ["FlexLoRA"]


@dataclass(frozen=True, slots=True)
class FlexLoRA(Individual):
    """Average products by a truncated SVD."""

    name: ClassVar[str] = "flexlora"
    mixed_ranks: ClassVar[bool] = True

    def down(self, state: Tensors, turn: Turn) -> Tensors:
        """Cut the server's factors, sorted by singular value, to the device's rank."""
        return join({layer: truncate(pair, turn.rank) for layer, pair in layers(state).items()})

    def up(self, before: Tensors, after: Tensors, down: Tensors, turn: Turn) -> Tensors:
        """Send both factors."""
        return dict(after)

    def advance(self, state: Tensors, replies: Sequence[Reply], turn: Turn) -> Tensors:
        """Average the products; the state's scale is the server's."""
        sent = [layers(reply.tensors) for reply in replies]
        weights = [share * reply.scale / turn.scale for share, reply in zip(shares(replies), replies, strict=True)]
        return join(
            {
                layer: truncated_svd(
                    stack((weight, own[layer]) for weight, own in zip(weights, sent, strict=True)), turn.rank
                )
                for layer in layers(state)
            }
        )
