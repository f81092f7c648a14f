"""Draws: random numbers that depend on their name alone, so that any of them can be asked for at any time.

    uᵢ = (⌊wᵢ / 2¹²⌋ + ½) · 2⁻⁵²,   wᵢ the i-th 64-bit word of SHAKE-128(name)

A generator has a state, which a fleet would have to keep for every device, or build anew for every day of it. A hash of
(what is drawn, seed, device, day) has none (counter-based numbers: Salmon et al. 2011, doi:10.1145/2063384.2063405).
"""

from __future__ import annotations

import math
import struct
from hashlib import shake_128
from statistics import NormalDist
from typing import Final

__all__ = ["exponential", "normal", "poisson", "uniforms"]

_NORMAL: Final = NormalDist()


def uniforms(count: int, purpose: str, *numbers: int) -> tuple[float, ...]:
    """Return `count` independent uniform numbers, each strictly between 0 and 1.

    Args:
        count: how many.
        purpose: what they are for; with `numbers` it is the name that decides them.
        numbers: seed, round, device, day: whatever tells one draw from another.

    >>> uniforms(1, "dropout", 0, 3) == uniforms(2, "dropout", 0, 3)[:1]
    True
    """
    name = "/".join((purpose, *map(str, numbers)))
    words = struct.unpack(f"<{count}Q", shake_128(name.encode()).digest(8 * count))
    return tuple([((word >> 12) + 0.5) * 2.0**-52 for word in words])


def normal(uniform: float) -> float:
    """Return the standard normal number of which `uniform` is the probability of a smaller one."""
    return _NORMAL.inv_cdf(uniform)


def exponential(uniform: float, mean: float) -> float:
    """Return an exponential number."""
    return -mean * math.log(uniform)


def poisson(uniform: float, mean: float, most: int) -> int:
    """Return a Poisson number, but never more than `most`."""
    term = below = math.exp(-mean)
    for count in range(most):
        if uniform < below:
            return count
        term *= mean / (count + 1)
        below += term
    return most
