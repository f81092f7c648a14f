"""A device's own count of its releases: written to the disk before each release, and never lowered.

One line of JSON for each round, appended and flushed before `charge` returns. Spent is the count of lines, *readable or
not*: a line that a killed process or a failing disk left torn counts as one charge of an unknown round. So no crash,
and no damage that spares the line ends, gives a release back; at worst a torn line costs one that never happened.

A round is charged once. A second request for it is refused, even if the first was never answered: two answers to one
charge would tell more than was booked. What was released for it may be sent again as it is, from where it was kept.

Every charge locks the file and reads it afresh, so several threads and processes may share it. Who can delete the file
can deny all charges; keep it in the device's folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from florilegium.errors import ConfigError, InputError, PrivacyError, StorageError

__all__ = ["Charge", "Ledger", "PrivacyBudgetError", "RoundChargedError"]

_ROUND_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LARGEST: Final = sys.float_info.max
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


class PrivacyBudgetError(PrivacyError):
    """Report a release that would exceed the device's budget."""


class RoundChargedError(PrivacyError):
    """Report a round that was charged before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One line of the ledger.

    Attributes:
        round_id: what was charged; None where the line is torn.
        mechanism: the release in numbers (clip_norm, noise_multiplier, delta, …); empty where the line is torn.
    """

    round_id: str | None
    mechanism: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The ledger of one device.

    Attributes:
        path: the file; made, with mode 0600, at the first charge, in a folder that exists.
        max_rounds: k, the most charges.

    Raises:
        ConfigError: `max_rounds` is negative.
    """

    path: Path
    max_rounds: int

    def __post_init__(self) -> None:
        if self.max_rounds < 0:
            raise ConfigError(f"max_rounds must be >= 0, got {self.max_rounds}", "0 lets nothing be released")

    def charges(self) -> tuple[Charge, ...]:
        """Return all charges, the oldest first.

        Raises:
            StorageError: the file cannot be read.
        """
        with _storage_errors(self.path):
            try:
                data = self.path.read_bytes()
            except FileNotFoundError:
                return ()
        return tuple(_parse(line) for line in _lines(data))

    @property
    def spent(self) -> int:
        """How many charges there are."""
        return len(self.charges())

    @property
    def remaining(self) -> int:
        """How many more there may be."""
        return max(0, self.max_rounds - self.spent)

    def charge(self, round_id: str, mechanism: Mapping[str, float]) -> Charge:
        """Book a release, durably; the caller releases only after this returns.

        Args:
            round_id: 1 to 128 letters, digits and `. _ : -`; a run's name and a round's number, say.
            mechanism: finite numbers by name.

        Raises:
            InputError: `round_id` or `mechanism` is malformed.
            RoundChargedError: the round was charged before.
            PrivacyBudgetError: `max_rounds` are spent.
            StorageError: it cannot be written; nothing may be released.
        """
        charge = _make(round_id, mechanism)
        with _storage_errors(self.path), _locked(self.path) as descriptor:
            data = _read(descriptor)
            lines = _lines(data)
            if any(_parse(line).round_id == charge.round_id for line in lines):
                raise RoundChargedError(f"round {round_id!r} was charged before", "send what was released for it again")
            if len(lines) >= self.max_rounds:
                raise PrivacyBudgetError(
                    f"{len(lines)} of {self.max_rounds} releases are spent",
                    "this device takes part in no more rounds; its owner may raise max_rounds",
                )
            if not data:
                # Before the first line is written, so that a file with a line in it is known to survive a power cut.
                _sync_directory(self.path.parent)
            _append(descriptor, _line(charge, after=data), size=len(data))
        return charge


def _make(round_id: str, mechanism: Mapping[str, float]) -> Charge:
    # A server sends the round's name: it may be anything, so a bad one is not quoted.
    if not isinstance(round_id, str) or not _ROUND_ID.fullmatch(round_id):
        raise InputError(
            "round_id must be 1 to 128 letters, digits and . _ : -, and is not", "name rounds as in 'run-7:12'"
        )
    for name, value in mechanism.items():
        if not _NAME.fullmatch(name):
            raise InputError("a number of the mechanism has a malformed name", "use small letters, digits and _")
        if type(value) not in (int, float) or not -_LARGEST <= value <= _LARGEST:
            raise InputError(f"{name} must be a finite number", "describe the mechanism in plain numbers")
    return Charge(round_id=round_id, mechanism={name: float(value) for name, value in mechanism.items()})


def _line(charge: Charge, *, after: bytes) -> bytes:
    text = json.dumps({"round": charge.round_id, "mechanism": dict(charge.mechanism)}, allow_nan=False, sort_keys=True)
    torn = after and not after.endswith(b"\n")
    return (b"\n" if torn else b"") + text.encode() + b"\n"


def _lines(data: bytes) -> list[bytes]:
    return [line for line in data.split(b"\n") if line]


def _parse(line: bytes) -> Charge:
    try:
        record = json.loads(line)
        return _make(record["round"], record["mechanism"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, InputError):
        return Charge(round_id=None, mechanism={})


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> bytes:
    parts, offset = [], 0
    while part := os.pread(descriptor, 1 << 16, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _append(descriptor: int, line: bytes, *, size: int) -> None:
    try:
        rest = line
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        # Nothing will be released: take the piece back, so that a full disk does not eat the budget.
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"{path} cannot be used: {error.strerror or type(error).__name__}"
        raise StorageError(problem, "free space or check permissions; nothing was released") from error
