"""FedAdam: steps scaled by the recent size of each coordinate's updates (Reddi et al., arXiv 2003.00295).

    v ← β₂ v + (1−β₂) Δ²        and the rest as in `adaptive`

η is 1e-3 by default: flwr's 0.1 moves every coordinate by more than an adapter's weights are large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from florilegium.tensors import Tensors
from strategies.optimizers.adaptive import start_adaptive, step_adaptive
from strategies.optimizers.optimizer import Moments, require_decay, require_positive

__all__ = ["Adam"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """Forget old squares at a fixed pace.

    Attributes:
        learning_rate: η, about how far a coordinate moves in a round when its updates agree.
        beta1: share of the first moment that stays from round to round.
        beta2: share of the second moment that stays.
        tau: the smaller, the more adaptive; much smaller than the updates, only their signs count.

    Raises:
        ConfigError: a value is out of its range.
    """

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("learning_rate", "tau"):
            require_positive(name, getattr(self, name))
        for name in ("beta1", "beta2"):
            require_decay(name, getattr(self, name))

    def start(self, like: Mapping[str, Tensor]) -> Moments:
        """Return first moments of 0 and second moments of τ²."""
        return start_adaptive(like, tau=self.tau)

    def step(self, moments: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> tuple[Moments, Tensors]:
        """Return the next moments and η m / (√v + τ)."""
        return step_adaptive(
            moments, update, self._second, learning_rate=self.learning_rate, beta1=self.beta1, tau=self.tau
        )

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * square
