"""FFA-LoRA: freeze A, the same for all; average B (Sun et al., arXiv 2403.12313).

    Σ pᵢ BᵢA = (Σ pᵢ Bᵢ) A    exactly

Half of what FedIT sends, and noise that privacy adds to B is not multiplied by noise in A. A is drawn from the plan's
seed, so that it is the same on all devices; it travels down with B, since a device may be new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from florilegium.tensors import Tensors, add, subtract
from strategies.factors import split
from strategies.rule import Duty, Linear, Turn

__all__ = ["FFA"]


@dataclass(frozen=True, slots=True)
class FFA(Linear):
    """Average B beside a common A."""

    name: ClassVar[str] = "ffa"

    def sums_updates(self, turn: Turn) -> bool:
        """They are updates."""
        return True

    def duty(self, turn: Turn) -> Duty:
        """Train B."""
        return Duty(part="B")

    def up(self, before: Tensors, after: Tensors, down: Tensors, turn: Turn) -> Tensors:
        """Send what B has changed by."""
        return subtract(split(after, "B"), split(before, "B"))

    def advance(self, state: Tensors, mean: Tensors, turn: Turn) -> Tensors:
        """Add the mean update of B."""
        return state | add(split(state, "B"), mean)
