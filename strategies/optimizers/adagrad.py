"""FedAdagrad: steps shrink with all that a coordinate has moved so far (Reddi et al., arXiv 2003.00295).

v ← v + Δ²        and the rest as in `adaptive`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from florilegium.tensors import Tensors
from strategies.optimizers.adaptive import start_adaptive, step_adaptive
from strategies.optimizers.optimizer import Moments, require_decay, require_positive

__all__ = ["Adagrad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adagrad:
    """Never forget a square.

    Attributes:
        learning_rate: η.
        beta1: share of the first moment that stays from round to round; 0 as in the paper's experiments.
        tau: the smaller, the more adaptive.

    Raises:
        ConfigError: a value is out of its range.
    """

    learning_rate: float = 1e-3
    beta1: float = 0.0
    tau: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("learning_rate", "tau"):
            require_positive(name, getattr(self, name))
        require_decay("beta1", self.beta1)

    def start(self, like: Mapping[str, Tensor]) -> Moments:
        """Return first moments of 0 and second moments of τ²."""
        return start_adaptive(like, tau=self.tau)

    def step(self, moments: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> tuple[Moments, Tensors]:
        """Return the next moments and η m / (√v + τ)."""
        return step_adaptive(
            moments, update, torch.add, learning_rate=self.learning_rate, beta1=self.beta1, tau=self.tau
        )
