"""Checkpoints of a coordinated run: all that the next round depends on, in one file that is replaced whole.

There is no generator to save: cohorts, codecs and initial factors are functions of (seed, round). A server that is
killed at any instruction goes on from the last round that was written, and ends as if it had never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from client.durable import make_directory, remove_drafts, replace_file, storage_errors
from florilegium.errors import ConfigError, StorageError
from florilegium.tensors import Tensors
from strategies.gathering import Shared

__all__ = ["Progress", "RoundLog", "load_progress", "save_progress"]

_FILE = "coordination.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundLog:
    """What one round did; numbers only.

    Attributes:
        round: its number.
        asked: devices asked, in all attempts.
        taken: replies merged.
        refused: devices whose reply was refused, with the reason's code.
        failed: devices that sent an error, with its code.
        silent: devices that did not answer in time.
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
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is.

    Attributes:
        identity: what the run is; another cannot go on from here.
        round: rounds done.
        shared: what the server holds after them.
        participations: rounds that each device took part in.
    """

    identity: str
    round: int
    shared: Shared
    participations: Mapping[int, int] = field(default_factory=dict)


def save_progress(directory: Path, progress: Progress) -> None:
    """Replace the checkpoint.

    Raises:
        StorageError: the disk is full or refuses; the last checkpoint is intact.
    """
    sections = {"state": progress.shared.state, "moments": progress.shared.moments, "change": progress.shared.change}
    tensors = {
        f"{section}:{key}": tensor.contiguous() for section, held in sections.items() for key, tensor in held.items()
    }
    about = {
        "identity": progress.identity,
        "round": progress.round,
        "participations": {str(device): count for device, count in sorted(progress.participations.items())},
        "order": list(tensors),  # a file sorts its tensors, and sums and draws follow the order of keys
    }
    with storage_errors(directory):
        make_directory(directory)
        remove_drafts(directory)
        replace_file(directory / _FILE, save(_apart(tensors), metadata={"about": json.dumps(about)}))


def load_progress(directory: Path, identity: str) -> Progress | None:
    """Return where a run is, None if it has not begun.

    Raises:
        StorageError: the checkpoint is damaged.
        ConfigError: it is another run's.
    """
    path = directory / _FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        problem = f"{path} is no readable checkpoint: {type(error).__name__}"
        raise StorageError(problem, "delete it to start the run anew") from error
    if about["identity"] != identity:
        raise ConfigError(
            f"{directory} holds a run with other settings or another model",
            "name another directory, or delete this one",
        )
    sections: dict[str, Tensors] = {"state": {}, "moments": {}, "change": {}}
    for name in about["order"]:
        section, _, key = name.partition(":")
        sections[section][key] = tensors[name]
    counts = {int(device): int(count) for device, count in about["participations"].items()}
    return Progress(identity=identity, round=int(about["round"]), shared=Shared(**sections), participations=counts)


def _apart(tensors: Tensors) -> Tensors:
    """Give every tensor memory of its own: a file holds none twice."""
    return {key: tensor.clone() for key, tensor in tensors.items()}
