"""Feature hashing: each coordinate is added, with a random sign, to one of w buckets (FetchSGD, arXiv 2007.07682).

    payload_b = Σ_{j in b} s_j x_j / √n_b        decoded_j = s_j payload_b(j) / √n_b(j)        n_b = coordinates in b

The hash of a coordinate follows from the round's seed, the tensor's key and the place alone, by integer arithmetic that
is the same on every machine; it changes with every round.

Deviations from the count sketch. One row: rows would be averaged (their median is not linear), and for the same bytes
one longer row errs as little. Divided by √n_b, so that the decoded update is the orthogonal projection of the true one
and error feedback converges; the plain count sketch is unbiased, but adds up to n_b times the norm of what it decodes.
Without feedback, a decoded update is about w/size of the true one in the mean.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from florilegium.errors import InputError
from florilegium.tensors import Tensors
from strategies.codecs.codec import PayloadShapes, Shapes, require_finite, require_share, shared_count

__all__ = ["Sketch", "splitmix64"]

_SEED: Final = "seed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """Send w sums for each tensor; the agreement is a seed, () int64.

    Attributes:
        share: w as a share of the tensor's coordinates, at least one.

    Raises:
        ConfigError: the share is not > 0 and <= 1.
    """

    is_linear: ClassVar[bool] = True

    share: float = 0.25

    def __post_init__(self) -> None:
        require_share("share", self.share)

    def agree(self, shapes: Shapes, *, seed: int, change: Mapping[str, Tensor] | None) -> Tensors:
        """Return the seed of the round's hashes."""
        del shapes, change
        return {_SEED: torch.tensor(seed, dtype=torch.int64)}

    def declared(self, shapes: Shapes) -> PayloadShapes:
        """Return w numbers for each tensor, float32."""
        return {key: ((shared_count(self.share, shape),), torch.float32) for key, shape in shapes.items()}

    def encode(
        self, total: Mapping[str, Tensor], *, agreement: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensors:
        """Return the buckets of each tensor."""
        del generator
        require_finite(total)
        payload: Tensors = {}
        for key, tensor in total.items():
            buckets, factors = self._hashes(agreement, key, tuple(tensor.shape), tensor.device)
            empty = factors.new_zeros(shared_count(self.share, tuple(tensor.shape)))
            payload[key] = empty.index_add(0, buckets, factors * tensor.float().flatten())
        return payload

    def decode(self, payload: Mapping[str, Tensor], *, agreement: Mapping[str, Tensor], shapes: Shapes) -> Tensors:
        """Return each coordinate's part of its bucket."""
        decoded: Tensors = {}
        for key, shape in shapes.items():
            buckets, factors = self._hashes(agreement, key, shape, payload[key].device)
            decoded[key] = (factors * payload[key][buckets]).reshape(shape)
        return decoded

    def _hashes(
        self, agreement: Mapping[str, Tensor], key: str, shape: tuple[int, ...], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return each coordinate's bucket, and its sign over the root of how many share that, both (size,)."""
        seed = agreement.get(_SEED)
        if seed is None or seed.dtype != torch.int64 or seed.ndim:
            raise InputError("the agreement has no seed of the round, () int64", "use the round's own agreement")
        start = hashlib.blake2b(f"{int(seed)}:{key}".encode(), digest_size=8, person=b"flori-sketch").digest()
        bits = splitmix64(int.from_bytes(start, "little"), math.prod(shape))
        buckets = ((bits >> np.uint64(1)) % np.uint64(shared_count(self.share, shape))).astype(np.int64)
        signs = 1.0 - 2.0 * (bits & np.uint64(1)).astype(np.float64)
        factors = signs / np.sqrt(np.bincount(buckets)[buckets])
        return torch.from_numpy(buckets).to(device), torch.from_numpy(factors.astype(np.float32)).to(device)


def splitmix64(start: int, count: int) -> NDArray[np.uint64]:
    """Return `count` hashes of 64 bits (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195).

    >>> splitmix64(1234567, 2).tolist()
    [6457827717110365317, 3203168211198807973]
    """
    hashes = np.uint64(start) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
