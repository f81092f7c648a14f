"""Gaussian noise whose randomness nobody can replay: the operating system's entropy through the inverse normal CDF.

    u = (2k + 1) / 2⁵³, k uniform in [0, 2⁵²)      noise = std · Φ⁻¹(u)

Every u lies strictly between 0 and 1 and is exact in float64, so noise is finite (at most 8.21 std) and symmetric. A
pseudo-random generator whose seed is known gives its noise away, exactly; hence no generator of torch or NumPy's.

Deviation: sums are taken in float64 and rounded to a grid of 2⁻¹⁶ to 2⁻¹⁷ std before they become float32. Without it
the spacing of floats would show the low bits of what the noise hides (Mironov 2012, doi:10.1145/2382196.2382264).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors

__all__ = ["NoiseSource", "SeededSource", "SystemSource", "add_gaussian"]

_CHUNK: Final = 1 << 18
_GRID_BITS: Final = 16
_LEAST_STD, _MOST_STD = 2.0**-100, 2.0**100


class NoiseSource(Protocol):
    """Where the bits of noise come from."""

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, independent and uniform."""
        ...


class SystemSource:
    """The operating system's entropy: the only source for what leaves a device or a server."""

    def read(self, count: int) -> bytes:
        """Return `count` bytes that nobody can predict or replay."""
        return os.urandom(count)


class SeededSource:
    """FOR SIMULATION ONLY: a stream that follows from its seed, so that who knows the seed can take the noise away.

    Args:
        seed: whole numbers >= 0, such as (seed, round, device).
    """

    def __init__(self, *seed: int) -> None:
        self._generator = np.random.Philox(np.random.SeedSequence(seed))

    def read(self, count: int) -> bytes:
        """Return the next bytes of the stream, in whole words of eight."""
        words = self._generator.random_raw(-(-count // 8))
        return words.astype("<u8").tobytes()[:count]


def add_gaussian(tensors: Mapping[str, Tensor], std: float, source: NoiseSource) -> Tensors:
    """Return tensors + N(0, std²) in float32, every entry with noise of its own; std 0 adds nothing.

    Raises:
        ConfigError: `std` is neither 0 nor of a size that float32 can hold.
    """
    # Below, float32 would round the noise away in silence.
    if std != 0 and not _LEAST_STD <= std <= _MOST_STD:
        raise ConfigError(
            f"the noise's standard deviation must be 0 or from {_LEAST_STD:.0e} to {_MOST_STD:.0e}, got {std}",
            "choose a clip_norm and a noise_multiplier nearer 1",
        )
    return {key: _add(tensor.detach(), std, source) for key, tensor in tensors.items()}


def _add(tensor: Tensor, std: float, source: NoiseSource) -> Tensor:
    if std == 0:
        return tensor.to(torch.float32, copy=True)
    noisy = torch.empty(tensor.shape, dtype=torch.float32)
    plain, flat = tensor.reshape(-1), noisy.view(-1)
    grid = math.ldexp(1.0, math.frexp(std)[1] - 1 - _GRID_BITS)
    for start in range(0, len(flat), _CHUNK):
        part = slice(start, start + _CHUNK)
        exact = plain[part].to("cpu", torch.float64).add(_standard(len(flat[part]), source), alpha=std)
        flat[part] = exact.div_(grid).round_().mul_(grid)
    return noisy


def _standard(count: int, source: NoiseSource) -> Tensor:
    """Return `count` values of N(0, 1), float64."""
    bits = np.frombuffer(source.read(8 * count), dtype="<u8") >> 12
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-52
    normal: Tensor = torch.special.ndtri(torch.from_numpy(uniform))
    return normal
