"""FLoRA: stack the devices' factors, fold their product into the base and start afresh (Wang et al., arXiv 2409.05976).

    W ← W + Σ pᵢ sᵢ BᵢAᵢ,  the product of the stacks [p₁s₁B₁ … p_Ks_KB_K] and [A₁; …; A_K]: exact, for any ranks

Every round starts from B = 0 and an A drawn from the plan's seed and the round. Ours: what travels down is the sum of
all rounds, `(outputs, inputs)` a layer, not the last round's stack, because a device may have missed any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from florilegium.tensors import Tensors
from strategies.draws import fresh_factors
from strategies.factors import join, layers
from strategies.residual import attach, residual_of, zero_residual
from strategies.rule import Individual, Loaded, Reply, Turn, shares

__all__ = ["FLoRA"]


@dataclass(frozen=True, slots=True)
class FLoRA(Individual):
    """Fold the exact sum of the devices' products into the base."""

    name: ClassVar[str] = "flora"
    mixed_ranks: ClassVar[bool] = True
    starts_afresh: ClassVar[bool] = True

    def start(self, adapter: Tensors, turn: Turn) -> Tensors:
        """Hold a residual of zero."""
        return attach({}, zero_residual(adapter))

    def load(self, down: Tensors, kept: Tensors, turn: Turn) -> Loaded:
        """Start a fresh adapter on top of the residual."""
        residual = residual_of(down)
        shapes = {layer: (int(tensor.shape[0]), int(tensor.shape[1])) for layer, tensor in residual.items()}
        return Loaded(adapter=join(fresh_factors(shapes, turn)), residual=residual)

    def up(self, before: Tensors, after: Tensors, down: Tensors, turn: Turn) -> Tensors:
        """Send both factors."""
        return dict(after)

    def advance(self, state: Tensors, replies: Sequence[Reply], turn: Turn) -> Tensors:
        """Add the weighted products."""
        residual = residual_of(state)
        for share, reply in zip(shares(replies), replies, strict=True):
            for layer, own in layers(reply.tensors).items():
                residual[layer] = residual[layer] + (share * reply.scale) * own.product()
        return attach({}, residual)
