"""Hyperparameters that a server may ask of local training, by fixed names, and what a device says of how that went.

    improvement = min(max((loss before − loss after) / unit, −1), 1), in steps of 2⁻⁸

A name that is not here is nobody's: a server cannot ask for it, and a device refuses it. The limits here are those of
what makes sense at all; a device's own are narrower (`client/bounds.py`). `epochs` is not among the names, since a
round is counted in steps.

An improvement is a release: it is bounded and lies on a grid, so that it can be declared, summed without rounding, and
noised.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from florilegium.errors import ConfigError
from privacy.egress import Bounds

__all__ = [
    "HYPERPARAMETERS",
    "IMPROVEMENT",
    "IMPROVEMENT_BOUNDS",
    "Hyperparameter",
    "hyperparameter",
    "improvement",
    "require_values",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameter:
    """What values of one hyperparameter make sense.

    Attributes:
        kind: "int" for whole numbers.
        scale: "log" where ratios matter and not differences.
        lower: least value.
        upper: greatest value.
        default: what a server asks for if nothing is said.

    Raises:
        ConfigError: the numbers do not go together.
    """

    kind: Literal["int", "float"]
    scale: Literal["linear", "log"]
    lower: float
    upper: float
    default: float

    def __post_init__(self) -> None:
        if not (-math.inf < self.lower < self.upper < math.inf):
            raise ConfigError(
                f"limits must be finite with lower < upper, got {self.lower} and {self.upper}", "give a range"
            )
        if self.scale == "log" and self.lower <= 0:
            raise ConfigError(f"a log scale needs limits > 0, got {self.lower}", "use a linear one")
        for name in ("lower", "upper", "default"):
            if not self.allows(getattr(self, name)):
                raise ConfigError(f"{name} = {getattr(self, name)} is no value of its own", "give one within limits")

    def allows(self, value: float) -> bool:
        """Whether `value` is within the limits, and whole where it has to be."""
        return self.lower <= value <= self.upper and self.rounded(value) == value

    def rounded(self, value: float) -> float:
        """Return the nearest whole number where it has to be one, else the value."""
        return float(round(value)) if self.kind == "int" else value

    def between(self, start: float, end: float, share: float) -> float:
        """Return what lies `share` of the way from `start` to `end`, on this scale and not rounded.

        >>> round(HYPERPARAMETERS["learning_rate"].between(1e-4, 1e-2, 0.5), 6)
        0.001
        """
        if self.scale == "log":
            return _within(start * math.pow(end / start, share), start, end)
        return _within((1.0 - share) * start + share * end, start, end)


HYPERPARAMETERS: Final[Mapping[str, Hyperparameter]] = {
    # Optimizer steps of a round, shared and personal together.
    "steps": Hyperparameter(kind="int", scale="log", lower=1, upper=10_000, default=8),
    "learning_rate": Hyperparameter(kind="float", scale="log", lower=1e-7, upper=1.0, default=2e-3),
    # Rows of one step.
    "batch_size": Hyperparameter(kind="int", scale="log", lower=1, upper=1024, default=8),
    # Of the shared adapter, where the rule takes mixed ranks.
    "rank": Hyperparameter(kind="int", scale="log", lower=1, upper=512, default=8),
    "dropout": Hyperparameter(kind="float", scale="linear", lower=0.0, upper=0.9, default=0.05),
    # μ of the pull towards where the round started.
    "proximal": Hyperparameter(kind="float", scale="linear", lower=0.0, upper=100.0, default=0.0),
    # Questions written for each annotated dialogue.
    "synthesis_count": Hyperparameter(kind="int", scale="linear", lower=0, upper=16, default=3),
}

IMPROVEMENT: Final = "improvement"
IMPROVEMENT_BOUNDS: Final = Bounds(lower=-1.0, upper=1.0, step=2.0**-8)


def _within(value: float, one: float, other: float) -> float:
    return min(max(value, min(one, other)), max(one, other))


def hyperparameter(name: str) -> Hyperparameter:
    """Return the hyperparameter of that name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name not in HYPERPARAMETERS:
        nearest = difflib.get_close_matches(name, HYPERPARAMETERS, n=1, cutoff=0.0)[0]
        known = ", ".join(HYPERPARAMETERS)
        raise ConfigError(f"no hyperparameter {name!r}", f"did you mean {nearest!r}? known: {known}")
    return HYPERPARAMETERS[name]


def require_values(values: Mapping[str, float]) -> None:
    """Refuse values that no device could take as they are.

    Raises:
        ConfigError: a name is unknown, or a value is out of its limits or not whole.
    """
    for name, value in values.items():
        limits = hyperparameter(name)
        if not limits.allows(value):
            kind = "a whole number" if limits.kind == "int" else "a number"
            raise ConfigError(
                f"{name} must be {kind} from {limits.lower:g} to {limits.upper:g}, got {value}",
                f"{limits.default:g} is a good start",
            )


def improvement(before: float, after: float, *, unit: float = 1.0) -> float:
    """Return how much better a device does after its local work, as it may be released.

    Args:
        before: loss on the device's held-out dialogues with what it received, nats per token.
        after: the same with what it trained.
        unit: a gain of so many nats counts as 1; the smaller, the less noise drowns, and the sooner gains look alike.

    Returns:
        A step of `IMPROVEMENT_BOUNDS`; −1 if the loss is not finite any more, 1 if it only now is.

    Raises:
        ConfigError: `unit` is not a positive number.

    >>> improvement(3.0, 2.5)
    0.5
    """
    if not 0 < unit < math.inf:
        raise ConfigError(f"unit must be finite and > 0, got {unit}", "1 nat is a good start")
    if not math.isfinite(after):
        return IMPROVEMENT_BOUNDS.lower
    if not math.isfinite(before):
        return IMPROVEMENT_BOUNDS.upper
    return IMPROVEMENT_BOUNDS.quantize((before - after) / unit)
