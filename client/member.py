"""Member: what coordinated rounds need of a device, and a user's `Device` that takes part in them.

    coordination/memory     what the device keeps between rounds; see `client.participant`
    coordination/ledger     its releases under private plans

These lie in the device's directory. It is open, and nobody else can use it, while one exchange is answered; between two
exchanges its user may talk with it. It learns from the rows that its own rounds learn from.

After its work it looks whether its hold-out likes what came of it (`client.serving`): if the gate finds the shared
adapter, with or without the personal one that was trained beside it, no worse than what the device answers with now,
they become the newest of its versions and are in use, to be rolled back and forgotten like any other. What is judged is
the shared adapter as it came down in that round. One that is folded into the base's weights is too large to keep, so
under such a rule (fedex, flora) the device goes on answering as it did.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol, Self

from client.adapters import PERSONAL, AdapterConfig
from client.annotation import annotated_examples
from client.bounds import LocalBounds
from client.device import Device
from client.dialogue import Example
from client.durable import storage_errors
from client.evaluation import evaluate, mean_scores
from client.finetuning import FineTuneConfig
from client.learning import Adapter, wearing
from client.participant import Assignment, FileMemory, Participant, own_ledger
from client.personal import PersonalModel
from client.round import KEPT_VERSIONS
from client.rows import limit_children, training_rows
from client.serving import Serving, choose_way
from privacy.device_level import DeviceLevel

__all__ = ["DeviceMember", "Member"]

# The device's values in the buffer's file.
_KEY: Final = "coordination_key"  # who it is; seeds derive from it
_SHAPE: Final = "coordination_shape"  # the base and the shape of adapters that its memory is of
_CHOSEN: Final = "coordination_chosen"  # the last exchange after which it chose


class Member(Protocol):
    """A device as coordinated rounds see it."""

    @property
    def shape(self) -> AdapterConfig:
        """The shape of its adapters."""
        ...

    @property
    def bounds(self) -> LocalBounds:
        """What it makes of what a server asks."""
        ...

    @property
    def finetuning(self) -> FineTuneConfig:
        """How it takes local steps, where the server does not say."""
        ...

    def examples(self, round_number: int, *, synthesis_count: int | None = None) -> list[Example]:
        """Return its rows in a round, with so many synthesized ones of each dialogue at most; None for all."""
        ...

    def holdout(self, round_number: int) -> list[Example]:
        """Return what it judges by in a round."""
        ...

    def participant(self, *, dropout: float | None = None, privacy: DeviceLevel | None = None) -> Participant:
        """Return its part in a round.

        Args:
            dropout: of its adapters, where the server asks for another than its own.
            privacy: of the plan; then it charges its ledger.
        """
        ...

    def choose(self, participant: Participant, task: Assignment) -> None:
        """Decide what it answers its user with, after it did what it was asked."""
        ...


class DeviceMember:
    """A user's device, opened when something beside its settings is needed, and closed when the block is left.

    Args:
        directory: of the device.

    Raises:
        StorageError: there is no device.
        ConfigError: its settings are wrong.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._settings = directory, Device.read_settings(directory)
        self._open = ExitStack()
        self._present = Adapter()  # in use when it was asked to take part

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    @property
    def shape(self) -> AdapterConfig:
        """The shape of its adapters."""
        return self._settings.adapter

    @property
    def bounds(self) -> LocalBounds:
        """What it makes of what a server asks."""
        return self._settings.coordination.bounds

    @property
    def finetuning(self) -> FineTuneConfig:
        """How it takes local steps."""
        return self._settings.finetuning

    def examples(self, round_number: int, *, synthesis_count: int | None = None) -> list[Example]:
        """Return its annotated dialogues with what the base model wrote from them, whatever the round.

        Raises:
            BusyError: another process has the device open.
            ModelError: the base model cannot be loaded.
            StorageError: the directory cannot be read or written.
        """
        rows, _ = training_rows(self._device.buffer, self._model, self._settings)
        return rows if synthesis_count is None else limit_children(rows, synthesis_count)

    def holdout(self, round_number: int) -> list[Example]:
        """Return its annotated hold-out dialogues, whatever the round."""
        return annotated_examples(self._device.buffer.heldout())

    def participant(self, *, dropout: float | None = None, privacy: DeviceLevel | None = None) -> Participant:
        """Return its part in a round, on its own model.

        What it kept with another base model or other adapters is of no use and is deleted.
        """
        device, model = self._device, self._model.adapted
        model.set_dropout(self.shape.dropout if dropout is None else dropout)
        self._present, shape = Adapter.of(model), model.fingerprint(PERSONAL)
        if device.buffer.meta(_SHAPE) != shape:
            with storage_errors(device.memory):
                device.memory.unlink(missing_ok=True)
            device.buffer.set_meta(_SHAPE, shape)
        ledger = own_ledger(
            device.coordination / "ledger", privacy, max_releases=self._settings.coordination.max_releases
        )
        return Participant(model, FileMemory(device.memory), self._key(), ledger=ledger)

    def choose(self, participant: Participant, task: Assignment) -> None:
        """Put what came of a round's work in use if the device's gate finds it no worse; once for each exchange.

        Raises:
            StorageError: the disk refuses; what was in use stays.
        """
        plan, turn = task.plan, task.turn
        assert plan.rule is not None
        buffer, name = self._device.buffer, f"{task.run}-{turn.round}-{turn.exchange}"
        trained = plan.rule.duty(turn).work in ("train", "zeroth-order")
        if not trained or buffer.meta(_CHOSEN) == name:
            return
        loaded = participant.load_shared(plan, task.down, turn)
        if not loaded.residual:
            self._use_best(Serving(participant=participant, plan=plan, loaded=loaded), name)
        buffer.set_meta(_CHOSEN, name)

    def _use_best(self, serving: Serving, name: str) -> None:
        model, adapters, settings = self._model.adapted, self._device.adapters, self._settings
        heldout = annotated_examples(self._device.buffer.heldout())
        if not heldout or self._uses(name):
            return
        with wearing(model, self._present) as base:
            present = mean_scores(evaluate(base, heldout, max_new_tokens=settings.max_new_tokens))
        way = choose_way(serving, heldout, bare=present, gate=settings.gate, max_new_tokens=settings.max_new_tokens)
        with serving.answering(way):
            if model.worn:  # blank ones, as in a first round, are nothing to use
                metrics = {"coordinated": name, "outcome": "promoted", "adapter": model.fingerprint(PERSONAL)}
                adapters.promote(adapters.save_candidate(model, metrics=metrics, slots=model.worn))
                adapters.prune(keep=KEPT_VERSIONS)

    def _uses(self, name: str) -> bool:
        """Whether what came of an exchange is in use: a device that was killed may not have come to note it."""
        adapters = self._device.adapters
        return adapters.current is not None and adapters.version(adapters.current).metrics.get("coordinated") == name

    @cached_property
    def _device(self) -> Device:
        return self._open.enter_context(Device.open(self._directory, coordinated=True))

    @cached_property
    def _model(self) -> PersonalModel:
        return self._open.enter_context(self._device.lent())

    def _key(self) -> str:
        key = self._device.buffer.meta(_KEY)
        if key is None:
            key = secrets.token_hex(16)
            self._device.buffer.set_meta(_KEY, key)
        return key
