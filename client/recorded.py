"""Recorded devices: what devices have to learn from, prepared beforehand, in a folder of a whole fleet.

    fleet.toml                       the base model, the adapters' shape, how they are trained
    devices/000017/lessons.jsonl     rows with the round from which they are there
    devices/000017/memory            what the device keeps between rounds (made when it first takes part)

Simulated fleets of any size live like this on the disk, and one process plays any of their devices on one loaded model.
A device of a real user is a `Device`; both take part in the same way.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import tomli_w
from pydantic import Field

from client.adapters import PERSONAL, SHARED, AdaptedModel, AdapterConfig
from client.dialogue import Example
from client.durable import make_directory, replace_file, storage_errors
from client.finetuning import FineTuneConfig
from client.model import load_model
from client.participant import FileMemory, Participant
from florilegium.errors import InputError, StorageError
from florilegium.settings import Settings

__all__ = ["FleetSettings", "Lesson", "RecordedFleet", "open_fleet", "release"]

_FLEET: Final = "fleet.toml"
_LESSONS: Final = "lessons.jsonl"


class FleetSettings(Settings):
    """What all devices of a recorded fleet have in common.

    Attributes:
        model: "seedling", a Hub name or a local path.
        dtype: the weights' type.
        device: where the model is.
        adapter: shape of the shared and of the personal adapter.
        ranks: the rank of each device that has another than `adapter`, by its number.
        finetuning: how local steps are taken, where the server does not say.
    """

    model: str = "seedling"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    ranks: dict[str, int] = Field(default_factory=dict)
    finetuning: FineTuneConfig = Field(default_factory=FineTuneConfig)

    def shape(self, device: int) -> AdapterConfig:
        """Return the shape of a device's adapters; α follows the rank, so that α / rank is the same for all."""
        rank = self.ranks.get(str(device), self.adapter.rank)
        scale = self.adapter.alpha / self.adapter.rank
        return AdapterConfig(**(asdict(self.adapter) | {"rank": rank, "alpha": scale * rank}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A row, and the round from which the device has it.

    Attributes:
        example: what to learn.
        since: the first round that may use it; 1 is there from the beginning.
    """

    example: Example
    since: int = 1


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

    def record(self, device: int, lessons: Iterable[Lesson]) -> None:
        """Write what a device has to learn from, for its owner only."""
        lines = [json.dumps(asdict(lesson.example) | {"since": lesson.since}) for lesson in lessons]
        place = self._place(device)
        with storage_errors(place):
            make_directory(place)
            replace_file(place / _LESSONS, "".join(f"{line}\n" for line in lines).encode())

    def examples(self, device: int, round_number: int) -> list[Example]:
        """Return the rows that a device has in a round.

        Raises:
            InputError: the file is not there or damaged; the message names the line.
        """
        path = self._place(device) / _LESSONS
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {type(error).__name__}", "record the device anew") from None
        found = []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                values: Mapping[str, object] = json.loads(line)
                since = int(str(values["since"]))
                example = Example(**{key: str(value) for key, value in values.items() if key != "since"})
            except (ValueError, TypeError, KeyError):
                raise InputError(f"{path}: line {number} is no lesson", "record the device anew") from None
            if since <= round_number:
                found.append(example)
        return found

    def participant(self, device: int) -> Participant:
        """Return a device, on the process's model; the one returned before must not be used any more."""
        model = _adapted(self.settings, self.settings.shape(device))
        return Participant(model, FileMemory(self._place(device) / "memory"), f"device-{device}")

    def rank(self, device: int) -> int:
        """Return the rank of a device's adapters."""
        return self.settings.shape(device).rank

    def _place(self, device: int) -> Path:
        return self.folder / "devices" / f"{device:06d}"


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
