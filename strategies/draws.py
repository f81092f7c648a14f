"""Draws that the server and every device make alike: functions of a seed and labels, from generators of their own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from strategies.factors import Factors
from strategies.rule import Turn

__all__ = ["fresh_factors", "gaussian", "seed_of"]


def seed_of(*labels: str | int) -> int:
    """Return a 63-bit seed that depends on the labels alone."""
    digest = hashlib.blake2b(repr(labels).encode(), digest_size=8, person=b"flori-draw").digest()
    return int.from_bytes(digest, "little") >> 1


def gaussian(shape: tuple[int, ...], *labels: str | int) -> Tensor:
    """Return standard normal numbers, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed_of(*labels)))


def fresh_factors(shapes: Mapping[str, tuple[int, int]], turn: Turn) -> dict[str, Factors]:
    """Start an adapter of the turn's rank: A uniform in ±1/√inputs, the round's own, and B zero.

    Args:
        shapes: `(outputs, inputs)` of each layer.
        turn: seed, round and rank. The first rows of a higher rank are those of a lower one.
    """
    found = {}
    for layer, (outputs, inputs) in shapes.items():
        generator = torch.Generator().manual_seed(seed_of(turn.seed, turn.round, layer))
        bound = 1.0 / math.sqrt(inputs)
        a = torch.rand(turn.rank, inputs, generator=generator) * (2 * bound) - bound
        found[layer] = Factors(a, torch.zeros(outputs, turn.rank))
    return found
