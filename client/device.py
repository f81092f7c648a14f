"""Device: the loop that personalizes one user's model, with no server anywhere.

    observe → respond, embed, select, keep        (every dialogue)
    learn   → ask, synthesize, fine-tune, gate    (every `round_every` dialogues)

After Qin et al., DAC 2024 (arXiv 2311.12275). Ours: a hold-out of the device's own dialogues decides whether a new
adapter replaces the present one, and a round that was killed is simply run again, since each of its steps is durable
and does nothing twice.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import accumulate, repeat
from pathlib import Path
from typing import Final, Self

import tomli_w

from client.adapters import PERSONAL, AdaptedModel, AdapterStore, Version
from client.annotation import (
    ANNOTATION_POLICIES,
    Annotator,
    AskReport,
    QueueAnnotator,
    annotated_examples,
    ask_round,
    read_edit,
)
from client.buffer import PrivateBuffer
from client.dialogue import Annotation, Dialogue, Example, derive_id, derive_seed
from client.durable import make_directory, remove_drafts, replace_file, storage_errors
from client.evaluation import Scores, evaluate, mean_scores, uncertainty
from client.finetuning import FineTuneConfig, FineTuneReport, Progress, Target, finetune
from client.model import BaseModel, Embedding, Generation, load_model
from client.selection.lexicons import load_lexicons
from client.selection.policy import Decision
from client.settings import DeviceSettings
from client.synthesis import SYNTHESIZERS, Reason
from florilegium.errors import ConfigError, InputError, StorageError

__all__ = ["Device", "DeviceSettings", "Observation", "RoundReport"]

KEPT_VERSIONS: Final = 5
REDRAW_TEMPERATURE: Final = 0.8
LONGEST_REDRAW: Final = 256  # as many times anyone asks for another response in a row

_log = logging.getLogger(__name__)

# The device's values in the buffer's file.
_ROUND: Final = "round"  # rounds done
_ROUND_SEEN: Final = "round_seen"  # dialogues seen when the last one began
_ROUND_DUE: Final = "round_due"  # a reason for a round before enough dialogues came
_FORGETTING: Final = "forgetting"  # what was forgotten may still be in adapters
_SYNTHESIS: Final = "synthesis"  # how the stored children were written


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What came of one dialogue."""

    dialogue: Dialogue
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What one learning round did; numbers only.

    Attributes:
        number: 1 for the first.
        asked: dialogues newly asked about.
        answered: answers that came during the round.
        originals: annotated dialogues trained on.
        synthesized: rows that the model wrote.
        drops: synthesized texts refused, by reason.
        heldout: annotated hold-out dialogues that the gate looked at.
        outcome: "promoted", "rejected" (worse on the hold-out), or why nothing was trained or kept:
            "nothing-annotated", "no-holdout", "not-finite".
        version: the adapter version in use afterwards; None is the bare base.
        present: scores of the adapter in use before.
        candidate: scores of the new one.
        training: what fine-tuning reports.
    """

    number: int
    asked: int = 0
    answered: int = 0
    originals: int = 0
    synthesized: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)
    heldout: int = 0
    outcome: str
    version: int | None = None
    present: Scores | None = None
    candidate: Scores | None = None
    training: FineTuneReport | None = None


class Device:
    """One user's device: a directory, a frozen base model, a private buffer and a personal adapter.

    Use `Device.create` once and `Device.open` from then on; a device is a context manager. The base model is loaded
    when it is first needed. Threads may share a device: while one uses the model, to train it say, the others wait.

    Attributes:
        directory: where its state is.
        settings: as in `device.toml`.
        buffer: the private buffer.
        adapters: the personal adapter's versions.
    """

    def __init__(
        self,
        directory: Path,
        settings: DeviceSettings,
        *,
        model: BaseModel | None = None,
        annotator: Annotator | None = None,
        read_only: bool = False,
    ) -> None:
        self.directory, self.settings = directory, settings
        self._base = model
        self._adapted: AdaptedModel | None = None
        self._serves = not read_only
        self._changing = threading.RLock()  # held while the adapter in use may change; taken before `_using`
        self._using = threading.RLock()  # held while the model computes
        self.buffer = PrivateBuffer(
            directory / "buffer.sqlite",
            bins=settings.bins,
            bin_bytes=settings.bin_kilobytes * 1024,
            policy=settings.policy,
            holdout_share=settings.holdout_share,
            holdout_bins=max(1, settings.bins // 4),
            seed=settings.seed,
            eoe=settings.eoe,
            lexicons=load_lexicons(directory / "lexicons"),
            read_only=read_only,
        )
        try:
            self.adapters = AdapterStore(directory / "adapters", read_only=read_only)
            self._annotator = annotator or QueueAnnotator(self.buffer)
            if not read_only:
                self._recover()
        except BaseException:
            self.buffer.close()
            raise

    @classmethod
    def create(cls, directory: Path, settings: DeviceSettings | None = None) -> None:
        """Make a device's directory, for its owner only.

        Raises:
            ConfigError: there is a device already.
            StorageError: the directory cannot be written.
        """
        path = directory / "device.toml"
        if path.exists():
            raise ConfigError(f"{directory} is a device already", "open it, or choose another directory")
        values = (settings or DeviceSettings()).model_dump(mode="json", exclude_none=True)
        with storage_errors(directory):
            make_directory(directory)
            replace_file(path, tomli_w.dumps(values).encode())

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        model: BaseModel | None = None,
        annotator: Annotator | None = None,
        read_only: bool = False,
    ) -> Self:
        """Open a device; only one process at a time can, but for those that only look.

        Args:
            directory: as given to `create`.
            model: the base model, if it is loaded already; the settings' own otherwise.
            annotator: who answers; a durable queue for people by default.
            read_only: look at the buffer and the status while another process may have the device open.

        Raises:
            StorageError: there is no device, it is in use, or it cannot be read.
        """
        if not (directory / "device.toml").is_file():
            raise StorageError(f"{directory} is no device", f"make one: florilegium device init {directory}")
        settings = DeviceSettings.load(directory / "device.toml")
        never_ran = not (directory / "buffer.sqlite").is_file()  # so there is nothing to look at yet, and no one writes
        return cls(directory, settings, model=model, annotator=annotator, read_only=read_only and not never_ran)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def load(self) -> None:
        """Load the base model now; the first call that needs it does it otherwise.

        Raises:
            ModelError: it cannot be loaded.
        """
        self._model  # noqa: B018

    def close(self) -> None:
        """Take the adapter off the base model and release the directory."""
        with self._using:
            self._serves = False
            if self._adapted is not None:
                self._adapted.detach()
                self._adapted = None
        self.buffer.close()

    def observe(self, question: str, response: str | None = None, *, dialogue_id: str | None = None) -> Observation:
        """Answer a question, unless its response is given, and let selection decide about the dialogue.

        When this returns, the decision is on the disk.

        Args:
            question: what the user said.
            response: what the model answered, if it answered already.
            dialogue_id: an identifier of the caller's; a random one by default. Observing one again changes nothing.

        Raises:
            InputError: the question is empty, or the identifier is none; see `Dialogue`.
            ModelError: the base model cannot be loaded.
            StorageError: nothing was stored.
        """
        named = {} if dialogue_id is None else {"dialogue_id": dialogue_id}
        asked = Dialogue(question=question, response=response or "", **named)
        if response is not None:
            return self._offer(asked)
        answer = self._answer(question)
        return self._offer(replace(asked, response=answer.text), answer.embedding)

    def regenerate(self, dialogue: Dialogue) -> Observation:
        """Draw another response for a user who did not like the first; the first gains priority for being asked about.

        The draw depends on the dialogue's identifier and the settings' seed alone.
        """
        with suppress(InputError):  # the buffer did not keep it: there is nothing to ask about
            QueueAnnotator(self.buffer).regenerated(dialogue.dialogue_id)
        answer = self._answer(dialogue.question, redraw=derive_seed(self.settings.seed, dialogue.dialogue_id))
        key = _redrawn(dialogue.dialogue_id)
        return self._offer(
            Dialogue(question=dialogue.question, response=answer.text, dialogue_id=key), answer.embedding
        )

    def annotate(self, annotation: Annotation) -> bool:
        """Store what the user said of a dialogue; return False if the buffer does not hold it."""
        return self.buffer.annotate(annotation)

    def edit(self, dialogue: Dialogue, text: str) -> bool:
        """Take a reply that the user edited as the ideal answer, and keep its dialogue whatever selection decided.

        Returns:
            False if it cannot be kept: it is larger than a bin.

        Raises:
            InputError: the text is empty or too long.
            StorageError: nothing was stored.
        """
        annotation = read_edit(dialogue, text)
        if self.buffer.annotate(annotation):
            return True
        self.buffer.adopt(dialogue, self._embed(dialogue))
        return self.buffer.annotate(annotation)

    @property
    def due(self) -> bool:
        """Whether enough dialogues came since the last round, or the adapter was lost: to a forgetting, to settings."""
        last = int(self.buffer.meta(_ROUND_SEEN) or 0)
        return self.buffer.meta(_ROUND_DUE) is not None or self.buffer.seen - last >= self.settings.round_every

    def learn(self, *, memory_mb: int | None = None, progress: Callable[[Progress], None] | None = None) -> RoundReport:
        """Run one learning round; a round that was killed goes on where it was.

        Args:
            memory_mb: bound on the process's memory in fine-tuning, MiB, in place of the settings' own.
            progress: called after each step of fine-tuning.

        Raises:
            MemoryBudgetError: fine-tuning does not fit the memory it was given; the present adapter stays.
            ModelError: the base model cannot be loaded.
            StorageError: the disk refuses; the present adapter stays.
        """
        with self._changing:
            number = int(self.buffer.meta(_ROUND) or 0) + 1
            seen = self.buffer.seen
            with self.buffer.frozen():
                config = self.settings.finetuning
                report = self._learn(
                    number, config if memory_mb is None else replace(config, memory_mb=memory_mb), progress
                )
                self.buffer.update_meta({_ROUND: str(number), _ROUND_SEEN: str(seen), _ROUND_DUE: None})
        return report

    def forget(self, dialogue_id: str) -> bool:
        """Delete a dialogue and all that came of it, the responses drawn instead and every adapter included.

        A learning round is due then, and trains without it. If rounds start afresh and the dialogue displaced no other,
        the adapter is to the bit what it would be had the dialogue never been kept.

        Returns:
            Whether anything was known of it.

        Raises:
            StorageError: the disk refuses or a reader holds the file; the next call or opening ends it.
        """
        redrawn = accumulate(repeat(dialogue_id, LONGEST_REDRAW), lambda before, _: _redrawn(before))
        with self._changing:
            try:
                return self.buffer.forget(*redrawn, meta={_FORGETTING: "1", _ROUND_DUE: "1"})
            finally:
                self._end_forgetting()

    def roll_back(self) -> int | None:
        """Put the adapter before the present one in use again; return its version, None for the bare base."""
        with self._changing, self._using:
            self.adapters.roll_back()
            if self._adapted is not None:
                self._use_present(self._adapted)
            return self.adapters.current

    def status(self) -> dict[str, object]:
        """Return what the device has seen, holds, asks and learned: numbers, for people and programs."""
        return {
            "model": self.settings.model,
            **asdict(self.buffer.stats()),
            "asked": len(self.buffer.pending()),
            "rounds": int(self.buffer.meta(_ROUND) or 0),
            "round_due": self.due,
            "adapter_version": self.adapters.current,
            "adapter_versions": self.adapters.numbers,
        }

    @property
    def _checkpoint(self) -> Path:
        return self.directory / "round" / "finetuning.pt"

    @property
    def _model(self) -> AdaptedModel:
        """The base model, wearing the adapter in use."""
        with self._using:
            if not self._serves:
                raise StorageError(f"{self.directory} is closed, or open for looking only", "open it for use")
            if self._adapted is None:
                self._adapted = self._load()
            return self._adapted

    def _load(self) -> AdaptedModel:
        settings = self.settings
        base = self._base or load_model(
            settings.model, dtype=settings.dtype, quantization=settings.quantization, device=settings.device
        )
        model = AdaptedModel(base, settings.adapter, slots=(PERSONAL,), seed=settings.seed)
        try:
            if self.buffer.follow_model(model.base_fingerprint, model.embed):
                _log.warning("%s: the base model is another one, so what is held was embedded again", self.directory)
            self._use_present(model)
        except BaseException:
            model.detach()
            raise
        return model

    @contextmanager
    def _active(self, *slots: str) -> Iterator[BaseModel]:
        """Have the model for oneself in the block, wearing exactly these adapters."""
        with self._using, self._model.active(*slots):
            yield self._model.base

    def _recover(self) -> None:
        """Finish what an earlier process left undone."""
        with storage_errors(self.directory):
            remove_drafts(self.directory)
            remove_drafts(self._checkpoint.parent)
        self._end_forgetting()

    def _end_forgetting(self) -> None:
        """Delete every adapter that may have learned what was forgotten."""
        if self.buffer.meta(_FORGETTING) is None:
            return
        with self._using:
            self.adapters.clear()
            with storage_errors(self.directory):
                if self._checkpoint.parent.exists():
                    shutil.rmtree(self._checkpoint.parent)
            if self._adapted is not None:
                self._use_present(self._adapted)
        self.buffer.set_meta(_FORGETTING, None)

    def _answer(self, question: str, *, redraw: int | None = None) -> Generation:
        """Answer with the present adapter, greedily unless `redraw` seeds a draw.

        The embedding comes from the pass that made the response. Where an adapter took part in that pass there is none:
        embeddings of different adapters cannot be compared.
        """
        with self._active(PERSONAL) as base:
            (answer,) = base.generate(
                [base.chat.prompt(question)],
                max_new_tokens=self.settings.max_new_tokens,
                temperature=0.0 if redraw is None else REDRAW_TEMPERATURE,
                seeds=[redraw or 0],
                embed=self._model.is_blank(PERSONAL),
            )
        return answer

    def _embed(self, dialogue: Dialogue) -> Embedding:
        with self._active() as base:
            return base.embed([dialogue])[0]

    def _offer(self, dialogue: Dialogue, embedding: Embedding | None = None) -> Observation:
        """Let selection decide; without an embedding the bare base reads the dialogue first."""
        decision = self.buffer.offer(dialogue, embedding or self._embed(dialogue))
        return Observation(dialogue=dialogue, decision=decision)

    def _learn(self, number: int, config: FineTuneConfig, progress: Callable[[Progress], None] | None) -> RoundReport:
        asked = self._ask(number)
        examples, drops = self._examples()
        probes = annotated_examples(self.buffer.heldout())
        report = RoundReport(
            number=number,
            asked=len(asked.asked),
            answered=len(asked.answers),
            originals=sum(not example.is_synthesized for example in examples),
            synthesized=sum(example.is_synthesized for example in examples),
            drops=dict(drops),
            heldout=len(probes),
            outcome="no-holdout" if examples else "nothing-annotated",
            version=self.adapters.current,
        )
        return self._improve(report, examples, probes, config, progress) if examples and probes else report

    def _ask(self, number: int) -> AskReport:
        """Ask about what would train and what the gate looks at, within one budget."""
        return ask_round(
            self.buffer,
            self._annotator,
            ANNOTATION_POLICIES[self.settings.annotation],
            among=[*self.buffer.heldout(), *self.buffer.dialogues()],
            round_number=number,
            day=datetime.now(UTC).date(),
            budget=self.settings.annotation_budget,
            uncertainty=self._uncertainty,
        )

    def _uncertainty(self, dialogues: Sequence[Dialogue]) -> list[float]:
        with self._active(PERSONAL) as base:
            return uncertainty(base, dialogues)

    def _examples(self) -> tuple[list[Example], Counter[str]]:
        """Return the training rows, originals and children, and why generations were dropped."""
        rows: list[Example] = []
        drops: Counter[str] = Counter()
        originals = annotated_examples(self.buffer.dialogues())
        if originals:
            self._follow_synthesis()
        for original in originals:
            self._synthesize(original)
            rows += [original, *self.buffer.children(original.source_id)]
            drops.update(self.buffer.child_drops(original.source_id))
        return rows, drops

    def _follow_synthesis(self) -> None:
        """Drop children that were written by another model or with other settings."""
        settings = self.settings
        how = (settings.synthesizer, settings.synthesis_count, str(settings.synthesis_temperature), settings.seed)
        name = derive_id(self._model.base_fingerprint, *how)
        if self.buffer.meta(_SYNTHESIS) != name:
            self.buffer.drop_children({_SYNTHESIS: name})

    def _synthesize(self, original: Example) -> None:
        """Write an annotated dialogue's children, once, by the bare base: they depend on that dialogue alone."""
        key = original.source_id
        if self.buffer.children(key) or self.buffer.child_drops(key):
            return
        with self._active() as base:
            (made,) = SYNTHESIZERS[self.settings.synthesizer](
                base,
                [original],
                count=self.settings.synthesis_count,
                seed=self.settings.seed,
                temperature=self.settings.synthesis_temperature,
            )
        fitting = [child for child in made.children if self.buffer.fits(child.question, child.response)]
        excess = Counter({Reason.TOO_LONG.value: len(made.children) - len(fitting)})
        self.buffer.store_children(key, fitting, made.drops + excess)

    def _improve(
        self,
        report: RoundReport,
        examples: Sequence[Example],
        probes: Sequence[Example],
        config: FineTuneConfig,
        progress: Callable[[Progress], None] | None,
    ) -> RoundReport:
        """Train a candidate, unless this round did before it was killed, and put it in use if the gate lets it pass.

        Whatever happens, the model is left with the adapter that is in use.
        """
        with self._using:
            try:
                if self._candidate(report.number) is None:
                    report = self._train(report, examples, probes, config, progress)
                candidate = self._candidate(report.number)
                if candidate is not None:
                    report = replace(report, outcome=str(candidate.metrics["outcome"]))
                    if report.outcome == "promoted":
                        self.adapters.promote(candidate.number)
                    self.adapters.prune(keep=KEPT_VERSIONS)
            finally:
                self._use_present(self._model)
        return replace(report, version=self.adapters.current)

    def _candidate(self, number: int) -> Version | None:
        """Return the version that a round saved, if it came so far."""
        newest = self.adapters.version(self.adapters.numbers[-1]) if self.adapters.numbers else None
        if newest is None or newest.metrics.get("round") != number or not self._fits(newest, self._model):
            return None
        return newest

    def _train(
        self,
        report: RoundReport,
        examples: Sequence[Example],
        probes: Sequence[Example],
        config: FineTuneConfig,
        progress: Callable[[Progress], None] | None,
    ) -> RoundReport:
        """Train a candidate and save it with the gate's verdict."""
        present = self._score(probes)
        if self.settings.start == "fresh":
            self._model.reset(PERSONAL, derive_seed(self.settings.seed, "adapter"))
        with storage_errors(self._checkpoint.parent):
            make_directory(self._checkpoint.parent)
        training = finetune(
            self._model,
            examples,
            target=Target(slot=PERSONAL),
            config=config,
            checkpoint=self._checkpoint,
            progress=progress,
        )
        report = replace(report, outcome="not-finite", present=present, training=training)
        if training.stopped:
            return report
        candidate = self._score(probes)
        outcome = "promoted" if self.settings.gate.better_or_equal(candidate, present) else "rejected"
        metrics = {"round": report.number, "outcome": outcome, "rows": len(examples), **asdict(candidate)}
        self.adapters.save_candidate(self._model, metrics={**metrics, "adapter": self._model.fingerprint(PERSONAL)})
        return replace(report, outcome=outcome, candidate=candidate)

    def _score(self, probes: Sequence[Example]) -> Scores:
        with self._active(PERSONAL) as base:
            return mean_scores(evaluate(base, probes, max_new_tokens=self.settings.max_new_tokens))

    def _use_present(self, model: AdaptedModel) -> None:
        """Load the adapter in use; with none, a blank one, which changes no answer."""
        present = self.adapters.current
        if present is not None and not self._fits(self.adapters.version(present), model):
            _log.warning(
                "%s: adapter version %d is of another base model or shape, so the bare base model is in use until the "
                "next learning round",
                self.directory,
                present,
            )
            self.buffer.set_meta(_ROUND_DUE, "1")
            self.adapters.retire()
        if self.adapters.load(model) is None:
            model.reset(PERSONAL, derive_seed(self.settings.seed, "adapter"))

    def _fits(self, version: Version, model: AdaptedModel) -> bool:
        return version.metrics.get("adapter") == model.fingerprint(PERSONAL)


def _redrawn(dialogue_id: str) -> str:
    """Return the identifier of the dialogue with another response to the same question."""
    return derive_id("regenerated", dialogue_id)
