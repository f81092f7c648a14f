"""AdapterStore: numbered versions of a device's adapters, and which of them is in use.

    versions/0007/<slot>/adapter_config.json, adapter_model.safetensors     PEFT's own format
    versions/0007/metrics.json                                              why it was promoted, or not
    current.json                                                            the promoted version and those before it

A version is written in a hidden folder and renamed into place; the pointer is replaced atomically. So a process that
dies at any instruction leaves the pointer on a whole version, and hidden leftovers are removed at the next start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors.numpy import save
from safetensors.torch import load_file
from torch import Tensor

from client.durable import (
    make_directory,
    remove_drafts,
    replace_file,
    storage_errors,
    sync_directory,
    write_new_file,
)
from florilegium.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from peft import LoraConfig

    from client.adapters import AdaptedModel

__all__ = ["AdapterStore", "Adapters", "Metric", "Version"]

Metric = float | int | str | bool | None
_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One saved version: its number, its folder, the slots in it and what was measured of it."""

    number: int
    path: Path
    slots: tuple[str, ...]
    metrics: Mapping[str, Metric] = field(default_factory=dict)


class Adapters(Protocol):
    """What is saved of an `AdaptedModel`; adapters without their base can be saved as well."""

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots' names."""
        ...

    def peft_config(self, slot: str) -> LoraConfig:
        """Return PEFT's configuration of a slot."""
        ...

    def state(self, slot: str) -> dict[str, Tensor]:
        """Return a slot's tensors, keyed as PEFT's files key them."""
        ...


