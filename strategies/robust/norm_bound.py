"""Norm bound: the mean of updates that were each scaled to at most a bound (Sun et al., arXiv 1911.07963).

    merged = Σ wᵢ min(1, bound / ‖updateᵢ‖) updateᵢ / Σ wᵢ

The bound is a fixed number, or a multiple of the median of the round's norms. A hostile device pulls no harder than
bound · its share of the weights, but in any direction: a limit of harm, where the other rules reject.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors, joint_norm, mean, scale
from strategies.robust.rule import require_individuals

__all__ = ["NormBound"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormBound:
    """Scale down what is too long, then take the mean by weight: the weights are used.

    Attributes:
        bound: the longest update, or None to take it from the median of the norms.
        multiple: of the median of the norms; only where `bound` is None.

    Raises:
        ConfigError: a value is not positive.
    """

    uses_weights: ClassVar[bool] = True

    bound: float | None = None
    multiple: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("bound", self.bound), ("multiple", self.multiple)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be finite and > 0, got {value}", "leave it out for the default")

    @property
    def minimum(self) -> int:
        """One for a fixed bound; three for the median, so that one device does not set it."""
        return 3 if self.bound is None else 1

    def __call__(self, updates: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
        """Return the weighted mean of the bounded updates."""
        require_individuals(updates, weights, minimum=self.minimum)
        norms = [joint_norm(update) for update in updates]
        bound = self.multiple * statistics.median(norms) if self.bound is None else self.bound
        bounded = (
            scale(update, bound / norm) if norm > bound else update for update, norm in zip(updates, norms, strict=True)
        )
        return mean(zip(weights, bounded, strict=True))
