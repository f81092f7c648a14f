"""Checkpoints of a fine-tuning: the adapter, the optimizer and the position, in one file.

There is no generator to save: order and dropout are functions of (seed, epoch, example). A file belongs to one piece of
work, told by its fingerprint; with other examples, another seed or another start it is left aside and written over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from client.durable import storage_errors
from client.sections import read_sections, write_sections

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
    about = {"fingerprint": state.fingerprint, "step": state.step, "notes": dict(state.notes)}
    write_sections(path, {"tensors": state.tensors}, about)


def read_checkpoint(path: Path, fingerprint: str) -> Checkpoint | None:
    """Return the checkpoint at `path` if there is one and it belongs to this work.

    Raises:
        StorageError: there is a file, but it cannot be read.
    """
    if not path.exists():
        return None
    sections, about = read_sections(path, remedy="delete it to start the fine-tuning anew")
    if about.get("fingerprint") != fingerprint:
        return None
    return Checkpoint(fingerprint=fingerprint, step=about["step"], tensors=sections["tensors"], notes=about["notes"])


def discard_checkpoint(path: Path) -> None:
    """Delete the checkpoint at `path`, if there is one."""
    with storage_errors(path):
        path.unlink(missing_ok=True)
