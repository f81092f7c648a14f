"""Directions: K random vectors in an adapter's B, drawn alike by all from seeds, and how far one has gone along each.

    θ = θ₀ − Σ sₖ zₖ      zₖ ~ N(0, I), drawn from the plan's seed and k;  θ₀: A drawn from the plan's seed, B zero

Whoever knows the K numbers s knows θ, to the rounding of his processor. Of the vectors one at a time is in memory; a
replay costs one draw of B's size for each sₖ that is not zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from florilegium.tensors import Tensors
from strategies.draws import fresh_factors, seed_of
from strategies.factors import join, layers, split
from strategies.rule import Turn

__all__ = ["SCALARS", "Directions"]

SCALARS: Final = "scalars"


@dataclass(frozen=True, slots=True, kw_only=True)
class Directions:
    """Where an adapter is, in K numbers.

    Attributes:
        seed: the plan's.
        scalars: s, `(K,)` float32.
        epsilon: ε, how far to both sides along a direction the loss is measured.
    """

    seed: int
    scalars: Tensor = field(repr=False)
    epsilon: float

    def along(self, number: int, like: Tensors) -> Tensors:
        """Return zₖ, shaped as B of the adapter `like`."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, "direction", number))
        # Sorted, because the order of a state's keys is not the same everywhere.
        return {key: torch.randn(tensor.shape, generator=generator) for key, tensor in sorted(split(like, "B").items())}

    def adapter(self, like: Tensors) -> Tensors:
        """Return θ, shaped as the adapter `like`."""
        pairs = layers(like)
        shapes = {layer: (int(pair.b.shape[0]), int(pair.a.shape[1])) for layer, pair in pairs.items()}
        rank = next(iter(pairs.values())).rank
        found = join(fresh_factors(shapes, Turn(round=0, rank=rank, scale=1.0, seed=self.seed)))
        for number in self.scalars.nonzero()[:, 0].tolist():
            for key, direction in self.along(number, like).items():
                found[key].sub_(direction, alpha=float(self.scalars[number]))
        return found
