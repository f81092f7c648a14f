"""Packing: named tensors as a few long ones, each with its table of contents.

A file or a message spends more on each tensor than on its numbers, and an adapter has hundreds of small ones. Tensors
of one type, on one device, that follow each other are laid end to end; keys, shapes and order come back as they were.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor

from florilegium.errors import InputError
from florilegium.tensors import Tensors

__all__ = ["Contents", "Packed", "accumulate", "pack", "unpack"]

Contents: TypeAlias = dict[str, list[int]]  # shapes by key, in the order of the values
Packed: TypeAlias = list[tuple[Contents, Tensor]]


def pack(tensors: Mapping[str, Tensor]) -> Packed:
    """Return the tensors' values, in memory of their own, `(values,)` each, with what they are of.

    >>> pack({"a": torch.ones(2, 1), "b": torch.zeros(2)})
    [({'a': [2, 1], 'b': [2]}, tensor([1., 1., 0., 0.]))]
    """
    runs = groupby(tensors.items(), key=lambda item: (item[1].dtype, item[1].device))
    return [_join(dict(run)) for _, run in runs]


def _join(tensors: Tensors) -> tuple[Contents, Tensor]:
    values = torch.cat([tensor.detach().reshape(-1) for tensor in tensors.values()])
    return {key: list(tensor.shape) for key, tensor in tensors.items()}, values


def accumulate(total: Packed | None, packed: Packed, *, factor: float = 1.0) -> Packed:
    """Return total + factor · packed, in the total's own memory.

    The sum is float64: the order in which tensors come is lost in the last rounding to float32, and no other's rounding
    moves it by more than the tensors themselves do.

    Args:
        total: as this returned it; None before the first.
        packed: floats, packed alike each time.
        factor: of these.

    Raises:
        InputError: keys, shapes or their order differ from the total's.
    """
    if total is None:
        total = [(contents, torch.zeros_like(values, dtype=torch.float64)) for contents, values in packed]
    elif [contents for contents, _ in packed] != [contents for contents, _ in total]:
        raise InputError("two sets of tensors differ in keys or shapes", "use adapters of one rank")
    for (_, sums), (_, values) in zip(total, packed, strict=True):
        sums.add_(values, alpha=factor)
    return total


def unpack(packed: Iterable[tuple[Mapping[str, Sequence[int]], Tensor]]) -> Tensors:
    """Return the tensors, as views of what they were packed into.

    Raises:
        InputError: a table of contents does not fit its values, or two name the same tensor.
    """
    tensors: Tensors = {}
    for contents, values in packed:
        sizes = [math.prod(shape) for shape in contents.values()]
        known = tensors.keys() & contents.keys()
        if known or any(size < 0 for shape in contents.values() for size in shape) or values.shape != (sum(sizes),):
            raise InputError("a table of contents does not fit its values", "take a file or a message as it was made")
        parts = torch.split(values, sizes)
        tensors |= {key: part.view(list(shape)) for (key, shape), part in zip(contents.items(), parts, strict=True)}
    return tensors
