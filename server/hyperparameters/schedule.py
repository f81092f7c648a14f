"""Schedule: hyperparameters that move from a first value to a last one as the rounds go by.

    t = (round − 1) / (rounds − 1), at most 1
    linear    (1 − t) first + t last
    cosine    (1 − w) first + w last,  w = ½ (1 − cos πt)
    step      at share k / (n − 1) on the hyperparameter's own scale,  k = ⌊(round − 1) / every⌋,  n = ⌈rounds / every⌉

What has no last value stays at its first. On a log scale, as a learning rate's, `step` is decay by a constant factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from florilegium.errors import ConfigError, InputError
from florilegium.tensors import Tensors
from strategies.hyperparameters import HYPERPARAMETERS, require_values

__all__ = ["Schedule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Follow the round's number and learn nothing.

    Attributes:
        first: values of the first round by name; what is not named is as the run's settings say.
        last: values of round `rounds` and of all after it, for some or all that have a first.
        curve: how they get from one to the other.
        rounds: how long that takes.
        every: rounds that a step lasts; the other curves move in every round.

    Raises:
        ConfigError: a name is unknown, a value is out of its limits, a last value has no first, or there is no time to
            move.
    """

    first: Mapping[str, float]
    last: Mapping[str, float] = field(default_factory=dict)
    curve: Literal["linear", "cosine", "step"] = "cosine"
    rounds: int = 10
    every: int = 1

    def __post_init__(self) -> None:
        if self.curve not in ("linear", "cosine", "step"):
            raise ConfigError(f"no curve {self.curve!r}", "use 'linear', 'cosine' or 'step'")
        if self.rounds < 2:
            raise ConfigError(f"rounds must be >= 2, got {self.rounds}", "for one round, choose fixed")
        if not 1 <= self.every < self.rounds:
            raise ConfigError(
                f"every must be from 1 to {self.rounds - 1}, got {self.every}", "a step is shorter than all rounds"
            )
        for name in ("first", "last"):
            values: Mapping[str, float] = getattr(self, name)
            require_values(values)
            # A frozen value must not change with the mapping it was made from.
            object.__setattr__(self, name, MappingProxyType(dict(values)))
        for name in self.last:
            if name not in self.first:
                raise ConfigError(f"{name} has a last value and no first", "give both, or the first alone")

    @property
    def sensitivity(self) -> float:
        """Return 0: nothing is asked for."""
        return 0.0

    def start(self) -> Tensors:
        """Return nothing."""
        return {}

    def draw(self, state: Mapping[str, Tensor], *, server_round: int, device: int, seed: int) -> dict[str, float]:
        """Return the values of the round.

        Raises:
            InputError: the round is below 1.
        """
        del state, device, seed
        if server_round < 1:
            raise InputError(f"there is no round {server_round}", "count rounds from 1")
        return {name: self._value(name, server_round) for name in self.first}

    def feedback(self, drawn: Mapping[str, float], improvement: float) -> Tensor:
        """Return nothing, (0,)."""
        del drawn, improvement
        return torch.zeros(0, dtype=torch.float64)

    def advance(self, state: Mapping[str, Tensor], summed_feedback: Tensor) -> Tensors:
        """Return the state."""
        del summed_feedback
        return dict(state)

    def _value(self, name: str, server_round: int) -> float:
        limits, first = HYPERPARAMETERS[name], self.first[name]
        last = self.last.get(name, first)
        if self.curve == "step":
            return limits.rounded(limits.between(first, last, self._level(server_round)))
        share = min(1.0, (server_round - 1) / (self.rounds - 1))
        if self.curve == "cosine":
            share = 0.5 * (1.0 - math.cos(math.pi * share))
        value = (1.0 - share) * first + share * last
        return limits.rounded(min(max(value, min(first, last)), max(first, last)))

    def _level(self, server_round: int) -> float:
        levels = math.ceil(self.rounds / self.every)
        return min((server_round - 1) // self.every, levels - 1) / (levels - 1)
