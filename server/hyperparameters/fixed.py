"""Fixed: every device is asked for the same in every round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from florilegium.tensors import Tensors
from strategies.hyperparameters import require_values

__all__ = ["Fixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Learn nothing.

    Attributes:
        values: by name; what is not named is as the run's settings say.

    Raises:
        ConfigError: a name is unknown, or a value is out of its limits.
    """

    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_values(self.values)
        # A frozen value must not change with the mapping it was made from.
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    @property
    def sensitivity(self) -> float:
        """Return 0: nothing is asked for."""
        return 0.0

    def start(self) -> Tensors:
        """Return nothing."""
        return {}

    def draw(self, state: Mapping[str, Tensor], *, server_round: int, device: int, seed: int) -> dict[str, float]:
        """Return the values."""
        del state, server_round, device, seed
        return dict(self.values)

    def feedback(self, drawn: Mapping[str, float], improvement: float) -> Tensor:
        """Return nothing, (0,)."""
        del drawn, improvement
        return torch.zeros(0, dtype=torch.float64)

    def advance(self, state: Mapping[str, Tensor], summed_feedback: Tensor) -> Tensors:
        """Return the state."""
        del summed_feedback
        return dict(state)
