"""How much an update counts that was made from an old state: weights for buffered asynchronous rounds.

    constant 1        polynomial (1 + s)^−a        hinge 1 if s <= b, else 1 / (1 + a (s − b))

s, the staleness, is how many times the state has changed since the device took it. FedBuff (Nguyen et al., arXiv
2106.06639) uses the polynomial with a = ½; the family is FedAsync's (Xie et al., arXiv 1903.03934).

The buffer's change is Σ wᵢ Δᵢ / K for K updates. Divided by Σ wᵢ instead, a buffer in which all updates are equally
stale would move the state as far as a fresh one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from florilegium.errors import ConfigError, InputError
from florilegium.settings import build

__all__ = ["STALENESS_WEIGHTS", "Constant", "Hinge", "Polynomial", "StalenessWeight", "staleness_weight"]


class StalenessWeight(Protocol):
    """A frozen config that is called with a staleness."""

    def __call__(self, staleness: int) -> float:
        """Return the weight, from 1 for a fresh update down to more than 0; it never rises with staleness.

        Raises:
            InputError: the staleness is negative.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """Let every update count the same."""

    def __call__(self, staleness: int) -> float:
        """Return 1."""
        _require_staleness(staleness)
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Polynomial:
    """Let the weight fall from the first change on, ever more slowly.

    Attributes:
        exponent: a.

    Raises:
        ConfigError: it is negative or not finite.
    """

    exponent: float = 0.5

    def __post_init__(self) -> None:
        _require_not_negative("exponent", self.exponent)

    def __call__(self, staleness: int) -> float:
        """Return (1 + s)^−a.

        >>> Polynomial()(3)
        0.5
        """
        _require_staleness(staleness)
        return float((1 + staleness) ** -self.exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hinge:
    """Forgive some staleness, then let the weight fall.

    Attributes:
        slope: a.
        grace: b, up to which an update counts as fresh.

    Raises:
        ConfigError: one is negative or not finite.
    """

    slope: float = 1.0
    grace: int = 4

    def __post_init__(self) -> None:
        _require_not_negative("slope", self.slope)
        _require_not_negative("grace", self.grace)

    def __call__(self, staleness: int) -> float:
        """Return 1 while s <= b, then 1 / (1 + a (s − b))."""
        _require_staleness(staleness)
        return 1.0 / (1.0 + self.slope * max(0, staleness - self.grace))


STALENESS_WEIGHTS: Final[Mapping[str, type[StalenessWeight]]] = {
    "constant": Constant,
    "polynomial": Polynomial,
    "hinge": Hinge,
}


def staleness_weight(name: str, options: Mapping[str, float] | None = None) -> StalenessWeight:
    """Return a weight by its name.

    Args:
        name: of `STALENESS_WEIGHTS`.
        options: of that weight.

    Raises:
        ConfigError: an option is unknown or out of its range.
    """
    return build(STALENESS_WEIGHTS[name], options or {}, source=name)


def _require_staleness(staleness: int) -> None:
    if staleness < 0:
        raise InputError(f"staleness must be >= 0, got {staleness}", "an update cannot be newer than the state")


def _require_not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} must be finite and >= 0, got {value}", "leave it out for the default")
