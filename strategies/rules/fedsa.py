"""FedSA-LoRA: train both factors, share A, keep B (Guo et al., arXiv 2410.01463).

    Ā = Σ pᵢ Aᵢ;  Bᵢ stays on device i

A tends to learn what devices have in common and B what is a device's own. A device that is new starts from B = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from florilegium.tensors import Tensors, add, subtract
from strategies.factors import split
from strategies.rule import Linear, Loaded, Turn

__all__ = ["FedSA"]


@dataclass(frozen=True, slots=True)
class FedSA(Linear):
    """Average A beside every device's own B."""

    name: ClassVar[str] = "fedsa"

    def sums_updates(self, turn: Turn) -> bool:
        """They are updates."""
        return True

    def load(self, down: Tensors, kept: Tensors, turn: Turn) -> Loaded:
        """Put the device's own B beside the common A; the B that travels down is the zeros of the start."""
        return Loaded(adapter=down | split(kept, "B"))

    def up(self, before: Tensors, after: Tensors, down: Tensors, turn: Turn) -> Tensors:
        """Send what A has changed by."""
        return subtract(split(after, "A"), split(before, "A"))

    def keep(self, after: Tensors, turn: Turn) -> Tensors:
        """Keep B."""
        return split(after, "B")

    def advance(self, state: Tensors, mean: Tensors, turn: Turn) -> Tensors:
        """Add the mean update of A."""
        return state | add(split(state, "A"), mean)
