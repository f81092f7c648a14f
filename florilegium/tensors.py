"""Named tensors: the form in which adapters, updates and a server's state are computed with.

Keys are those of PEFT's files (`….q_proj.lora_A.weight`). All functions are pure: they return new tensors and refuse
operands whose keys or shapes differ, because broadcasting would hide a mistake (an adapter of rank 1 beside one of 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from florilegium.errors import InputError

__all__ = [
    "Tensors",
    "add",
    "combine",
    "is_finite",
    "joint_norm",
    "mean",
    "require_alike",
    "scale",
    "subtract",
    "zeros_like",
]

Tensors: TypeAlias = dict[str, Tensor]


def require_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Refuse two sets of tensors that differ in keys or shapes.

    Raises:
        InputError: they do; the message names the first key in which.
    """
    for key in sorted(one.keys() | other.keys()):
        if key not in one or key not in other:
            raise InputError(f"tensor {key!r} is in one set and not in the other", "use adapters of one shape")
        if one[key].shape != other[key].shape:
            shapes = f"{tuple(one[key].shape)} and {tuple(other[key].shape)}"
            raise InputError(f"tensor {key!r} has the shapes {shapes}", "use adapters of one rank")


def combine(
    function: Callable[[Tensor, Tensor], Tensor], one: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> Tensors:
    """Apply a function of two tensors key by key."""
    require_alike(one, other)
    return {key: function(tensor, other[key]) for key, tensor in one.items()}


def add(one: Mapping[str, Tensor], other: Mapping[str, Tensor], *, factor: float = 1.0) -> Tensors:
    """Return one + factor · other."""
    return combine(lambda a, b: torch.add(a, b, alpha=factor), one, other)


def subtract(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensors:
    """Return one − other."""
    return combine(torch.sub, one, other)


def scale(tensors: Mapping[str, Tensor], factor: float) -> Tensors:
    """Return factor · tensors."""
    return {key: tensor * factor for key, tensor in tensors.items()}


def zeros_like(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return zeros of the same keys and shapes."""
    return {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}


def mean(weighted: Iterable[tuple[float, Mapping[str, Tensor]]]) -> Tensors:
    """Return Σ wᵢ tᵢ / Σ wᵢ, one operand at a time.

    Raises:
        InputError: there is no operand, two differ in keys or shapes, or the weights do not sum to more than 0.
    """
    total, weight = None, 0.0
    for share, tensors in weighted:
        total = scale(tensors, share) if total is None else add(total, tensors, factor=share)
        weight += share
    if total is None or weight <= 0:
        raise InputError("there is nothing to average", "wait for at least one reply of positive weight")
    return scale(total, 1.0 / weight)


def joint_norm(tensors: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm of all tensors as one vector, summed in float64."""
    return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def is_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no tensor holds a NaN or an infinity."""
    # A sum takes a fraction of the time; if it is not finite, it may be that it overflowed.
    return all(math.isfinite(tensor.sum()) or bool(tensor.isfinite().all()) for tensor in tensors.values())
