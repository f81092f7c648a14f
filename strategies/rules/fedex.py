"""FedEx-LoRA: average both factors and fold what that misses into the base (Singhal et al., arXiv 2410.09432).

    W ← W + s (Σ pᵢ BᵢAᵢ − B̄Ā),  then Ā, B̄ as in FedIT: the sum is exact

The residual of all rounds travels down whole, `(outputs, inputs)` a layer, because a device may have missed any of
them; it stays beside the base weights, which on a quantized base could not take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from florilegium.tensors import Tensors, add, mean
from strategies.factors import layers
from strategies.residual import attach, detach, residual_of, zero_residual
from strategies.rule import Individual, Loaded, Reply, Turn, shares

__all__ = ["FedEx"]


@dataclass(frozen=True, slots=True)
class FedEx(Individual):
    """Average both factors, exactly."""

    name: ClassVar[str] = "fedex"

    def start(self, adapter: Tensors, turn: Turn) -> Tensors:
        """Hold the factors and a residual of zero."""
        return attach(adapter, zero_residual(adapter))

    def load(self, down: Tensors, kept: Tensors, turn: Turn) -> Loaded:
        """Put the factors in place, and the residual under them."""
        return Loaded(adapter=detach(down), residual=residual_of(down))

    def advance(self, state: Tensors, replies: Sequence[Reply], turn: Turn) -> Tensors:
        """Average the factors, and add to the residual what their product misses."""
        before = detach(state)
        change = mean((share, reply.tensors) for share, reply in zip(shares(replies), replies, strict=True))
        after = add(before, change)
        averaged, residual = layers(after), residual_of(state)
        for share, reply in zip(shares(replies), replies, strict=True):
            for layer, own in layers(add(before, reply.tensors)).items():
                residual[layer] = residual[layer] + (share * reply.scale) * own.product()
        return attach(
            after, {layer: tensor - turn.scale * averaged[layer].product() for layer, tensor in residual.items()}
        )
