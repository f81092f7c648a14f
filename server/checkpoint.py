"""Checkpoints of a coordinated run: all that the next round depends on, in one file that is replaced whole.

There is no generator to save: cohorts, codecs, hyperparameters and initial factors are functions of (seed, round). A
server that is killed at any instruction goes on from the last round that was written, and ends as if it had never
stopped. In buffered rounds that holds for the state alone: work that devices had under way is begun again.

Devices refuse rounds of a run that they are past. So a run draws a number when it begins, and without its checkpoint
the same settings begin another run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from client.durable import make_directory, remove_drafts, storage_errors
from client.sections import read_sections, write_sections
from florilegium.errors import ConfigError, StorageError
from florilegium.tensors import Tensors
from strategies.gathering import Shared

__all__ = ["Progress", "RoundLog", "load_progress", "save_progress"]

_FILE: Final = "coordination.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundLog:
    """What one round did; numbers only.

    Attributes:
        round: its number.
        asked: devices asked, in all attempts.
        taken: replies merged.
        refused: devices whose reply was refused, with the reason's code.
        failed: devices that sent an error, with its code.
        silent: devices that were waited for in vain; who was not, since enough others had replied, is none.
        improvement: the mean of what devices reported; None if nothing was, or it is private.
        staleness: the mean of how many rounds old the merged replies were; 0 but in buffered rounds.
        restarted: devices that a server which was stopped had at work, and that begin again.
        uplink_bytes: of the replies taken and refused.
        downlink_bytes: of the requests.
        seconds: wall-clock time.
    """

    round: int
    asked: int = 0
    taken: int = 0
    refused: Mapping[int, str] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    silent: int = 0
    improvement: float | None = None
    staleness: float = 0.0
    restarted: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    seconds: float = 0.0

    def numbers(self) -> dict[str, float]:
        """Return what it holds by name; of devices that were refused or failed, how many there are."""
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        held |= {"refused": len(self.refused), "failed": len(self.failed)}
        return {name: float(value) for name, value in held.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is.

    Attributes:
        identity: what the run is; another cannot go on from here.
        run: by which devices tell it from others, also from those of the same identity; 63 bits, drawn when it began.
        round: rounds done.
        shared: what the server holds after them.
        tuner: what it knows of hyperparameters.
        participations: rounds that each device took part in.
        uplink_bytes: of all rounds.
        downlink_bytes: likewise.
        metrics: numbers of the last round.
        at_work: devices that are yet to answer, in buffered rounds.
    """

    identity: str
    run: int
    round: int
    shared: Shared
    tuner: Tensors = field(default_factory=dict, repr=False)
    participations: Mapping[int, int] = field(default_factory=dict)
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    at_work: tuple[int, ...] = ()


def save_progress(directory: Path, progress: Progress) -> None:
    """Replace the checkpoint.

    Raises:
        StorageError: the disk is full or refuses; the last checkpoint is intact.
    """
    shared = progress.shared
    sections = {"state": shared.state, "moments": shared.moments, "change": shared.change, "tuner": progress.tuner}
    about = {
        "identity": progress.identity,
        "run": progress.run,
        "round": progress.round,
        "participations": {str(device): count for device, count in sorted(progress.participations.items())},
        "uplink_bytes": progress.uplink_bytes,
        "downlink_bytes": progress.downlink_bytes,
        "metrics": dict(progress.metrics),
        "at_work": progress.at_work,
    }
    with storage_errors(directory):
        make_directory(directory)
        remove_drafts(directory)
    write_sections(directory / _FILE, sections, about)


def load_progress(directory: Path, identity: str) -> Progress | None:
    """Return where a run is, None if it has not begun.

    Raises:
        StorageError: the checkpoint is damaged, or of another version.
        ConfigError: it is another run's.
    """
    path = directory / _FILE
    if not path.exists():
        return None
    remedy = "delete it to start the run anew"
    sections, about = read_sections(path, remedy=remedy)
    if about.get("identity") != identity:
        raise ConfigError(
            f"{directory} holds a run with other settings or another model",
            "name another directory, or delete this one",
        )
    try:
        counts = {int(device): int(count) for device, count in about.pop("participations").items()}
        at_work = tuple(map(int, about.pop("at_work")))
        tuner = sections.pop("tuner")
        return Progress(shared=Shared(**sections), tuner=tuner, participations=counts, at_work=at_work, **about)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"{path} is of another version: {type(error).__name__}", remedy) from error
