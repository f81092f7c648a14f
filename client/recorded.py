"""Recorded devices: what devices have to learn from, prepared beforehand, in a folder of a whole fleet.

    fleet.toml                       the base model, the adapters' shape, how they are trained
    devices/000017/lessons.jsonl     rows with the rounds in which they are there
    devices/000017/holdout.jsonl     the same of rows that are never trained on, for the device's gate
    devices/000017/memory            what the device keeps between rounds (made when it first takes part)
    devices/000017/ledger            its releases under private plans (made at the first)

Simulated fleets of any size live like this on the disk, and one process plays any of their devices on one loaded model.
A device of a real user is a `Device`; both take part in the same way.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

import tomli_w
from pydantic import Field

from client.adapters import PERSONAL, SHARED, AdaptedModel, AdapterConfig
from client.bounds import LocalBounds
from client.dialogue import Example
from client.durable import make_directory, replace_file, storage_errors
from client.finetuning import FineTuneConfig
from client.model import load_model
from client.participant import Assignment, FileMemory, Participant, own_ledger
from client.rows import limit_children
from florilegium.errors import InputError, StorageError
from florilegium.settings import Settings
from privacy.device_level import DeviceLevel

__all__ = ["FleetSettings", "Lesson", "RecordedDevice", "RecordedFleet", "open_fleet", "release"]

_FLEET: Final = "fleet.toml"
_LESSONS: Final = "lessons.jsonl"
_HOLDOUT: Final = "holdout.jsonl"
_MEMORY: Final = "memory"
_LEDGER: Final = "ledger"


class FleetSettings(Settings):
    """What all devices of a recorded fleet have in common.

    Attributes:
        model: "seedling", a Hub name or a local path.
        dtype: the weights' type.
        device: where the model is.
        adapter: shape of the shared and of the personal adapter.
        ranks: the rank of each device that has another than `adapter`, by its number.
        finetuning: how local steps are taken, where the server does not say.
        bounds: what every device makes of what a server asks.
        rows: the folder of another fleet that has the devices' rows, from this one's; None for this one itself.
        max_releases: k, the most that a device releases, by its own ledger, whatever a plan allows and private or not;
            None for the plan's number of rounds.
    """

    model: str = "seedling"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    ranks: dict[str, int] = Field(default_factory=dict)
    finetuning: FineTuneConfig = Field(default_factory=FineTuneConfig)
    bounds: LocalBounds = Field(default_factory=LocalBounds)
    rows: Path | None = None
    max_releases: int | None = Field(None, ge=0)

    def shape(self, device: int) -> AdapterConfig:
        """Return the shape of a device's adapters; α follows the rank, so that α / rank is the same for all."""
        rank = self.ranks.get(str(device), self.adapter.rank)
        scale = self.adapter.alpha / self.adapter.rank
        return AdapterConfig(**(asdict(self.adapter) | {"rank": rank, "alpha": scale * rank}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A row, and the rounds in which the device has it.

    Attributes:
        example: what to learn.
        since: the first round that may use it; 1 is there from the beginning.
        until: the last one; None if it stays.

    Raises:
        InputError: there is no such round.
    """

    example: Example
    since: int = 1
    until: int | None = None

    def __post_init__(self) -> None:
        if self.since < 1 or (self.until is not None and self.until < self.since):
            raise InputError(f"a lesson is there from round {self.since} to {self.until}", "count rounds from 1")

    def is_there(self, round_number: int) -> bool:
        """Whether a round may use it."""
        return self.since <= round_number and (self.until is None or round_number <= self.until)


class RecordedFleet:
    """A folder of recorded devices.

    Args:
        folder: made by `create`.

    Raises:
        StorageError: there is no fleet.
        ConfigError: its settings are wrong.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / _FLEET).is_file():
            raise StorageError(f"{folder} holds no {_FLEET}", "make the fleet first")
        self.folder = folder
        self.settings = FleetSettings.load(folder / _FLEET)

    @classmethod
    def create(cls, folder: Path, settings: FleetSettings) -> RecordedFleet:
        """Make the folder; devices are added with `record`."""
        with storage_errors(folder):
            make_directory(folder / "devices")
            values = settings.model_dump(mode="json", exclude_none=True)
            replace_file(folder / _FLEET, tomli_w.dumps(values).encode())
        return cls(folder)

    def branch(self, folder: Path, **changes: object) -> RecordedFleet:
        """Return a fleet of devices with the same rows that remember nothing yet; if it is there already, as it is.

        Args:
            folder: the new fleet's; the rows stay where they are.
            changes: of its settings.
        """
        if not (folder / _FLEET).exists():
            rows = Path(os.path.relpath(self._rows, folder))
            self.create(folder, self.settings.model_copy(update={"rows": rows, **changes}))
        return RecordedFleet(folder)

    def record(self, device: int, lessons: Iterable[Lesson], holdout: Iterable[Lesson] = ()) -> None:
        """Write what a device has to learn from, and what its gate judges by, for its owner only."""
        place = _place(self._rows, device)
        with storage_errors(place):
            make_directory(place)
            replace_file(place / _LESSONS, _lines(lessons))
            replace_file(place / _HOLDOUT, _lines(holdout))

    def examples(self, device: int, round_number: int, *, synthesis_count: int | None = None) -> list[Example]:
        """Return the rows that a device has in a round.

        Args:
            device: which.
            round_number: from 1.
            synthesis_count: synthesized rows of each dialogue that are used, at most, the first ones; None for all.

        Raises:
            InputError: the file is not there or damaged; the message names the line.
        """
        rows = _read(_place(self._rows, device) / _LESSONS, round_number)
        return rows if synthesis_count is None else limit_children(rows, synthesis_count)

    def holdout(self, device: int, round_number: int) -> list[Example]:
        """Return the rows that a device judges by in a round.

        Raises:
            InputError: the file is not there or damaged; the message names the line.
        """
        return _read(_place(self._rows, device) / _HOLDOUT, round_number)

    def participant(
        self, device: int, *, dropout: float | None = None, privacy: DeviceLevel | None = None
    ) -> Participant:
        """Return a device, on the process's model; the one returned before must not be used any more.

        Args:
            device: which.
            dropout: of its adapters, where the server asks for another than the fleet's.
            privacy: of the plan; then the device charges its ledger.
        """
        shape = self.settings.shape(device)
        model = _adapted(self.settings, shape if dropout is None else replace(shape, dropout=dropout))
        place = _place(self.folder, device)
        ledger = own_ledger(place / _LEDGER, privacy, max_releases=self.settings.max_releases)
        return Participant(model, FileMemory(place / _MEMORY), f"device-{device}", ledger=ledger)

    def member(self, device: int) -> RecordedDevice:
        """Return a device as coordinated rounds see it."""
        return RecordedDevice(self, device)

    @property
    def _rows(self) -> Path:
        """The folder of the fleet that has the rows."""
        return self.folder if self.settings.rows is None else self.folder / self.settings.rows


@dataclass(frozen=True, slots=True)
class RecordedDevice:
    """A device of a recorded fleet as a `client.member.Member`: nobody talks with it, so it has nothing to choose."""

    fleet: RecordedFleet
    number: int

    @property
    def shape(self) -> AdapterConfig:
        """The shape of its adapters."""
        return self.fleet.settings.shape(self.number)

    @property
    def bounds(self) -> LocalBounds:
        """What it makes of what a server asks."""
        return self.fleet.settings.bounds

    @property
    def finetuning(self) -> FineTuneConfig:
        """How it takes local steps."""
        return self.fleet.settings.finetuning

    def examples(self, round_number: int, *, synthesis_count: int | None = None) -> list[Example]:
        """Return its rows in a round."""
        return self.fleet.examples(self.number, round_number, synthesis_count=synthesis_count)

    def holdout(self, round_number: int) -> list[Example]:
        """Return what it judges by in a round."""
        return self.fleet.holdout(self.number, round_number)

    def participant(self, *, dropout: float | None = None, privacy: DeviceLevel | None = None) -> Participant:
        """Return its part in a round."""
        return self.fleet.participant(self.number, dropout=dropout, privacy=privacy)

    def choose(self, participant: Participant, task: Assignment) -> None:
        """Do nothing."""


def _place(fleet: Path, device: int) -> Path:
    return fleet / "devices" / f"{device:06d}"


def _lines(lessons: Iterable[Lesson]) -> bytes:
    rows = (asdict(lesson.example) | {"since": lesson.since, "until": lesson.until} for lesson in lessons)
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def _read(path: Path, round_number: int) -> list[Example]:
    """Return the rows of a file that are there in a round."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {type(error).__name__}", "record the device anew") from None
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            values = json.loads(line)
            since, until = int(values.pop("since")), values.pop("until", None)
            lesson = Lesson(example=Example(**values), since=since, until=None if until is None else int(until))
        except (ValueError, TypeError, KeyError, AttributeError, InputError):
            raise InputError(f"{path}: line {number} is no lesson", "record the device anew") from None
        if lesson.is_there(round_number):
            found.append(lesson.example)
    return found


def _adapted(settings: FleetSettings, shape: AdapterConfig) -> AdaptedModel:
    """Return the process's one model, with slots of this shape."""
    global _present  # noqa: PLW0603 - one model is in memory, whoever is played
    key = (settings.model, settings.dtype, settings.device, shape)
    if _present is None or _present[0] != key:
        if _present is not None:
            _present[1].detach()
            _present = None
        base = load_model(settings.model, dtype=settings.dtype, device=settings.device)
        _present = key, AdaptedModel(base, shape, slots=(SHARED, PERSONAL))
    return _present[1]


_present: tuple[object, AdaptedModel] | None = None


@functools.cache
def open_fleet(folder: Path) -> RecordedFleet:
    """Return a fleet, read once a process."""
    return RecordedFleet(folder)


def release() -> None:
    """Take the process's model off its adapters, so that it may be used for something else."""
    global _present  # noqa: PLW0603
    if _present is not None:
        _present[1].detach()
        _present = None
