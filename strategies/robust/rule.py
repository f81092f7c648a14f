"""What a robust rule is: it merges the individual updates of a round so that a few hostile ones cannot steer it.

    (update₁ … updateₙ, weight₁ … weightₙ) → merged

A rule sees every update by itself, so it cannot be had together with secure aggregation, which shows a server only
their sum. All updates of a round are in memory at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from florilegium.errors import InputError
from florilegium.tensors import Tensors, is_finite, require_alike

__all__ = ["RobustRule", "require_individuals", "stack"]


class RobustRule(Protocol):
    """A frozen config that is called with the updates of one round; their order does not matter.

    Attributes:
        uses_weights: whether the weights count. A rule that ignores them treats devices alike: a weight is what a
            device says about itself, and a hostile one would say much.
    """

    uses_weights: ClassVar[bool]

    @property
    def minimum(self) -> int:
        """How many updates it needs at least."""

    def __call__(self, updates: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
        """Merge updates, each with its device's weight.

        Raises:
            InputError: there are fewer than `minimum`; two differ in keys or shapes; one is not finite; or the weights
                are not one finite number >= 0 for each, with a positive sum.
        """


def require_individuals(updates: Sequence[Mapping[str, Tensor]], weights: Sequence[float], *, minimum: int) -> None:
    """Refuse what no rule can merge.

    Raises:
        InputError: see `RobustRule.__call__`.
    """
    if len(updates) < minimum:
        raise InputError(
            f"{len(updates)} updates came and the rule needs at least {minimum}",
            "wait for more replies, draw a larger cohort or choose a rule that needs fewer",
        )
    if len(weights) != len(updates):
        raise InputError(f"{len(updates)} updates have {len(weights)} weights", "give one weight for each update")
    if not all(0 <= weight < math.inf for weight in weights) or math.fsum(weights) <= 0:
        raise InputError("a weight is negative or not finite, or all are 0", "give finite weights of positive sum")
    for number, update in enumerate(updates):
        require_alike(updates[0], update)
        if not is_finite(update):
            raise InputError(f"update {number} of {len(updates)} is not finite", "leave it out")


def stack(updates: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """Return each tensor of all updates as rows, (updates, *shape)."""
    return {key: torch.stack([update[key] for update in updates]) for key in updates[0]}
