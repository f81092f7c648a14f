"""FedAvgM: the mean update with the memory of earlier ones (Hsu, Qi & Brown, arXiv 1909.06335).

    u ← β u + Δ        w ← w + η u

The updates are not damped: a direction that lasts is followed 1/(1−β) times as far, so a large β wants a smaller η.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from florilegium.tensors import Tensors, add, scale, zeros_like
from strategies.optimizers.optimizer import (
    Moments,
    join_moments,
    pick_moment,
    require_decay,
    require_finite,
    require_positive,
)

__all__ = ["Momentum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Momentum:
    """Add what the updates, the old ones fading, sum up to.

    Attributes:
        learning_rate: η.
        momentum: β, the share of the sum that stays from round to round; 0 is averaging.

    Raises:
        ConfigError: a value is out of its range.
    """

    learning_rate: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        require_positive("learning_rate", self.learning_rate)
        require_decay("momentum", self.momentum)

    def start(self, like: Mapping[str, Tensor]) -> Moments:
        """Return a sum of zero."""
        return join_moments({"sum": zeros_like(like)})

    def step(self, moments: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> tuple[Moments, Tensors]:
        """Return the next sum and η times it."""
        require_finite(update)
        total = add(update, pick_moment(moments, "sum"), factor=self.momentum)
        return join_moments({"sum": total}), scale(total, self.learning_rate)
