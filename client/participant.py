"""Participant: a device's part in a coordinated round, with no network in sight.

    server → assignment → load, train the shared part, train the personal part → clip, noise, encode, check → server

What must outlive the round (the rule's own share, what the codec left unsaid, the personal adapter, what was sent) lies
in one file, replaced whole once the answer is made. A device that was killed before begins the round again; one that is
asked the same again, by a server that was killed, sends the same again, noise included, and learns nothing twice. A
later exchange may be asked with something else in it, a sum over other devices: then the answer is another, and another
release. The personal adapter is in no reply: what leaves is rebuilt from what the plan declares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Final, Protocol, Self

import torch

from client.adapters import PERSONAL, SHARED, AdaptedModel
from client.bounds import require_proportion
from client.dialogue import Example, derive_seed
from client.durable import make_directory, storage_errors
from client.evaluation import nll
from client.finetuning import Anchor, FineTuneConfig, Target, finetune, mean_gradient
from client.finetuning.zeroth_order import zeroth_order
from client.model import BaseModel
from client.sections import read_sections, write_sections
from florilegium.errors import InputError, PrivacyError
from florilegium.tensors import Tensors, zeros_like
from privacy.device_level import DeviceLevel, bound, release_local
from privacy.egress import Declared, check_out
from privacy.ledger import Ledger
from privacy.noise import NoiseSource, SystemSource
from strategies.codecs import Shapes, encode_with_feedback, payload_bytes
from strategies.directions import SCALARS
from strategies.factors import key_of
from strategies.gathering import declared_shapes
from strategies.hyperparameters import IMPROVEMENT, IMPROVEMENT_BOUNDS, improvement
from strategies.metrics import ROWS, declared_metrics
from strategies.plan import Plan
from strategies.rule import Duty, Loaded, Turn

__all__ = ["Assignment", "FileMemory", "Memory", "Participant", "own_ledger"]

# Sections of what a device keeps.
_KEPT: Final = "kept"  # the rule's own share
_LEFT: Final = "left"  # what the codec left unsaid, one for each exchange of a round
_PERSONAL: Final = "personal"
_START: Final = "start"  # the shared adapter before this round's work
_AFTER: Final = "after"  # and after it
_ALONG: Final = "along"  # and how far along directions, if it went along any
_GAIN: Final = "gain"  # and how much better the device does with it on its hold-out
_SENT: Final = "sent"  # what left in this round, one for each exchange
_SAID: Final = "said"  # and the metrics that left with it
_ASKED: Final = "asked"  # and a digest of what it was the answer to
_OF_ONE_ROUND: Final = (_START, _AFTER, _ALONG, _GAIN, _SENT, _SAID, _ASKED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a device is asked in one exchange.

    Attributes:
        plan: of the fleet.
        turn: where the fleet is, for a device of this rank.
        down: the rule's tensors.
        agreement: the codec's.
        steps: local optimizer steps of the round, shared and personal together.
        finetuning: how they are taken; its epochs and steps are replaced.
        run: names the run, 63 bits: in another run a device starts with its personal adapter alone.
        improvement_unit: nats per token that count as an improvement of 1; 0 where none is asked for.
    """

    plan: Plan
    turn: Turn
    down: Tensors = field(repr=False)
    agreement: Tensors = field(default_factory=dict, repr=False)
    steps: int
    finetuning: FineTuneConfig = field(default_factory=FineTuneConfig)
    run: int = 0
    improvement_unit: float = 0.0


class Memory(Protocol):
    """What a participant keeps between rounds: tensors in named sections, replaced whole."""

    def read(self) -> dict[str, Tensors]:
        """Return all sections; none before the first write."""
        ...

    def write(self, sections: Mapping[str, Tensors]) -> None:
        """Replace all sections at once."""
        ...


