"""What a codec is: it makes an update smaller for the way up, and an update of it again on the server.

    payload = encode(total)      residual′ = total − decode(payload)      total = update + residual

The second half is error feedback (Karimireddy et al., arXiv 1901.09847): what a payload could not say stays on the
device as its *residual* and is added to the next update, so that nothing is lost, only late. `encode_with_feedback`
does it once for all codecs; `encode` by itself is the codec without it.

A *linear* codec's payloads can be summed and decoded once: secure aggregation and one Gaussian mechanism fit. Each of
the linear codecs here is a matrix U of orthonormal rows, payload = U x and decoded = Uᵀ payload, so that a payload is
never longer than its update and a bound on its norm means on both sides the same. Payloads of the others are decoded
reply by reply, before the sum, and clip and noise belong before `encode`.

What the devices of one round must have in common, the codec's *agreement*, is made by the server from a seed and the
last change, and sent down as named tensors. Keys, shapes and dtypes of a payload follow from the update's shapes alone:
`declared` names them in the form of `privacy.egress.Declared`, for both ends to check before anything is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from florilegium.errors import ConfigError, InputError
from florilegium.tensors import Tensors, add, is_finite, subtract

__all__ = [
    "Codec",
    "PayloadShapes",
    "Shapes",
    "encode_with_feedback",
    "payload_bytes",
    "require_finite",
    "require_share",
    "shapes_of",
    "shared_count",
]

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
PayloadShapes: TypeAlias = dict[str, tuple[tuple[int, ...], torch.dtype]]


class Codec(Protocol):
    """A frozen config with pure functions.

    Attributes:
        is_linear: whether payloads of one agreement can be summed before they are decoded.
    """

    is_linear: ClassVar[bool]

    def agree(self, shapes: Shapes, *, seed: int, change: Mapping[str, Tensor] | None) -> Tensors:
        """Return what the server sends to all devices of a round, so that they encode alike.

        Args:
            shapes: of the updates of this round.
            seed: 63 bits, of this round alone.
            change: the last change of the state, None in the first round. A tensor that it lacks counts as unchanged.
        """

    def declared(self, shapes: Shapes) -> PayloadShapes:
        """Return key, shape and dtype of each tensor of the payload of an update with these shapes."""

    def encode(
        self, total: Mapping[str, Tensor], *, agreement: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensors:
        """Return the payload of what is to be sent.

        Args:
            total: the update, with what is left over from earlier ones.
            agreement: what `agree` returned for this round.
            generator: the device's own randomness, for codecs that round by chance.

        Raises:
            InputError: `total` is not finite, or the agreement does not fit it.
        """

    def decode(self, payload: Mapping[str, Tensor], *, agreement: Mapping[str, Tensor], shapes: Shapes) -> Tensors:
        """Return the update, of these shapes, that a payload (or a sum of them, where linear) stands for."""


def encode_with_feedback(
    codec: Codec,
    update: Mapping[str, Tensor],
    *,
    residual: Mapping[str, Tensor] | None,
    agreement: Mapping[str, Tensor],
    generator: torch.Generator,
) -> tuple[Tensors, Tensors]:
    """Encode an update with what earlier payloads left unsaid.

    Args:
        codec: the round's.
        update: of this round.
        residual: what the last call for these keys returned, None before the first. It is made of private data and
            stays on the device; where rounds take turns with keys, each set of keys has its own.
        agreement: what `codec.agree` returned for this round.
        generator: the device's own randomness.

    Returns:
        The payload and the next residual. The caller stores the latter once the payload is on its way.

    Raises:
        InputError: the update or the residual is not finite, they differ in keys or shapes, or the agreement does not
            fit them.
    """
    total = dict(update) if residual is None else add(update, residual)
    payload = codec.encode(total, agreement=agreement, generator=generator)
    return payload, subtract(total, codec.decode(payload, agreement=agreement, shapes=shapes_of(total)))


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor."""
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def payload_bytes(codec: Codec, shapes: Shapes) -> int:
    """Return the bytes of the values that a device sends for an update with these shapes."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in codec.declared(shapes).values())


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors with a NaN or an infinity.

    Raises:
        InputError: they have one.
    """
    if not is_finite(tensors):
        raise InputError("a value of the update is not finite", "leave this update out")


def require_share(name: str, value: float) -> None:
    """Refuse a setting that is no share of a whole.

    Raises:
        ConfigError: it is not > 0 and <= 1.
    """
    if not 0 < value <= 1:
        raise ConfigError(f"{name} must be > 0 and <= 1, got {value}", "leave it out for the default")


def shared_count(share: float, shape: tuple[int, ...]) -> int:
    """Return how many numbers a share of a tensor is, at least one."""
    return max(1, round(share * math.prod(shape)))
