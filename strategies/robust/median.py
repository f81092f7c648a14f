"""Coordinate-wise median: each coordinate goes to the middle of where devices pull it (Yin et al., arXiv 1803.01498).

    merged_j = median(update_1j … update_nj)        the mean of the two middle values where n is even

Fewer than half of the devices cannot move a coordinate out of the range of the others' values. The price: a coordinate
that most devices leave alone stays, whatever a minority of honest devices learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from florilegium.tensors import Tensors
from strategies.robust.rule import require_individuals, stack

__all__ = ["Median"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    """Take the middle of each coordinate; weights are not used."""

    uses_weights: ClassVar[bool] = False

    @property
    def minimum(self) -> int:
        """Three: among two, one is as much in the middle as the other."""
        return 3

    def __call__(self, updates: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
        """Return the median of each coordinate; weights are not used."""
        require_individuals(updates, weights, minimum=self.minimum)
        return {key: _median(rows) for key, rows in stack(updates).items()}


def _median(rows: Tensor) -> Tensor:
    """Return the median over the first dimension; torch's own takes the lower of two middle values."""
    ordered = rows.sort(dim=0).values
    lower, upper = ordered[(len(rows) - 1) // 2], ordered[len(rows) // 2]
    return lower + (upper - lower) / 2
