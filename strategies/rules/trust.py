"""Trust: each device receives its own mixture of the others, weighted by similarity (Wagner et al., COLM 2024).

    θᵢ ← Σⱼ wᵢⱼ θⱼ,  wᵢ = softmax over j of cos(Δᵢ, Δⱼ) / temperature,  Δⱼ = θⱼ − θ₀

Of the paper's three measures of trust this is the one of weights, which needs no common data. The server keeps the last
adapter of every device that has answered, so its state grows with the fleet: meant for fleets of up to some hundreds.
A device that is unknown receives the plain mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors, mean
from strategies.rule import Individual, Loaded, Reply, Turn

__all__ = ["Trust"]

_MARK = "@"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust(Individual):
    """Mix adapters by the similarity of their updates.

    Attributes:
        temperature: of the softmax; low trusts the most similar alone, high trusts all alike.

    Raises:
        ConfigError: the temperature is not above 0.
    """

    name: ClassVar[str] = "trust"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"the temperature must be > 0, got {self.temperature}", "0.1 is a good start")

    def down(self, state: Tensors, turn: Turn) -> Tensors:
        """Send a device's own mixture."""
        origin, known = _read(state)
        if not known:
            return origin
        if turn.device not in known:
            return mean((1.0, adapter) for adapter in known.values())
        own = _direction(known[turn.device], origin)
        likeness = torch.stack(
            [torch.dot(own, _direction(adapter, origin)) / self.temperature for adapter in known.values()]
        )
        weights = torch.softmax(likeness, 0).tolist()
        return mean(zip(weights, known.values(), strict=True))

    def load(self, down: Tensors, kept: Tensors, turn: Turn) -> Loaded:
        """Start from the mixture."""
        return Loaded(adapter=down)

    def up(self, before: Tensors, after: Tensors, down: Tensors, turn: Turn) -> Tensors:
        """Send the adapter."""
        return dict(after)

    def advance(self, state: Tensors, replies: Sequence[Reply], turn: Turn) -> Tensors:
        """Remember every reply under its device."""
        known = {
            f"{_MARK}{reply.device}{_MARK}{key}": value for reply in replies for key, value in reply.tensors.items()
        }
        return state | known


def _read(state: Tensors) -> tuple[Tensors, dict[int, Tensors]]:
    """Return where all started, and every known device's adapter, by device so that no order is left."""
    origin = {key: tensor for key, tensor in state.items() if not key.startswith(_MARK)}
    known: dict[int, Tensors] = {}
    for key, tensor in state.items():
        if key.startswith(_MARK):
            _, device, name = key.split(_MARK, 2)
            known.setdefault(int(device), {})[name] = tensor
    return origin, dict(sorted(known.items()))


def _direction(adapter: Tensors, origin: Tensors) -> Tensor:
    flat = torch.cat([(adapter[key] - origin[key]).reshape(-1) for key in sorted(origin)])
    unit: Tensor = flat / flat.norm().clamp(min=1e-12)
    return unit
