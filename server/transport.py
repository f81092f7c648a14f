"""Transport: how a server reaches its devices, whatever carries the messages.

A request goes to one device; answers come back in any order, one at a time, and some never. What a device sends instead
of an answer is a fixed code and never a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from florilegium.tensors import Tensors
from privacy.egress import ErrorCode
from strategies.rule import Turn

__all__ = ["Answer", "BufferedTransport", "Request", "Transport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one device is asked.

    Attributes:
        device: who.
        run: by which it tells this run from others, 63 bits.
        turn: where the fleet is.
        down: the rule's tensors.
        agreement: the codec's.
        hyperparameters: of local training, by name; the device clamps them to its own bounds.
        improvement_unit: nats per token that count as an improvement of 1; 0 if the device is to say nothing of it.
    """

    device: int
    run: int = 0
    turn: Turn
    down: Tensors = field(repr=False)
    agreement: Tensors = field(repr=False)
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    improvement_unit: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one device answered.

    Attributes:
        device: who.
        tensors: the payload; unchecked.
        metrics: numbers by name; unchecked.
        error: why there is no payload; None if there is one.
        round: of the request that it answers; None from a transport that has one request to a device at a time.
    """

    device: int
    tensors: Tensors = field(default_factory=dict, repr=False)
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: ErrorCode | None = None
    round: int | None = None


class Transport(Protocol):
    """Reach devices."""

    def devices(self) -> Mapping[int, int]:
        """Return who can be asked now, and the rank of each one's adapter."""
        ...

    def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
        """Send requests, and yield answers as they come until all are there, or enough, or the time is over.

        Requests are taken one by one, so that an implementation may hold few at a time.
        """
        ...

    def wait(self) -> None:
        """Wait a while for devices to come; return when it is worth looking again."""
        ...


@runtime_checkable
class BufferedTransport(Transport, Protocol):
    """Reach devices without waiting for them, as buffered rounds do."""

    def send(self, requests: Iterable[Request]) -> None:
        """Send requests, and wait for nothing."""
        ...

    def poll(self, seconds: float | None) -> Iterator[Answer]:
        """Yield answers to what was sent, as they come, until nothing is under way or the time is over.

        More may be sent between two answers. Answers that were not taken out are there for the next poll.
        """
        ...
