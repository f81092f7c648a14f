"""Registry: the versions of a run's shared adapter, and which of them is served.

    versions/0007/shared/adapter_config.json, adapter_model.safetensors     PEFT's own format
    versions/0007/residual.safetensors                                      where the rule has one
    versions/0007/metrics.json                                              numbers of the round
    current.json, pinned                                                    the version served

`PeftModel.from_pretrained` loads a version. Where a rule trains a core between fixed factors (fedsb), B is exported
times the core, which is the same adapter. Where it folds what factors cannot hold into the base (fedex, flora), that
residual is a file beside the adapter: by layer, `(outputs, inputs)`, to be added to the frozen weights, as
`AdaptedModel.folded` does. Where a factor stays on the devices (fedsa), its place holds what a new device starts with.

The newest version is served until somebody rolls back or promotes an older one; then that one stays, whatever comes,
until the newest is promoted. Every call locks the folder and reads it afresh, so an operator may look and roll back
while the server runs. A process that dies at any instruction leaves the pointer on a whole version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from client.adapter_store import AdapterStore, Version
from client.adapters import SHARED
from client.durable import replace_file, storage_errors, sync_directory
from florilegium.errors import StorageError
from florilegium.tensors import Tensors
from server.lock import locked
from strategies.factors import key_of, layers
from strategies.rule import Loaded

__all__ = ["Registry"]

_RESIDUAL: Final = "residual.safetensors"
_PINNED: Final = "pinned"
_LOCK: Final = "lock"
_ROUND: Final = ("run", "round")  # the numbers that say of which round a version is
_PREFIX: Final = "base_model.model."  # of layers in PEFT's files


class Registry:
    """The versions of one run.

    Args:
        directory: made at the first save.
        keep: versions that are kept; the one served is never deleted.
    """

    def __init__(self, directory: Path, *, keep: int = 5) -> None:
        self.directory, self._keep = directory, keep

    def versions(self) -> list[Version]:
        """Return all versions, the oldest first.

        Raises:
            StorageError: one cannot be read.
        """
        with self._look() as store:
            return store.versions()

    @property
    def current(self) -> int | None:
        """The version served; None for the bare base.

        Raises:
            StorageError: the pointer cannot be read.
        """
        with self._look() as store:
            return store.current

    @property
    def is_pinned(self) -> bool:
        """Whether the version served stays when newer ones come."""
        return (self.directory / _PINNED).exists()

    def residual(self, number: int) -> Tensors:
        """Return what a version adds to the frozen weights, by layer; nothing for most rules.

        Raises:
            StorageError: there is no such version, or it cannot be read.
        """
        with self._look() as store:
            path = store.version(number).path / _RESIDUAL
            try:
                return load_file(path) if path.exists() else {}
            except (OSError, SafetensorError) as error:
                problem = f"{path} cannot be read: {type(error).__name__}"
                raise StorageError(problem, "promote another version") from error

    def save(self, loaded: Loaded, *, scale: float, metrics: Mapping[str, float]) -> int:
        """Save a version, serve it unless another one is pinned, delete the oldest, and return its number.

        If the newest version is of the same run and round already, nothing but what is left of that is done.

        Args:
            loaded: the adapter, as the rule gives it.
            scale: s = α / rank.
            metrics: numbers of the round; "run" and "round" tell it from others.

        Raises:
            StorageError: the disk is full or refuses; the version served is as before.
        """
        with self._lock() as store:
            newest = store.numbers[-1] if store.numbers else None
            known = {} if newest is None else store.version(newest).metrics
            if newest is None or any(known.get(name) != metrics.get(name) for name in _ROUND):
                residual = {layer: tensor.contiguous() for layer, tensor in (loaded.residual or {}).items()}
                files = {_RESIDUAL: save(residual, metadata={"format": "pt"})} if residual else {}
                newest = store.save_candidate(_Exported(loaded, scale), metrics=metrics, files=files)
            if not self.is_pinned and store.current != newest:
                store.promote(newest)
            store.prune(keep=self._keep)
        return newest

    def promote(self, number: int) -> None:
        """Serve a version; an older one than the newest stays when others come.

        Raises:
            StorageError: there is no such version, or the disk refuses.
        """
        with self._lock() as store:
            if number != max(store.numbers, default=None):
                store.version(number)
                self._pin()
            store.promote(number)
            if number == max(store.numbers):
                self._unpin()

    def roll_back(self) -> int | None:
        """Serve the version served before this one, let it stay, and return it; None for the bare base.

        Raises:
            StorageError: there is no version, or the disk refuses.
        """
        with self._lock() as store:
            if store.current is None:
                raise StorageError(f"{self.directory} serves no version", "there is nothing to roll back")
            self._pin()
            return store.roll_back()

    @contextmanager
    def _look(self) -> Iterator[AdapterStore]:
        """Have what is there, beside others who look; before the first save that is nothing, and nothing is made."""
        path = self.directory / _LOCK
        with ExitStack() as held:
            if path.exists():
                held.enter_context(locked(path, shared=True))
            yield AdapterStore(self.directory, read_only=True)

    @contextmanager
    def _lock(self) -> Iterator[AdapterStore]:
        with locked(self.directory / _LOCK):
            yield AdapterStore(self.directory)

    def _pin(self) -> None:
        with storage_errors(self.directory):
            replace_file(self.directory / _PINNED, b"")

    def _unpin(self) -> None:
        with storage_errors(self.directory):
            (self.directory / _PINNED).unlink(missing_ok=True)
            sync_directory(self.directory)


@dataclass(frozen=True, slots=True)
class _Exported:
    """An adapter without its base, as an `AdapterStore` saves it."""

    loaded: Loaded = field(repr=False)
    scale: float

    @property
    def slots(self) -> tuple[str, ...]:
        return (SHARED,)

    def state(self, slot: str) -> Tensors:
        del slot
        core = {key_of(layer, "B"): matrix for layer, matrix in (self.loaded.core or {}).items()}
        return {key: tensor @ core[key] if key in core else tensor for key, tensor in self.loaded.adapter.items()}

    def peft_config(self, slot: str) -> LoraConfig:
        del slot
        pairs = layers(self.loaded.adapter)
        rank = next(iter(pairs.values())).rank
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=self.scale * rank,  # type: ignore[arg-type]  # PEFT divides it by the rank, and takes any number
            target_modules=[layer.removeprefix(_PREFIX) for layer in pairs],
        )
