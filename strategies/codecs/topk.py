"""A few coordinates of each tensor, the same for all devices of a round (error feedback: arXiv 1901.09847).

    payload = x[mask]        decoded = zeros, with the payload at the mask

With one mask for all, the sum of payloads is the payload of the sum: linear, and as small. The server chooses the mask:
of the k coordinates, most are those in which the last change was largest, and a share `fresh` is drawn anew, as are all
of them in the first round. Deviation: top-k chooses on the device, by its own update, and each would send another
mask. Without the fresh ones the mask could never change: what is not sent does not move, and what does not move is not
among the largest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from florilegium.errors import InputError
from florilegium.tensors import Tensors
from strategies.codecs.codec import PayloadShapes, Shapes, require_finite, require_share, shared_count

__all__ = ["TopK"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """Send a share of the coordinates; the agreement holds their places in the flat tensor, rising, (k,) int64.

    Attributes:
        share: of each tensor's coordinates, at least one.
        fresh: share of those that are drawn anew in each round.

    Raises:
        ConfigError: a value is not > 0 and <= 1.
    """

    is_linear: ClassVar[bool] = True

    share: float = 0.1
    fresh: float = 0.5

    def __post_init__(self) -> None:
        for name in ("share", "fresh"):
            require_share(name, getattr(self, name))

    def agree(self, shapes: Shapes, *, seed: int, change: Mapping[str, Tensor] | None) -> Tensors:
        """Return the mask of each tensor."""
        known = {} if change is None else change
        require_finite(known)
        generator = torch.Generator().manual_seed(seed)
        return {key: self._mask(shapes[key], known.get(key), generator) for key in sorted(shapes)}

    def declared(self, shapes: Shapes) -> PayloadShapes:
        """Return k numbers for each tensor, float32."""
        return {key: ((shared_count(self.share, shape),), torch.float32) for key, shape in shapes.items()}

    def encode(
        self, total: Mapping[str, Tensor], *, agreement: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensors:
        """Return the coordinates of the mask."""
        del generator
        require_finite(total)
        return {
            key: tensor.float().flatten()[self._checked(agreement, key, tuple(tensor.shape))]
            for key, tensor in total.items()
        }

    def decode(self, payload: Mapping[str, Tensor], *, agreement: Mapping[str, Tensor], shapes: Shapes) -> Tensors:
        """Return zeros with the payload at the mask."""
        decoded: Tensors = {}
        for key, shape in shapes.items():
            flat = payload[key].new_zeros(math.prod(shape))
            flat[self._checked(agreement, key, shape)] = payload[key]
            decoded[key] = flat.reshape(shape)
        return decoded

    def _mask(self, shape: tuple[int, ...], change: Tensor | None, generator: torch.Generator) -> Tensor:
        count = shared_count(self.share, shape)
        rank = torch.rand(math.prod(shape), generator=generator, dtype=torch.float64)
        if change is not None:
            size = change.detach().cpu().flatten().abs()
            largest = size.argsort(descending=True, stable=True)[: count - math.ceil(self.fresh * count)]
            rank[largest[size[largest] > 0]] = math.inf
        return rank.topk(count).indices.sort().values

    def _checked(self, agreement: Mapping[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor's mask; one with a place twice or outside would send other numbers than were declared."""
        mask = agreement.get(key)
        count = shared_count(self.share, shape)
        if mask is None or mask.dtype != torch.int64 or tuple(mask.shape) != (count,):
            raise InputError(f"the mask of {key!r} must be {count} places, int64", "use the round's own agreement")
        if mask[0] < 0 or mask[-1] >= math.prod(shape) or not bool((mask.diff() > 0).all()):
            raise InputError(f"the mask of {key!r} does not rise within the tensor", "use the round's own agreement")
        return mask