class AdapterStore:
    """The versions under one folder; for one process at a time.

    Args:
        directory: made, for the owner only, if it is not there; leftovers of a killed process are removed.
        read_only: look while another process may be writing; the folder is left as it is.

    Raises:
        StorageError: the folder cannot be used.
    """

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        self.directory = Path(directory)
        self._versions = self.directory / "versions"
        if not read_only:
            with storage_errors(self.directory):
                make_directory(self._versions)
                self._sweep()
        self._history = self._read_history()

    @property
    def current(self) -> int | None:
        """The promoted version; None stands for the bare base."""
        return self._history[-1] if self._history else None

    @property
    def numbers(self) -> list[int]:
        """The numbers of all saved versions, oldest first."""
        return sorted(int(path.name) for path in self._versions.glob("[0-9]*") if path.name.isdigit())

    def versions(self) -> list[Version]:
        """Return all saved versions, oldest first."""
        return [self.version(number) for number in self.numbers]

    def version(self, number: int) -> Version:
        """Return one saved version.

        Raises:
            StorageError: there is none of that number.
        """
        path = self._path(number)
        if not path.is_dir():
            raise StorageError(f"{self.directory} holds no adapter version {number}", f"it holds {self.numbers}")
        slots = tuple(sorted(folder.name for folder in path.iterdir() if folder.is_dir()))
        return Version(number=number, path=path, slots=slots, metrics=_read_json(path / "metrics.json"))

    def save_candidate(
        self,
        model: Adapters,
        *,
        metrics: Mapping[str, Metric] | None = None,
        slots: Iterable[str] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> int:
        """Save the model's adapters as a new version, not yet in use, and return its number.

        Args:
            model: whose.
            metrics: what was measured of it.
            slots: which; all of them if None.
            files: what else belongs to the version, by file name.

        Raises:
            StorageError: the disk is full or refuses; the present version is as before.
        """
        number = max([0, *self.numbers, *self._history]) + 1
        draft = self._versions / f".{number:04d}"
        with storage_errors(self._path(number)):
            try:
                _remove(draft)
                draft.mkdir(mode=0o700)
                for slot in model.slots if slots is None else slots:
                    _write_slot(draft / slot, model, slot)
                for name, content in {"metrics.json": _json(dict(metrics or {})), **(files or {})}.items():
                    write_new_file(draft / name, content)
                sync_directory(draft)
                draft.rename(self._path(number))
                sync_directory(self._versions)
            except OSError:
                _remove(draft)
                raise
        return number

    def promote(self, number: int) -> None:
        """Put a saved version in use.

        Raises:
            StorageError: there is no such version, or the disk refuses; the present version is as before.
        """
        self.version(number)
        self._write_history([*(old for old in self._history if old != number), number])

    def roll_back(self) -> int | None:
        """Put the version promoted before the present one in use again, and return it (None: the bare base)."""
        self._write_history(self._history[:-1])
        return self.current

    def retire(self) -> None:
        """Put the bare base in use; no roll-back leads to the versions of before."""
        self._write_history([])

    def load(self, model: AdaptedModel, number: int | None = None) -> int | None:
        """Copy a version (the present one by default) into the model's slots and return its number.

        With no version in use the slots are left alone and None is returned.

        Raises:
            StorageError: the version is not there or cannot be read.
            InputError: its tensors do not fit the slots.
        """
        number = self.current if number is None else number
        if number is None:
            return None
        version = self.version(number)
        for slot in version.slots:
            model.load_state(slot, _read_weights(version.path / slot / _WEIGHTS))
        return number

    def prune(self, *, keep: int) -> list[int]:
        """Delete the oldest versions but `keep`, never the present one, and return the deleted numbers.

        Raises:
            ConfigError: `keep` is less than 1.
        """
        if keep < 1:
            raise ConfigError(f"keep must be >= 1, got {keep}", "keep at least one version")
        doomed = [number for number in self.numbers[:-keep] if number != self.current]
        self._delete(doomed)
        return doomed

    def clear(self) -> None:
        """Delete all versions; the bare base is in use."""
        self._delete(self.numbers)

    def _delete(self, doomed: Collection[int]) -> None:
        with storage_errors(self.directory):
            self._sweep()
            if set(doomed) & set(self._history):  # first, so that no roll-back can meet a version half deleted
                self._write_history([number for number in self._history if number not in doomed])
            for number in doomed:
                trash = self._path(number).rename(self._versions / f".{number:04d}.deleted")
                _remove(trash)
            sync_directory(self._versions)

    def _sweep(self) -> None:
        """Remove what a killed or failed call left."""
        for leftover in self._versions.glob(".*"):
            _remove(leftover)
        remove_drafts(self.directory)

    def _path(self, number: int) -> Path:
        return self._versions / f"{number:04d}"

    def _read_history(self) -> list[int]:
        pointer = self.directory / "current.json"
        history = _read_json(pointer).get("promoted", []) if pointer.exists() else []
        if not (isinstance(history, list) and all(isinstance(number, int) for number in history)):
            raise StorageError(f"{pointer} holds no list of versions", "delete it to return to the bare base")
        return [number for number in history if self._path(number).is_dir()]

    def _write_history(self, history: list[int]) -> None:
        pointer = self.directory / "current.json"
        with storage_errors(pointer):
            replace_file(pointer, _json({"promoted": history}))
        self._history = history


def _write_slot(folder: Path, model: Adapters, slot: str) -> None:
    folder.mkdir(mode=0o700)
    config = model.peft_config(slot).to_dict() | {"inference_mode": True}  # type: ignore[no-untyped-call]
    # By way of NumPy, which a slot's float32 allows: torch's own takes five times as long for so many small tensors.
    arrays = {key: tensor.cpu().contiguous().numpy() for key, tensor in model.state(slot).items()}
    write_new_file(folder / _CONFIG, _json(config))
    write_new_file(folder / _WEIGHTS, save(arrays, metadata={"format": "pt"}))
    sync_directory(folder)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise StorageError(f"{path} cannot be read: {type(error).__name__}", "roll back to another version") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {type(error).__name__}", "roll back to another version") from error
    return dict(content)


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, indent=2, sort_keys=True, default=_plain).encode() + b"\n"


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else str(value)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
