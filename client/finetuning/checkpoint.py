"""Checkpoints of a fine-tuning: the adapter, the optimizer and the position, in one file.

There is no generator to save: order and dropout are functions of (seed, epoch, example). A file belongs to one piece of
work, told by its fingerprint; with other examples, another seed or another start it is left aside and written over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from client.durable import make_directory, replace_file, storage_errors
from florilegium.errors import StorageError

__all__ = ["Checkpoint", "discard_checkpoint", "read_checkpoint", "write_checkpoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state after some step.

    Attributes:
        fingerprint: of the work it belongs to.
        step: steps done.
        tensors: the parameters and the optimizer's moments, all flat.
        notes: numbers that travel along (losses and counts so far, the plan).
    """

    fingerprint: str
    step: int
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


def write_checkpoint(path: Path, state: Checkpoint) -> None:
    """Put a checkpoint at `path`, atomically.

    Raises:
        StorageError: the disk is full or refuses; an older checkpoint is intact.
    """
    about = json.dumps({"fingerprint": state.fingerprint, "step": state.step, "notes": dict(state.notes)})
    data = save({name: tensor.cpu() for name, tensor in state.tensors.items()}, metadata={"state": about})
    with storage_errors(path):
        make_directory(path.parent)
        replace_file(path, data)


def read_checkpoint(path: Path, fingerprint: str) -> Checkpoint | None:
    """Return the checkpoint at `path` if there is one and it belongs to this work.

    Raises:
        StorageError: there is a file, but it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        problem = f"{path} is no readable checkpoint: {type(error).__name__}"
        raise StorageError(problem, "delete it to start the fine-tuning anew") from error
    if about["fingerprint"] != fingerprint:
        return None
    return Checkpoint(fingerprint=fingerprint, step=about["step"], tensors=tensors, notes=about["notes"])


def discard_checkpoint(path: Path) -> None:
    """Delete the checkpoint at `path`, if there is one."""
    with storage_errors(path):
        path.unlink(missing_ok=True)
