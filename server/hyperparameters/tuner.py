"""Tuner: how a server chooses the hyperparameters that it asks of each device, and learns from how that went.

A tuner is a frozen value with pure functions of named tensors, which a server keeps beside what the fleet shares.

    server   draw(state, round, device)            → what one device is asked; it clamps that to its own bounds
    device   improvement                           → one number in [−1, 1]
    either   feedback(drawn, improvement)          → one device's contribution, a tensor
    server   advance(state, Σ feedback)            → the next state

`advance` takes a sum and nothing else. So the order of devices does not matter, and one Gaussian of standard deviation
z · `sensitivity` on the sum makes it private.

A draw counts as drawn, not as clamped: what a device's bounds make of it is part of how that configuration does in this
fleet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from florilegium.tensors import Tensors

__all__ = ["Tuner"]


class Tuner(Protocol):
    """Choose hyperparameters."""

    @property
    def sensitivity(self) -> float:
        """How far one device, there or not, moves the summed feedback, in L2; 0 if none is to be asked for."""
        ...

    def start(self) -> Tensors:
        """Return the state before the first round; empty if there is nothing to learn."""
        ...

    def draw(self, state: Mapping[str, Tensor], *, server_round: int, device: int, seed: int) -> dict[str, float]:
        """Return what one device is asked in a round, by name; a function of these arguments alone.

        Args:
            state: the tuner's.
            server_round: from 1.
            device: who is asked.
            seed: the run's.
        """
        ...

    def feedback(self, drawn: Mapping[str, float], improvement: float) -> Tensor:
        """Return what one device adds to the sum.

        Args:
            drawn: as `draw` gave it, before any clamping.
            improvement: as `strategies.hyperparameters.improvement` gives it; rounded and bounded again here.

        Raises:
            InputError: `drawn` is none of this tuner's draws, or the improvement is not finite.
        """
        ...

    def advance(self, state: Mapping[str, Tensor], summed_feedback: Tensor) -> Tensors:
        """Return the next state; a sum of zeros changes nothing.

        Raises:
            InputError: the sum has another shape than a device's feedback, or is not finite.
        """
        ...
