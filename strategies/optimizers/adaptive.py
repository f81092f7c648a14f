"""What Adagrad, Adam and Yogi share on a server (Reddi et al., arXiv 2003.00295, Algorithm 2).

    m ← β₁ m + (1−β₁) Δ        v ← second(v, Δ²)        w ← w + η m / (√v + τ)

m starts at 0 and v at τ², the least the paper allows (v₋₁ ≥ τ²). As in the paper there is no bias correction: m, which
starts at 0, makes the first rounds short. flwr starts v at 0 and corrects in FedAdam alone, so its first rounds differ
from these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from florilegium.tensors import Tensors, combine, zeros_like
from strategies.optimizers.optimizer import Moments, join_moments, pick_moment, require_finite

__all__ = ["start_adaptive", "step_adaptive"]


def start_adaptive(like: Mapping[str, Tensor], *, tau: float) -> Moments:
    """Return first moments of 0 and second moments of τ²."""
    squares = {key: torch.full_like(tensor, tau**2) for key, tensor in like.items()}
    return join_moments({"mean": zeros_like(like), "square": squares})


def step_adaptive(
    moments: Mapping[str, Tensor],
    update: Mapping[str, Tensor],
    second: Callable[[Tensor, Tensor], Tensor],
    *,
    learning_rate: float,
    beta1: float,
    tau: float,
) -> tuple[Moments, Tensors]:
    """Return the next moments and the change.

    Args:
        moments: as `start_adaptive` or the last step returned them.
        update: Δ.
        second: returns the next second moment of a tensor from the last one and Δ².
        learning_rate: η.
        beta1: share of the first moment that stays from round to round.
        tau: the smaller, the more adaptive.

    Raises:
        InputError: the update is not finite, or differs from the moments in keys or shapes.
    """
    require_finite(update)
    means = combine(lambda m, delta: beta1 * m + (1 - beta1) * delta, pick_moment(moments, "mean"), update)
    squares = combine(lambda v, delta: second(v, delta.square()), pick_moment(moments, "square"), update)
    change = combine(lambda m, v: learning_rate * m / (v.sqrt() + tau), means, squares)
    return join_moments({"mean": means, "square": squares}), change
