"""FedAvg: go where the devices went on average (McMahan et al., arXiv 1602.05629).

    w ← w + η Δ

Deviation: the paper averages states; the mean update is the same where all devices started from one state, and right
where some missed rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from florilegium.tensors import Tensors, scale
from strategies.optimizers.optimizer import Moments, require_finite, require_positive

__all__ = ["Average"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """Add the mean update; it has no moments.

    Attributes:
        learning_rate: η; 1 is the average itself.

    Raises:
        ConfigError: a value is out of its range.
    """

    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        require_positive("learning_rate", self.learning_rate)

    def start(self, like: Mapping[str, Tensor]) -> Moments:
        """Return no moments."""
        del like
        return {}

    def step(self, moments: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> tuple[Moments, Tensors]:
        """Return no moments and η Δ; adding that to the state is what refuses an update that lacks keys."""
        require_finite(update)
        return dict(moments), scale(update, self.learning_rate)
