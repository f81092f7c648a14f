"""PersonalModel: the base model with its user's adapter, for one thread at a time.

It is loaded when it is first needed. Outside a block of `changing` its slots hold the adapters in use, or blank ones,
which change no answer. A device that takes part in coordinated rounds has a slot for a shared adapter, too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from client.adapters import PERSONAL, SHARED, AdaptedModel, AdapterStore, Version
from client.dialogue import derive_seed
from client.model import BaseModel, load_model
from client.settings import DeviceSettings
from florilegium.errors import StorageError

__all__ = ["PersonalModel"]

_log = logging.getLogger(__name__)


class PersonalModel:
    """A device's model.

    Args:
        directory: of the device, for messages.
        settings: which base model, and the adapter's shape.
        adapters: the adapter's versions, and which is in use.
        base: the base model, if it is loaded already.
        on_load: called with the model before it is first used.
        on_misfit: called before an adapter in use that is of another base model or shape gives way to the bare base.
        coordinated: whether there is a slot for a shared adapter.
        closed: whether it may be used at all.
    """

    def __init__(
        self,
        directory: Path,
        settings: DeviceSettings,
        adapters: AdapterStore,
        *,
        base: BaseModel | None = None,
        on_load: Callable[[AdaptedModel], None],
        on_misfit: Callable[[], None],
        coordinated: bool = False,
        closed: bool = False,
    ) -> None:
        self._directory, self._settings, self._adapters, self._base = directory, settings, adapters, base
        self._on_load, self._on_misfit, self._closed = on_load, on_misfit, closed
        self._slots = (SHARED, PERSONAL) if coordinated else (PERSONAL,)
        self._adapted: AdaptedModel | None = None
        self._lock = threading.RLock()  # held while the model computes

    @property
    def adapted(self) -> AdaptedModel:
        """The base model with the slots of the adapters.

        Raises:
            ModelError: it cannot be loaded.
            StorageError: it is closed, or the adapter in use cannot be read.
        """
        with self._lock:
            if self._closed:
                raise StorageError(f"{self._directory} is closed, or open for looking only", "open it for use")
            if self._adapted is None:
                self._adapted = self._load()
            return self._adapted

    def close(self) -> None:
        """Take the adapter off the base model; nobody may use it any more."""
        with self._lock:
            self._closed = True
            if self._adapted is not None:
                self._adapted.detach()
                self._adapted = None

    @contextmanager
    def active(self, *slots: str) -> Iterator[BaseModel]:
        """Have the model for oneself in the block, wearing exactly these adapters."""
        with self._lock, self.adapted.active(*slots):
            yield self.adapted.base

    @contextmanager
    def in_use(self) -> Iterator[BaseModel]:
        """Have the model for oneself in the block, wearing the adapters in use."""
        with self.active(*self._slots) as base:
            yield base

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Have the model for oneself while adapters change; whatever happens, it is left with the one in use."""
        with self._lock:
            try:
                yield
            finally:
                if self._adapted is not None:
                    self._use_present(self._adapted)

    def reset(self) -> None:
        """Make the slots blank, as every fresh adapter begins."""
        _reset(self.adapted, self._settings, self._slots)

    def fits(self, version: Version) -> bool:
        """Return whether a version was made for this base model and shape."""
        return _fits(version, self.adapted)

    def _load(self) -> AdaptedModel:
        settings = self._settings
        base = self._base or load_model(
            settings.model, dtype=settings.dtype, quantization=settings.quantization, device=settings.device
        )
        model = AdaptedModel(base, settings.adapter, slots=self._slots, seed=settings.seed)
        try:
            self._on_load(model)
            self._use_present(model)
        except BaseException:
            model.detach()
            raise
        return model

    def _use_present(self, model: AdaptedModel) -> None:
        present = self._adapters.current
        if present is not None and not _fits(self._adapters.version(present), model):
            _log.warning(
                "%s: adapter version %d is of another base model or shape, so the bare base model is in use until the "
                "next learning round",
                self._directory,
                present,
            )
            self._on_misfit()
            self._adapters.retire()
        number = self._adapters.load(model)
        worn = () if number is None else self._adapters.version(number).slots
        _reset(model, self._settings, set(self._slots) - set(worn))


def _fits(version: Version, model: AdaptedModel) -> bool:
    same_shape = version.metrics.get("adapter") == model.fingerprint(PERSONAL)
    return same_shape and set(version.slots) <= set(model.slots)


def _reset(model: AdaptedModel, settings: DeviceSettings, slots: Iterable[str]) -> None:
    for slot in slots:
        model.reset(slot, derive_seed(settings.seed, "adapter"))
