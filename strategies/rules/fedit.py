"""FedIT: average both factors (Zhang et al., arXiv 2305.05644).

    Ā = Σ pᵢ Aᵢ,  B̄ = Σ pᵢ Bᵢ

B̄Ā is not Σ pᵢ BᵢAᵢ: the error grows with how far devices drift apart in a round. The baseline of the field.
Ours: updates are averaged, not states, so that a device which missed rounds brings nothing old back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from florilegium.tensors import Tensors, add
from strategies.rule import Linear, Turn

__all__ = ["FedIT"]


@dataclass(frozen=True, slots=True)
class FedIT(Linear):
    """Average both factors."""

    name: ClassVar[str] = "fedit"

    def sums_updates(self, turn: Turn) -> bool:
        """They are updates."""
        return True

    def advance(self, state: Tensors, mean: Tensors, turn: Turn) -> Tensors:
        """Add the mean update."""
        return add(state, mean)