class FileMemory:
    """Sections in one file.

    Args:
        path: made with its folder at the first write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Tensors]:
        """Return all sections.

        Raises:
            StorageError: the file is damaged.
        """
        if not self._path.exists():
            return {}
        return read_sections(self._path, remedy="delete it to take part as a new device")[0]

    def write(self, sections: Mapping[str, Tensors]) -> None:
        """Replace the file.

        Raises:
            StorageError: the disk refuses; the old content stays.
        """
        write_sections(self._path, sections)


def own_ledger(path: Path, privacy: DeviceLevel | None, *, max_releases: int | None = None) -> Ledger | None:
    """Return the ledger by which a device's releases are counted; None where neither plan nor owner limits them.

    Args:
        path: of the file; its folder is made.
        privacy: of the plan; None where it is not private.
        max_releases: k, the owner's limit, which no plan lifts by asking for no privacy; None for the plan's alone.

    Raises:
        StorageError: the disk refuses.
    """
    limits = [] if max_releases is None else [max_releases]
    if privacy is not None:
        limits.append(privacy.max_rounds)
    if not limits:
        return None
    with storage_errors(path.parent):
        make_directory(path.parent)
    return Ledger(path=path, max_rounds=min(limits))


class Participant:
    """One device in a fleet.

    Args:
        model: the base with a shared and a personal slot of the device's rank; one model serves many participants in
            turn.
        memory: what is the device's own.
        key: who it is; seeds derive from it.
        ledger: where every release is charged before it is made; a round that it refuses is not answered.
        noise: where local noise comes from.
    """

    def __init__(
        self,
        model: AdaptedModel,
        memory: Memory,
        key: str,
        *,
        ledger: Ledger | None = None,
        noise: NoiseSource | None = None,
    ) -> None:
        self._model, self._memory, self._key, self._ledger = model, memory, key, ledger
        self._noise = noise or SystemSource()

    def answer(
        self, task: Assignment, examples: Sequence[Example], holdout: Sequence[Example] = ()
    ) -> tuple[Tensors, dict[str, float]]:
        """Do what is asked and return what leaves the device: tensors, and metrics by name.

        When this returns, all that must outlive the round is in the memory. Asked the same again, it answers the same;
        a later exchange asked with another sum in it is answered anew, and charged as the release that it is.

        Args:
            task: the assignment.
            examples: the device's rows.
            holdout: what the device judges the shared adapter by, as received and as trained; without any, it says
                nothing of an improvement.

        Raises:
            InputError: the rows or what the server sent cannot be used.
            RefusedError: what would leave breaks a rule; nothing does.
            PrivacyError: the ledger refuses; nothing leaves.
            MemoryBudgetError: training does not fit.
            StorageError: the memory cannot be read or written.
        """
        plan, turn = task.plan, task.turn
        assert plan.rule is not None
        book = _Book.open(self._memory, task.run, turn.round)
        sent, said, left, asked = (f"{section}{turn.exchange}" for section in (_SENT, _SAID, _LEFT, _ASKED))
        question = _question(task)
        if question in book.sections.get(asked, {}):
            self._charge_again(task)
            return book.sections[sent], {name: float(value) for name, value in book.sections.get(said, {}).items()}
        own = self._model.state(SHARED)
        shapes = declared_shapes(plan, task.down, own, turn)
        require_proportion(payload_bytes(plan.codec, shapes), own)
        duty = plan.rule.duty(turn)
        if duty.work != "nothing":
            book.sections |= self._work(task, duty, book.sections, examples, holdout)
        elif _AFTER not in book.sections:
            raise InputError("there is no work of this round to report on", "answer its first exchange before")
        after = book.sections[_AFTER] | book.sections.get(_ALONG, {})
        update = plan.rule.up(book.sections[_START], after, task.down, turn)
        # What was left unsaid of a sketch is in no basis that a later round shares: only updates are fed back.
        feeds_back = plan.rule.sums_updates(turn)
        known = book.sections.get(left, {}) if feeds_back else {}
        metrics = {ROWS: float(len(examples))} if plan.weighting == "rows" else {}
        if task.improvement_unit > 0 and _GAIN in book.sections:
            metrics[IMPROVEMENT] = float(book.sections[_GAIN][IMPROVEMENT])
        residual = {key: known[key] for key in update if key in known}
        payload, metrics, unsaid = self._release(task, update, metrics, residual, shapes)
        book.sections |= {sent: payload, said: _numbers(metrics), asked: {question: torch.zeros(0)}}
        if feeds_back:
            others = {key: tensor for key, tensor in known.items() if key not in update}
            book.sections[left] = others | unsaid
        if plan.rule.exchanges(turn.round) == 1:  # a later exchange may be asked again, with another sum in it
            book.end_round(keeps_start=plan.personal is not None and plan.personal.beside_shared)
        book.write(self._memory)
        return payload, metrics

    def train_alone(
        self,
        plan: Plan,
        round_number: int,
        config: FineTuneConfig,
        steps: int,
        examples: Sequence[Example],
        *,
        run: int = 0,
    ) -> None:
        """Train the personal adapter in a plan that shares nothing; a round that is done is not done again."""
        book = _Book.open(self._memory, run, round_number)
        if _SENT not in book.sections:
            book.sections[_PERSONAL] = self._train_personal(plan, round_number, config, steps, book.sections, examples)
            book.sections[_SENT] = {"nothing": torch.zeros(0)}
            book.write(self._memory)

    @contextmanager
    def serving(self, plan: Plan, loaded: Loaded | None) -> Iterator[BaseModel]:
        """Let the model answer as the plan means it to, within the block.

        Args:
            plan: says which adapters are active.
            loaded: the shared part as it is now, from the rule's `load`; None without one.
        """
        way, sections = plan.personal, self._memory.read()
        slots = [] if loaded is None or (way is not None and not way.beside_shared) else [SHARED]
        residual = {} if loaded is None or loaded.residual is None else loaded.residual
        if loaded is not None:
            self._put_shared(loaded)
        if way is not None and _PERSONAL in sections:
            self._model.load_state(PERSONAL, sections[_PERSONAL])
            slots.append(PERSONAL)
            if way.beside_shared and not residual and _START in sections:
                # The two were made for each other; the newest shared adapter waits for the next round's personal one.
                self._model.load_state(SHARED, sections[_START])
        with self._model.folded(residual), self._model.active(*slots):
            yield self._model.base

    @contextmanager
    def bare(self) -> Iterator[BaseModel]:
        """Let the model answer without any adapter, within the block."""
        with self._model.active():
            yield self._model.base

    @property
    def has_personal(self) -> bool:
        """Whether a personal adapter has been trained."""
        return _PERSONAL in self._memory.read()

    def load_shared(self, plan: Plan, down: Tensors, turn: Turn) -> Loaded:
        """Return the shared part as this device would use it, given what travels down to it."""
        return self._load(plan, down, self._memory.read(), turn)

    def _load(self, plan: Plan, down: Tensors, sections: Mapping[str, Tensors], turn: Turn) -> Loaded:
        assert plan.rule is not None
        return plan.rule.load(down, sections.get(_KEPT, {}), turn).replayed(self._model.state(SHARED))

    def _work(
        self,
        task: Assignment,
        duty: Duty,
        sections: Mapping[str, Tensors],
        examples: Sequence[Example],
        holdout: Sequence[Example],
    ) -> dict[str, Tensors]:
        plan, turn = task.plan, task.turn
        assert plan.rule is not None
        loaded = self._load(plan, task.down, sections, turn)
        found: dict[str, Tensors] = {}
        with self._model.folded(loaded.residual or {}):
            self._put_shared(loaded)
            if duty.work == "gradient":
                found[_START] = zeros_like(loaded.adapter)
                found[_AFTER] = mean_gradient(
                    self._model, examples, target=_target(plan, duty, loaded), config=task.finetuning
                )
                return found
            found[_START] = self._model.state(SHARED)
            judged = holdout if task.improvement_unit > 0 else ()
            before = self._loss(judged)
            steps = round(task.steps * plan.shared_share)
            if steps:  # else it stays as it was received, with the core in it
                self._model.load_state(SHARED, loaded.adapter)
            target = _target(plan, duty, loaded)
            if duty.work == "zeroth-order":
                found[_ALONG] = self._train_along(target, loaded, task.finetuning, steps, turn.round, examples)
            else:
                self._train(target, task.finetuning, steps, turn.round, examples)
            found[_AFTER] = self._model.state(SHARED)
            if judged:
                gain = improvement(before, self._loss(judged), unit=task.improvement_unit)
                found[_GAIN] = _numbers({IMPROVEMENT: gain})
            found[_KEPT] = plan.rule.keep(found[_AFTER], turn)
            if plan.personal is not None:
                found[_PERSONAL] = self._train_personal(
                    plan, turn.round, task.finetuning, task.steps - steps, dict(sections) | found, examples
                )
        return found

    def _loss(self, examples: Sequence[Example]) -> float:
        """Return nats per token with the shared adapter alone; 0 of no example."""
        if not examples:
            return 0.0
        with self._model.active(SHARED):
            nats, tokens = nll(self._model.base, examples)
        return nats / tokens

    def _train_personal(
        self,
        plan: Plan,
        round_number: int,
        config: FineTuneConfig,
        steps: int,
        sections: Mapping[str, Tensors],
        examples: Sequence[Example],
    ) -> Tensors:
        way = plan.personal
        assert way is not None
        received, trained = sections.get(_START), sections.get(_AFTER)
        if way.start == "shared" and trained is not None:
            self._model.load_state(PERSONAL, trained)
        elif _PERSONAL in sections:
            self._model.load_state(PERSONAL, sections[_PERSONAL])
        else:
            self._model.reset(PERSONAL, derive_seed(plan.seed, "personal", self._key))
        if way.beside_shared and received is not None:
            # What this device has just trained is gone once it is averaged: the personal adapter must not count on it.
            self._model.load_state(SHARED, received)
        anchor = Anchor(weight=way.anchor, point=received) if way.anchor > 0 and received is not None else None
        beside = (SHARED,) if way.beside_shared else ()
        self._train(Target(slot=PERSONAL, beside=beside, anchor=anchor), config, steps, round_number, examples)
        return self._model.state(PERSONAL)

    def _train(
        self, target: Target, config: FineTuneConfig, steps: int, round_number: int, examples: Sequence[Example]
    ) -> None:
        if steps < 1:
            return
        seed = derive_seed(config.seed, self._key, round_number, target.slot)
        # A step takes one batch at least, so as many epochs as steps are enough.
        report = finetune(
            self._model, examples, target=target, config=replace(config, epochs=steps, max_steps=steps, seed=seed)
        )
        if report.stopped:
            raise InputError(report.stopped, "the round goes on without this device")

    def _train_along(
        self,
        target: Target,
        loaded: Loaded,
        config: FineTuneConfig,
        steps: int,
        round_number: int,
        examples: Sequence[Example],
    ) -> Tensors:
        assert loaded.directions is not None
        config = replace(config, seed=derive_seed(config.seed, self._key, round_number, target.slot))
        moved = zeroth_order(
            self._model, examples, target=target, directions=loaded.directions, steps=steps, config=config
        )
        return {SCALARS: moved}

    def _put_shared(self, loaded: Loaded) -> None:
        """Put the shared adapter in its slot; with a core, B is multiplied by it."""
        state = dict(loaded.adapter)
        for layer, core in (loaded.core or {}).items():
            state[key_of(layer, "B")] = state[key_of(layer, "B")] @ core
        self._model.load_state(SHARED, state)

    def _release(
        self, task: Assignment, update: Tensors, metrics: Mapping[str, float], residual: Tensors, shapes: Shapes
    ) -> tuple[Tensors, dict[str, float], Tensors]:
        """Return the payload and the metrics, checked, and what the payload leaves unsaid."""
        plan, privacy = task.plan, task.plan.privacy
        self._charge(task, metrics)
        if privacy is not None and privacy.placement == "local":
            update = release_local(update, privacy, self._noise)
        elif privacy is not None:
            update = bound(update, privacy)
        generator = torch.Generator().manual_seed(derive_seed(plan.seed, "codec", self._key, task.turn.round))
        payload, left = encode_with_feedback(
            plan.codec, update, residual=residual or None, agreement=task.agreement, generator=generator
        )
        declared = Declared(
            tensors=plan.codec.declared(shapes),
            metrics=declared_metrics(plan.weighting, improvement=task.improvement_unit > 0),
        )
        checked, said = check_out(payload, metrics, declared, max_bytes=max(1, payload_bytes(plan.codec, shapes)))
        return checked, said, left if any(bool(tensor.any()) for tensor in left.values()) else {}

    def _charge(self, task: Assignment, metrics: Mapping[str, float]) -> None:
        """Book the update, and an improvement as a release of its own, since the server noises them apart.

        Raises:
            PrivacyError: the ledger refuses, or nobody would add noise to an improvement.
        """
        privacy, name = task.plan.privacy, f"{task.run}-{task.turn.round}-{_question(task)}"
        if IMPROVEMENT in metrics and privacy is not None and privacy.placement == "local":
            raise PrivacyError(
                "an improvement would leave this device without noise", "ask for none, or let the server add the noise"
            )
        if self._ledger is None:
            return
        self._ledger.charge(name, _mechanism(privacy))
        if IMPROVEMENT in metrics:
            self._ledger.charge(f"{name}-{IMPROVEMENT}", _mechanism(privacy) | {"clip_norm": IMPROVEMENT_BOUNDS.upper})

    def _charge_again(self, task: Assignment) -> None:
        """Book a repeated answer that the server noises anew, where the first noised sum may be known already.

        That is so where a round goes on with that sum, and began again.

        Raises:
            PrivacyError: the ledger refuses.
        """
        plan, turn = task.plan, task.turn
        assert plan.rule is not None
        goes_on = turn.exchange + 1 < plan.rule.exchanges(turn.round)
        if self._ledger is not None and plan.privacy is not None and plan.privacy.placement == "central" and goes_on:
            name = f"{task.run}-{turn.round}-{_question(task)}-{self._ledger.spent}"
            self._ledger.charge(name, _mechanism(plan.privacy))


_MARK: Final = "mark"


@dataclass(slots=True)
class _Book:
    """What a device keeps: its sections, and the round that they are of."""

    run: int
    round: int
    sections: dict[str, Tensors]

    @classmethod
    def open(cls, memory: Memory, run: int, round_number: int) -> Self:
        """Open the book at a round.

        Raises:
            InputError: a later round was answered already.
        """
        stored = memory.read()
        mark = stored.pop(_MARK, {})
        known_run, known_round = int(mark.get("run", -1)), int(mark.get("round", 0))
        if known_run != run:
            return cls(run, round_number, {_PERSONAL: stored[_PERSONAL]} if _PERSONAL in stored else {})
        if round_number < known_round:
            raise InputError(
                f"round {round_number} was asked for after round {known_round}", "go on from the newest checkpoint"
            )
        if round_number > known_round:
            stored = {name: each for name, each in stored.items() if not name.startswith(_OF_ONE_ROUND)}
        return cls(run, round_number, stored)

    def end_round(self, *, keeps_start: bool) -> None:
        """Drop what nothing needs until the next round; a personal adapter may serve beside what it began with."""
        for section in (_AFTER, _ALONG, _GAIN, *(() if keeps_start else (_START,))):
            self.sections.pop(section, None)

    def write(self, memory: Memory) -> None:
        """Replace what is stored."""
        memory.write(self.sections | {_MARK: {"run": torch.tensor(self.run), "round": torch.tensor(self.round)}})


def _mechanism(privacy: DeviceLevel | None) -> dict[str, float]:
    """Return what a release is charged as; without noise it promises nothing, and still counts."""
    if privacy is None:
        return {"noise_multiplier": 0.0}
    return {"clip_norm": privacy.clip_norm, "noise_multiplier": privacy.noise_multiplier, "delta": privacy.delta}


def _question(task: Assignment) -> str:
    """Name an exchange by what came down with it; the first one's is the same whenever its round is played again."""
    if task.turn.exchange == 0:
        return "0"
    digest = blake2b(digest_size=16)
    for tensors in (task.down, task.agreement):
        for key in sorted(tensors):
            digest.update(key.encode() + tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{task.turn.exchange}-{digest.hexdigest()}"


def _numbers(values: Mapping[str, float]) -> Tensors:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def _target(plan: Plan, duty: Duty, loaded: Loaded) -> Target:
    anchor = Anchor(weight=plan.proximal) if plan.proximal > 0 else None
    return Target(slot=SHARED, part=duty.part, core=loaded.core, beside=(), anchor=anchor)
