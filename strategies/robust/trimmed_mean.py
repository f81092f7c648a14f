"""Coordinate-wise trimmed mean: the mean without the extremes of each coordinate (Yin et al., arXiv 1803.01498).

    merged_j = mean of update_(k+1)j … update_(n−k)j in order of size,  k = ⌊share · n⌋

Up to k hostile devices cannot move a coordinate out of the range of the others' values. It uses more of what honest
devices say than the median does, and withstands fewer hostile ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from torch import Tensor

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors
from strategies.robust.rule import require_individuals, stack

__all__ = ["TrimmedMean"]

# 0.29 · 100 is a little less than 29 in floating point, and 29 is meant.
_SLACK: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimmedMean:
    """Drop the largest and the smallest values of each coordinate and average the rest; weights are not used.

    Attributes:
        share: of the devices, trimmed at each end.

    Raises:
        ConfigError: the share is not between 0 and a half.
    """

    uses_weights: ClassVar[bool] = False

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.share < 0.5:
            raise ConfigError(
                f"share must be > 0 and < 0.5, got {self.share}",
                "give the share of devices that may be hostile, or choose the median",
            )

    @property
    def minimum(self) -> int:
        """So many that at least one is trimmed at each end: with fewer, this were the plain mean."""
        return max(3, math.ceil(1 / self.share - _SLACK))

    def __call__(self, updates: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
        """Return the trimmed mean of each coordinate; weights are not used."""
        require_individuals(updates, weights, minimum=self.minimum)
        trimmed = min(math.floor(self.share * len(updates) + _SLACK), (len(updates) - 1) // 2)
        return {key: _trimmed_mean(rows, trimmed) for key, rows in stack(updates).items()}


def _trimmed_mean(rows: Tensor, trimmed: int) -> Tensor:
    kept = rows.sort(dim=0).values[trimmed : len(rows) - trimmed]
    return kept.double().mean(dim=0).to(rows.dtype)
