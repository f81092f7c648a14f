"""One byte a number: each tensor as whole multiples of its own step (error feedback: arXiv 1901.09847).

    step = max|x| / 127        q = round(x / step) ∈ [−127, 127]        decoded = step · q

Symmetric, so that zero stays zero. Every device has its own steps, so payloads cannot be summed: they are decoded reply
by reply. "nearest" rounds with the smaller error, which is biased: error feedback mends that. "stochastic" rounds up
with the probability of the rest and is right in the mean even without feedback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors
from strategies.codecs.codec import PayloadShapes, Shapes, require_finite

__all__ = ["Int8"]

_LARGEST: Final = 127
_STEP: Final = "/step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8:
    """Send "<key>" as int8 and "<key>/step" as one float32.

    Attributes:
        rounding: "nearest" or "stochastic".

    Raises:
        ConfigError: the rounding is neither.
    """

    is_linear: ClassVar[bool] = False

    rounding: Literal["nearest", "stochastic"] = "nearest"

    def __post_init__(self) -> None:
        if self.rounding not in ("nearest", "stochastic"):
            raise ConfigError(
                f"rounding must be nearest or stochastic, got {self.rounding!r}", "nearest is the default"
            )

    def agree(self, shapes: Shapes, *, seed: int, change: Mapping[str, Tensor] | None) -> Tensors:
        """Return nothing: every device chooses its own steps."""
        del shapes, seed, change
        return {}

    def declared(self, shapes: Shapes) -> PayloadShapes:
        """Return the update's own shapes as int8, and for each a step."""
        numbers = {key: (tuple(shape), torch.int8) for key, shape in shapes.items()}
        return numbers | {key + _STEP: ((), torch.float32) for key in shapes}

    def encode(
        self, total: Mapping[str, Tensor], *, agreement: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensors:
        """Return whole numbers and their steps."""
        del agreement
        require_finite(total)
        payload: Tensors = {}
        for key, tensor in total.items():
            step = tensor.float().abs().max() / _LARGEST
            payload[key] = self._round(tensor.float() / step if step > 0 else torch.zeros_like(tensor), generator)
            payload[key + _STEP] = step
        return payload

    def decode(self, payload: Mapping[str, Tensor], *, agreement: Mapping[str, Tensor], shapes: Shapes) -> Tensors:
        """Return step · q."""
        del agreement
        return {key: payload[key].float() * payload[key + _STEP] for key in shapes}

    def _round(self, multiples: Tensor, generator: torch.Generator) -> Tensor:
        if self.rounding == "stochastic":
            drawn = torch.rand(multiples.shape, generator=generator, device=generator.device)
            rounded = torch.floor(multiples + drawn.to(multiples.device))
        else:
            rounded = multiples.round()
        return rounded.clamp(-_LARGEST, _LARGEST).to(torch.int8)
