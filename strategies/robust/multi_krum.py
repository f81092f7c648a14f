"""Multi-Krum: the mean of the updates that lie closest to their neighbours (Blanchard et al., arXiv 1703.02757).

    score_i = Σ ‖update_i − update_j‖² over its n − f − 2 nearest others j
    merged  = mean of the m = n − f − 2 updates of the lowest scores

Variant: the paper leaves m open, between 1 (Krum) and n (averaging). Here m is n − f − 2: as many as a score looks at,
and two fewer than there are honest updates. Deviation: updates that tie with the m-th all count, so that the order of
devices never decides. Distances are over all tensors together, so that tensors of large updates dominate. Up to f
hostile devices of n ≥ 2f + 3 are withstood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors
from strategies.robust.rule import require_individuals, stack

__all__ = ["MultiKrum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiKrum:
    """Average the n − f − 2 best placed updates, each counting the same; weights are not used.

    Attributes:
        byzantine: f, how many devices of a round may be hostile.

    Raises:
        ConfigError: f is negative.
    """

    uses_weights: ClassVar[bool] = False

    byzantine: int = 1

    def __post_init__(self) -> None:
        if self.byzantine < 0:
            raise ConfigError(f"byzantine must be >= 0, got {self.byzantine}", "give how many devices may be hostile")

    @property
    def minimum(self) -> int:
        """The least n of the paper's condition 2f + 2 < n."""
        return 2 * self.byzantine + 3

    def __call__(self, updates: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
        """Return the mean of the chosen updates; weights are not used."""
        require_individuals(updates, weights, minimum=self.minimum)
        rows = stack(updates)
        chosen = self._chosen(_squared_distances(rows))
        return {key: each[chosen].double().mean(dim=0).to(each.dtype) for key, each in rows.items()}

    def _chosen(self, squared: Tensor) -> list[int]:
        """Return which updates are averaged, from their squared distances, (updates, updates)."""
        count = len(squared) - self.byzantine - 2
        # The nearest of all is the update itself, at distance 0.
        scores = [math.fsum(row[1 : count + 1]) for row in squared.sort(dim=1).values.tolist()]
        limit = sorted(scores)[count - 1]
        return [number for number, score in enumerate(scores) if score <= limit]


def _squared_distances(rows: Mapping[str, Tensor]) -> Tensor:
    """Return ‖update_i − update_j‖² over all tensors, (updates, updates), float64.

    By differences and not by a matrix product, which loses the distances of updates that nearly agree.
    """
    parts = [
        torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
        for flat in (each.reshape(len(each), -1).double() for each in rows.values())
    ]
    return torch.stack(parts).sum(dim=0)
