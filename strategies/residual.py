"""What is folded into the base beside an adapter: dense matrices by layer, in a state under keys of their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from florilegium.tensors import Tensors
from strategies.factors import layers

__all__ = ["attach", "detach", "residual_of", "zero_residual"]

_MARK = "residual."


def zero_residual(adapter: Mapping[str, Tensor]) -> Tensors:
    """Return zeros of `(outputs, inputs)` for every layer of an adapter."""
    return {layer: torch.zeros(pair.b.shape[0], pair.a.shape[1]) for layer, pair in layers(adapter).items()}


def attach(adapter: Mapping[str, Tensor], residual: Mapping[str, Tensor]) -> Tensors:
    """Put a residual beside an adapter."""
    return dict(adapter) | {_MARK + layer: tensor for layer, tensor in residual.items()}


def residual_of(state: Mapping[str, Tensor]) -> Tensors:
    """Return the residual in a state, by layer."""
    return {key.removeprefix(_MARK): tensor for key, tensor in state.items() if key.startswith(_MARK)}


def detach(state: Mapping[str, Tensor]) -> Tensors:
    """Return a state without its residual."""
    return {key: tensor for key, tensor in state.items() if not key.startswith(_MARK)}
