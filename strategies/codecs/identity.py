"""No compression: the update as float32.

payload = x
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from florilegium.tensors import Tensors
from strategies.codecs.codec import PayloadShapes, Shapes, require_finite

__all__ = ["Identity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Send the update as it is."""

    is_linear: ClassVar[bool] = True

    def agree(self, shapes: Shapes, *, seed: int, change: Mapping[str, Tensor] | None) -> Tensors:
        """Return nothing: there is nothing to agree on."""
        del shapes, seed, change
        return {}

    def declared(self, shapes: Shapes) -> PayloadShapes:
        """Return the update's own shapes, float32."""
        return {key: (tuple(shape), torch.float32) for key, shape in shapes.items()}

    def encode(
        self, total: Mapping[str, Tensor], *, agreement: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensors:
        """Return the update as float32."""
        del agreement, generator
        require_finite(total)
        return {key: tensor.float() for key, tensor in total.items()}

    def decode(self, payload: Mapping[str, Tensor], *, agreement: Mapping[str, Tensor], shapes: Shapes) -> Tensors:
        """Return the payload."""
        del agreement, shapes
        return dict(payload)
