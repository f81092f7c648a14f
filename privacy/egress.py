"""What leaves a device, and what a server takes in: declared tensors and bounded numbers, rebuilt; nothing else.

Every tensor is copied into fresh memory of exactly its declared size, in the declared order, so that no view, no
trailing bytes and no order of keys carries anything out. A metric m is released as

    lower + step · round((min(max(m, lower), upper) − lower) / step)

Messages name declared keys only: an undeclared one is text of unknown origin. A device that cannot reply sends one of
`ErrorCode`, which depends on the class of what happened and never on its message.

Limit: low mantissa bits can hide text in a tensor that passes. This stops mistakes, not hostile code on the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Final, TypeAlias

import torch
from torch import Tensor

from florilegium.errors import (
    BusyError,
    ConfigError,
    InputError,
    MemoryBudgetError,
    PrivacyError,
    StorageError,
)
from florilegium.tensors import Tensors, is_finite
from privacy.ledger import PrivacyBudgetError

__all__ = ["Bounds", "Declared", "ErrorCode", "Refusal", "RefusedError", "check_in", "check_out", "code_of"]

Shape: TypeAlias = tuple[int, ...]

_MOST_LEVELS: Final = 1 << 16
_WIRE_TYPES: Final = frozenset(
    {
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.int64,
    }
)


class Refusal(StrEnum):
    """Why a reply was refused."""

    MISSING_KEY = "missing-key"
    UNKNOWN_KEY = "unknown-key"
    WRONG_SHAPE = "wrong-shape"
    WRONG_TYPE = "wrong-type"
    NOT_FINITE = "not-finite"
    HUGE = "huge"
    TOO_LARGE = "too-large"
    BAD_METRIC = "bad-metric"


class RefusedError(PrivacyError):
    """Report a reply that may not leave a device or enter a server.

    Attributes:
        refusal: why.
    """

    def __init__(self, refusal: Refusal, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.refusal = refusal

    def __reduce__(self) -> tuple[type[RefusedError], tuple[Refusal, str]]:
        return type(self), (self.refusal, str(self))


class ErrorCode(IntEnum):
    """All that a device says when it does not reply; the numbers are part of the protocol and never change."""

    NO_DATA = 1
    STALE_STATE = 2
    BAD_REQUEST = 3
    OUT_OF_MEMORY = 4
    STORAGE = 5
    NOT_FINITE = 6
    REFUSED_BY_POLICY = 7
    BUDGET_SPENT = 8
    INTERNAL = 9
    BUSY = 10


# The first class that fits decides, so special ones stand before general ones.
_CODES: Final[tuple[tuple[type[BaseException], ErrorCode], ...]] = (
    (PrivacyBudgetError, ErrorCode.BUDGET_SPENT),
    (PrivacyError, ErrorCode.REFUSED_BY_POLICY),
    (BusyError, ErrorCode.BUSY),
    (StorageError, ErrorCode.STORAGE),
    (MemoryBudgetError, ErrorCode.OUT_OF_MEMORY),
    (ConfigError, ErrorCode.BAD_REQUEST),
    (InputError, ErrorCode.BAD_REQUEST),
    (MemoryError, ErrorCode.OUT_OF_MEMORY),
    (torch.OutOfMemoryError, ErrorCode.OUT_OF_MEMORY),
    (OSError, ErrorCode.STORAGE),
)


def code_of(exception: BaseException) -> ErrorCode:
    """Return the code that stands for an exception, by its class; no message or cause of it is looked at.

    Of a `RefusedError` its fixed reason counts, too: numbers that overflowed are no broken rule.
    """
    if isinstance(exception, RefusedError) and exception.refusal is Refusal.NOT_FINITE:
        return ErrorCode.NOT_FINITE
    return next((code for kind, code in _CODES if isinstance(exception, kind)), ErrorCode.INTERNAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What may be said of one metric: a step on a ladder of at most 65 536.

    Attributes:
        lower: what lower values are raised to.
        upper: what higher values are lowered to.
        step: distance between two values that can be told apart.

    Raises:
        ConfigError: a number is not finite, there is no room between the bounds, or there are too many steps.
    """

    lower: float
    upper: float
    step: float

    def __post_init__(self) -> None:
        width = self.upper - self.lower
        if not 0 < width < math.inf:
            raise ConfigError(
                f"a metric's bounds must be finite with lower < upper, got {self.lower} and {self.upper}",
                "give the range that the metric can take",
            )
        if not width / _MOST_LEVELS <= self.step <= width:
            raise ConfigError(
                f"a metric's step must leave 1 to {_MOST_LEVELS} steps between its bounds, got {self.step}",
                f"choose one from {width / _MOST_LEVELS} to {width}",
            )

    def quantize(self, value: float) -> float:
        """Return the nearest step to `value`, within the bounds.

        >>> Bounds(lower=0.0, upper=1.0, step=0.25).quantize(0.6)
        0.5
        """
        clamped = min(max(value, self.lower), self.upper)
        return min(self.lower + self.step * round((clamped - self.lower) / self.step), self.upper)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a reply consists of: every tensor, and any of the metrics.

    Attributes:
        tensors: shape and dtype of each tensor by key; a reply has all of them.
        metrics: bounds of each metric by name; a reply may lack some.

    Raises:
        ConfigError: a shape has a negative size, or a dtype does not travel (complex, boolean, quantized).
    """

    tensors: Mapping[str, tuple[Shape, torch.dtype]]
    metrics: Mapping[str, Bounds] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, (shape, dtype) in self.tensors.items():
            if any(size < 0 for size in shape):
                raise ConfigError(f"tensor {key!r} is declared with the shape {shape}", "sizes must be >= 0")
            if dtype not in _WIRE_TYPES:
                raise ConfigError(f"tensor {key!r} is declared as {dtype}", "use a real float or an integer type")
        # A frozen value must not change with the mapping it was made from.
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        object.__setattr__(self, "metrics", MappingProxyType(dict(self.metrics)))


def check_out(
    tensors: Mapping[str, Tensor], metrics: Mapping[str, float], declared: Declared, *, max_bytes: int
) -> tuple[Tensors, dict[str, float]]:
    """Return what may leave the device, in memory of its own.

    Args:
        tensors: an encoded update.
        metrics: plain Python floats by name.
        declared: what may leave.
        max_bytes: most bytes of all tensors together.

    Returns:
        The tensors, contiguous, without gradient, in main memory; and the metrics, clamped and quantised. Both in the
        order in which they were declared.

    Raises:
        RefusedError: a rule is broken; nothing may leave.
        ConfigError: `max_bytes` is not positive.
    """
    return _rebuild(tensors, metrics, declared, max_bytes, "nothing may leave this device in this round")


def check_in(
    tensors: Mapping[str, Tensor], metrics: Mapping[str, float], declared: Declared, *, max_bytes: int
) -> tuple[Tensors, dict[str, float]]:
    """Return what a server takes from a device's reply: the laws are those of `check_out`, whatever the device ran.

    Raises:
        RefusedError: a rule is broken; its `refusal` may be logged with the device's identifier.
        ConfigError: `max_bytes` is not positive.
    """
    return _rebuild(tensors, metrics, declared, max_bytes, "leave this device's reply out of the round")


def _rebuild(
    tensors: Mapping[str, Tensor], metrics: Mapping[str, float], declared: Declared, max_bytes: int, remedy: str
) -> tuple[Tensors, dict[str, float]]:
    if max_bytes < 1:
        raise ConfigError(f"max_bytes must be > 0, got {max_bytes}", "give the bytes that a reply may have")
    _check_keys(tensors, declared, remedy)
    _check_types(tensors, declared, remedy)
    _check_sizes(tensors, declared, max_bytes, remedy)
    fresh = {key: _copy(tensors[key]) for key in declared.tensors}
    if not is_finite(fresh):
        key = next(key for key, tensor in fresh.items() if not is_finite({key: tensor}))
        raise RefusedError(Refusal.NOT_FINITE, f"tensor {key!r} holds a NaN or an infinity", remedy)
    return fresh, _rebuild_metrics(metrics, declared, remedy)


def _check_keys(tensors: Mapping[str, Tensor], declared: Declared, remedy: str) -> None:
    unknown = tensors.keys() - declared.tensors.keys()
    if unknown:
        raise RefusedError(Refusal.UNKNOWN_KEY, f"{len(unknown)} of the tensors' keys are not declared", remedy)
    for key in declared.tensors:
        if key not in tensors:
            raise RefusedError(Refusal.MISSING_KEY, f"tensor {key!r} is declared and missing", remedy)


def _check_types(tensors: Mapping[str, Tensor], declared: Declared, remedy: str) -> None:
    for key, (_, dtype) in declared.tensors.items():
        tensor: object = tensors[key]
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise RefusedError(Refusal.WRONG_TYPE, f"{key!r} must be a dense tensor and is something else", remedy)
        if tensor.dtype != dtype:
            raise RefusedError(Refusal.WRONG_TYPE, f"tensor {key!r} is {tensor.dtype}, declared as {dtype}", remedy)


def _check_sizes(tensors: Mapping[str, Tensor], declared: Declared, max_bytes: int, remedy: str) -> None:
    # Sizes come from shapes, so that a tensor of a huge shape is refused before any memory is asked for.
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > max_bytes:
        raise RefusedError(Refusal.TOO_LARGE, f"the tensors have {total} bytes, at most {max_bytes} may travel", remedy)
    for key, (shape, _) in declared.tensors.items():
        found = tuple(tensors[key].shape)
        if found != shape:
            raise RefusedError(
                Refusal.WRONG_SHAPE, f"tensor {key!r} has the shape {found}, declared as {shape}", remedy
            )


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _rebuild_metrics(metrics: Mapping[str, float], declared: Declared, remedy: str) -> dict[str, float]:
    unknown = metrics.keys() - declared.metrics.keys()
    if unknown:
        raise RefusedError(Refusal.BAD_METRIC, f"{len(unknown)} of the metrics' names are not declared", remedy)
    rebuilt: dict[str, float] = {}
    for name, bounds in declared.metrics.items():
        if name in metrics:
            value = metrics[name]
            # Exactly float: a boolean, a NumPy scalar or a subclass may carry more than its value.
            if type(value) is not float or not math.isfinite(value):
                raise RefusedError(Refusal.BAD_METRIC, f"metric {name!r} must be a finite float", remedy)
            rebuilt[name] = bounds.quantize(value)
    return rebuilt
