"""What a server's optimizer is: it turns the mean update Δ of a round into a change of the shared state.

    (moments, Δ) → (moments′, change)        state ← state + change

Δ is new − old, where devices went, so it has the sign of a step and not of a gradient: changes are added.

Moments are one flat set of named tensors ("mean/<key>"), so that a checkpoint stores them as it stores an adapter. In a
round that trains only some tensors (alternating halves), `step_part` moves these alone and lets the moments of the
others rest: with zero deltas for them, what is left of their first moments would go on moving them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, TypeAlias

from torch import Tensor

from florilegium.errors import ConfigError, InputError
from florilegium.tensors import Tensors, is_finite

__all__ = [
    "Moments",
    "ServerOptimizer",
    "join_moments",
    "pick_moment",
    "require_decay",
    "require_finite",
    "require_positive",
    "step_part",
]

Moments: TypeAlias = Tensors


class ServerOptimizer(Protocol):
    """A frozen config with two pure functions; all that must outlive a restart is in the moments."""

    @property
    def learning_rate(self) -> float:
        """The server's learning rate."""

    def start(self, like: Mapping[str, Tensor]) -> Moments:
        """Return the moments before the first round of a state with these keys and shapes."""

    def step(self, moments: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> tuple[Moments, Tensors]:
        """Return the next moments, and the change to add to the state, of the keys and shapes of `update`.

        Raises:
            InputError: the update is not finite, or differs from the moments in keys or shapes.
        """


def step_part(
    optimizer: ServerOptimizer, moments: Mapping[str, Tensor], update: Mapping[str, Tensor]
) -> tuple[Moments, Tensors]:
    """Step the tensors of an update; those of others rest, and those that are new begin.

    Returns:
        The moments of all tensors so far, and the change, of the keys and shapes of `update`.

    Raises:
        InputError: the update is not finite, or a tensor of it has another shape than its moments.
    """
    known = {name: moment for name, moment in moments.items() if name.partition("/")[2] in update}
    stepped, change = optimizer.step(optimizer.start(update) | known, update)
    return dict(moments) | stepped, change


def join_moments(parts: Mapping[str, Mapping[str, Tensor]]) -> Moments:
    """Return several moments as one flat set of named tensors."""
    return {f"{part}/{key}": tensor for part, tensors in parts.items() for key, tensor in tensors.items()}


def pick_moment(moments: Mapping[str, Tensor], part: str) -> Tensors:
    """Return one of the moments that `join_moments` joined."""
    prefix = f"{part}/"
    return {key.removeprefix(prefix): tensor for key, tensor in moments.items() if key.startswith(prefix)}


def require_finite(update: Mapping[str, Tensor]) -> None:
    """Refuse an update with a NaN or an infinity: moments would carry it into every later round.

    Raises:
        InputError: it has one.
    """
    if not is_finite(update):
        raise InputError("the mean update is not finite", "leave out the replies that are not")


def require_positive(name: str, value: float) -> None:
    """Refuse a setting that is not a positive number."""
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} must be finite and > 0, got {value}", "leave it out for the default")


def require_decay(name: str, value: float) -> None:
    """Refuse a setting that is not a share of the past to keep."""
    if not 0 <= value < 1:
        raise ConfigError(f"{name} must be >= 0 and < 1, got {value}", "leave it out for the default")
