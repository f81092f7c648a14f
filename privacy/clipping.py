"""Bound an update as one vector over all of its tensors (McMahan et al. 1710.06963, flat clipping).

    u ← u · min(1, C / ‖u‖)      ‖u‖² = Σ over tensors, summed in float64

Deviation: results are rounded towards zero, because rounding to nearest can leave a norm slightly above C, and the
noise is scaled to C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors, joint_norm
from privacy.egress import Refusal, RefusedError

__all__ = ["clip", "finite_norm"]

# More than the float64 roundings of a norm, a quotient and a product can add, and nothing that training would notice.
_SLACK: Final = 1 - 2.0**-40


def clip(update: Mapping[str, Tensor], *, clip_norm: float) -> tuple[Tensors, float, bool]:
    """Scale an update down to a joint L2 norm of at most `clip_norm`.

    Args:
        update: floating-point tensors by key.
        clip_norm: C, the largest norm that may leave.

    Returns:
        The update in new memory and the same dtypes; its norm before; and whether that was above `clip_norm`.

    Raises:
        RefusedError: the update or its norm is not finite, or a tensor is not of a floating-point type.
        ConfigError: `clip_norm` is not a positive number.
    """
    if not 0 < clip_norm < math.inf:
        raise ConfigError(f"clip_norm must be finite and > 0, got {clip_norm}", "0.1 to 1 is usual for an adapter")
    norm = finite_norm(update)
    if norm <= clip_norm:
        return {key: tensor.detach().clone() for key, tensor in update.items()}, norm, False
    factor = clip_norm / norm * _SLACK
    return {key: _scale_down(tensor.detach(), factor) for key, tensor in update.items()}, norm, True


def finite_norm(update: Mapping[str, Tensor]) -> float:
    """Return an update's joint L2 norm.

    Raises:
        RefusedError: it is not finite, or a tensor is not of a floating-point type.
    """
    for key, tensor in update.items():
        if not tensor.is_floating_point():
            problem = f"tensor {key!r} is {tensor.dtype}, and only floats have a norm to clip"
            raise RefusedError(Refusal.WRONG_TYPE, problem, "clip before encoding to integers")
    try:
        norm = joint_norm({key: tensor.detach() for key, tensor in update.items()})
    except OverflowError:
        norm = math.inf
    if not math.isfinite(norm):
        problem = "the update holds a NaN or an infinity, or its norm overflows"
        raise RefusedError(Refusal.NOT_FINITE, problem, "lower the learning rate; nothing was released")
    return norm


def _scale_down(tensor: Tensor, factor: float) -> Tensor:
    exact = tensor.double() * factor
    rounded = exact.to(tensor.dtype)
    nearer_zero = torch.nextafter(rounded, torch.zeros_like(rounded))
    return torch.where(rounded.double().abs() > exact.abs(), nearer_zero, rounded)
