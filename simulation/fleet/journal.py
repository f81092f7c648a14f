"""The journal of a simulated fleet: when its rounds were, and what they took, as lines of JSON that hold numbers alone.

A line is on the disk before the server hears that the exchange is over. So a journal is never behind the server's
checkpoint; where a kill left it ahead, it is cut back to the checkpoint's round, and the fleet lives on from there.

In asynchronous rounds a fleet hears of a round when the server gives out work in it, and some rounds end without that:
their records bear the number of an earlier one. What a cut leaves of such rounds was done in vain.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from client.durable import make_directory, storage_errors
from florilegium.errors import ConfigError, StorageError
from simulation.fleet.tasks import Usage

__all__ = ["FleetJournal", "FleetRecord", "read_journal"]


class FleetRecord(BaseModel):
    """One exchange with a cohort; in asynchronous rounds, one device's task.

    Attributes:
        fleet: a number that tells fleets apart.
        round: the server's, from 1; in asynchronous rounds the last in which it gave out work.
        attempt: at this round, from 1; 0 in asynchronous rounds, where nothing is tried again.
        exchange: within the round, from 0.
        started_at: when the tasks were given out, seconds.
        ended_at: when the server went on.
        asked: devices that were given a task.
        heard: those whose reply came in time.
        used: what all of them spent.
        wasted: what was spent on replies that nobody heard.
        device_joules: energy that each device drew.
        busy: until when each device is at work that still is at `ended_at`, seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    fleet: int
    round: int
    attempt: int
    exchange: int
    started_at: float
    ended_at: float
    asked: int
    heard: int
    used: Usage
    wasted: Usage
    device_joules: dict[int, float]
    busy: dict[int, float]


class FleetJournal:
    """A fleet's journal.

    Args:
        path: of the file; it need not be there.
        fleet: whose it is.

    Attributes:
        fleet: the same.
        last: the last record; None if there is none.

    Raises:
        ConfigError: the file is another fleet's.
        StorageError: it is damaged, or cannot be read or written.
    """

    def __init__(self, path: Path, fleet: int) -> None:
        self._path, self.fleet = path, fleet
        self.last: FleetRecord | None = None
        with storage_errors(path):
            make_directory(path.parent)
            path.touch(mode=0o600)
        self._keep(None)

    def append(self, record: FleetRecord) -> None:
        """Add a record; it is on the disk when this returns.

        Raises:
            StorageError: the disk is full or refuses.
        """
        with storage_errors(self._path), self._path.open("ab") as file:
            file.write(record.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.last = record

    def cut(self, after_round: int) -> None:
        """Drop the records of later rounds.

        Raises:
            StorageError: the journal ends before that round, or cannot be written.
        """
        self._keep(after_round)
        ends = 0 if self.last is None else self.last.round
        if ends < after_round and (self.last is None or self.last.attempt):
            raise StorageError(
                f"{self._path} ends with round {ends}, the server's checkpoint with round {after_round}",
                "bring back the journal, or delete both to start anew",
            )

    def _keep(self, upto: int | None) -> None:
        """Keep whole lines up to a round, or all: a kill may have left half a line."""
        end, self.last = 0, None
        with storage_errors(self._path), self._path.open("r+b") as file:
            for record, length in _records(self._path, file):
                if record.fleet != self.fleet:
                    raise ConfigError(
                        f"{self._path} holds the journal of a fleet with other settings",
                        "name another file, or delete this one",
                    )
                if upto is not None and record.round > upto:
                    break
                end, self.last = end + length, record
            file.truncate(end)
            os.fsync(file.fileno())


def read_journal(path: Path) -> Iterator[FleetRecord]:
    """Yield a journal's records, one at a time.

    Raises:
        StorageError: the file is damaged or cannot be read.
    """
    try:
        with path.open("rb") as file:
            for record, _ in _records(path, file):
                yield record
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", "name a fleet's journal") from error


def _records(path: Path, file: IO[bytes]) -> Iterator[tuple[FleetRecord, int]]:
    """Yield records with the lengths of their lines, up to a line that has no end."""
    for number, line in enumerate(file, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            yield FleetRecord.model_validate_json(line), len(line)
        except ValidationError:
            raise StorageError(
                f"line {number} of {path} is damaged or of another version", "delete the file to start the run anew"
            ) from None
