"""What a server's optimizer is: it turns the mean update Δ of a round into a change of the shared state.

    (moments, Δ) → (moments′, change)        state ← state + change

Δ is new − old, where devices went, so it has the sign of a step and not of a gradient: changes are added.

Moments are one flat set of named tensors ("mean/<key>"), so that a checkpoint stores them as it stores an adapter. They
are made from the keys of the *state*: in a round that trains only some tensors (alternating halves), the others get
zero deltas from `fill_frozen`, and an update that lacks keys is refused. A frozen tensor then coasts: its moments decay
and what is left of its first moment still moves it. A plan in which it must rest leaves its part of the change out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from florilegium.errors import ConfigError, InputError
from florilegium.tensors import Tensors, is_finite, require_alike

__all__ = [
    "Moments",
    "ServerOptimizer",
    "fill_frozen",
    "join_moments",
    "pick_moment",
    "require_decay",
    "require_finite",
    "require_positive",
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


def fill_frozen(update: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensors:
    """Return an update with the keys of `like`: zeros for those that were frozen in this round.

    Raises:
        InputError: the update has a key that `like` has not, or a tensor of another shape.
    """
    filled = {key: update[key] if key in update else torch.zeros_like(tensor) for key, tensor in like.items()}
    require_alike({**filled, **update}, like)
    return filled


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
