"""A device's own bounds for what a server asks of its local training.

    value ← min(max(asked, lower), upper), rounded where it is a whole number

A value that is merely too high or too low is no fault: it is lowered or raised to what this device is willing to do. A
name that nobody agreed on, or something that is no number, is refused: then the server is not what it should be. So is
work whose reply would have more than 64 times the bytes of the device's adapter: but for sketch and fedkseed, whose
size is an option, no rule sends more than the adapter has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from pydantic import ValidationInfo, field_validator

from florilegium.errors import InputError
from florilegium.settings import Settings
from florilegium.tensors import Tensors
from strategies.hyperparameters import HYPERPARAMETERS

__all__ = ["LocalBounds", "clamp", "require_proportion"]

_LARGEST_REPLY: Final = 64  # adapters


class LocalBounds(Settings):
    """The least and the most of each hyperparameter that a device takes part with.

    The defaults let a small board take part in what is usual, and keep it from being worn out.

    Attributes:
        steps: optimizer steps of a round.
        learning_rate: of the optimizer.
        batch_size: rows of one step.
        rank: of the shared adapter.
        dropout: of the adapters' inputs.
        proximal: μ of the pull towards where the round started.
        synthesis_count: questions written for each annotated dialogue.
    """

    steps: tuple[int, int] = (1, 256)
    learning_rate: tuple[float, float] = (1e-6, 0.1)
    batch_size: tuple[int, int] = (1, 64)
    rank: tuple[int, int] = (1, 64)
    dropout: tuple[float, float] = (0.0, 0.5)
    proximal: tuple[float, float] = (0.0, 10.0)
    synthesis_count: tuple[int, int] = (0, 8)

    @field_validator("*", mode="after")
    @classmethod
    def _is_range(cls, bounds: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        limits = HYPERPARAMETERS[str(info.field_name)]
        if not limits.lower <= bounds[0] <= bounds[1] <= limits.upper:
            raise ValueError(f"must be two numbers from {limits.lower:g} to {limits.upper:g}, the lower one first")
        return bounds

    def of(self, name: str) -> tuple[float, float]:
        """Return the bounds of a hyperparameter."""
        bounds: tuple[float, float] = getattr(self, name)
        return bounds


def clamp(asked: Mapping[str, float], bounds: LocalBounds) -> dict[str, float]:
    """Return what the device does of what it was asked.

    Args:
        asked: values by name; what is not named stays as the device has it.
        bounds: the device's.

    Raises:
        InputError: a name is unknown, or a value is no finite number.
    """
    # The server's own words are not repeated: what it sent instead of a name may be anything.
    unknown = asked.keys() - HYPERPARAMETERS.keys()
    if unknown:
        raise InputError(
            f"{len(unknown)} of the hyperparameters asked for are unknown", f"known: {', '.join(HYPERPARAMETERS)}"
        )
    return {name: _clamp(name, value, *bounds.of(name)) for name, value in asked.items()}


def require_proportion(reply_bytes: int, adapter: Tensors) -> None:
    """Refuse a reply that is out of proportion to the device's adapter.

    Args:
        reply_bytes: what the reply would have.
        adapter: of the device.

    Raises:
        InputError: it would be more than 64 times as large.
    """
    most = _LARGEST_REPLY * sum(tensor.numel() * tensor.element_size() for tensor in adapter.values())
    if reply_bytes > most:
        raise InputError(
            f"the reply asked for would have {reply_bytes} bytes, at most {most} may leave this device",
            "ask for a narrower sketch or fewer seeds",
        )


def _clamp(name: str, value: object, lower: float, upper: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # A whole number may be too large for a float; it is finite all the same.
    if not number or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"the {name} asked for is no finite number", "ask for one, or leave it out")
    assert isinstance(value, int | float)
    return HYPERPARAMETERS[name].rounded(float(min(max(value, lower), upper)))
