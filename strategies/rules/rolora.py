"""RoLoRA: rounds alternate between the factors (Chen et al., arXiv 2502.01755).

    odd rounds train and average B beside a common A, even rounds A beside a common B

Every round is exact as in FFA-LoRA, and A is learned as well. Both factors travel down, since a device may have missed
a round; one travels up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from florilegium.tensors import Tensors, add, subtract
from strategies.factors import split
from strategies.rule import Duty, Linear, Turn

__all__ = ["RoLoRA"]


@dataclass(frozen=True, slots=True)
class RoLoRA(Linear):
    """Average one factor a round, in turn."""

    name: ClassVar[str] = "rolora"

    def sums_updates(self, turn: Turn) -> bool:
        """They are updates."""
        return True

    def duty(self, turn: Turn) -> Duty:
        """Train B first: while it is zero, A has no gradient."""
        return Duty(part=_factor(turn))

    def up(self, before: Tensors, after: Tensors, down: Tensors, turn: Turn) -> Tensors:
        """Send what the round's factor has changed by."""
        return subtract(split(after, _factor(turn)), split(before, _factor(turn)))

    def advance(self, state: Tensors, mean: Tensors, turn: Turn) -> Tensors:
        """Add the mean update of the round's factor."""
        return state | add(split(state, _factor(turn)), mean)


def _factor(turn: Turn) -> Literal["A", "B"]:
    return "B" if turn.round % 2 else "A"
