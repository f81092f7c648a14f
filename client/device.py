"""Device: the loop that personalizes one user's model, with no server anywhere.

    observe → respond, embed, select, keep        (every dialogue)
    learn   → ask, synthesize, fine-tune, gate    (every `round_every` dialogues)

After Qin et al., DAC 2024 (arXiv 2311.12275). Ours: a hold-out of the device's own dialogues decides whether a new
adapter replaces the present one, and a round that was killed is simply run again, since each of its steps is durable
and does nothing twice.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import tomli_w

from client.adapters import PERSONAL, AdaptedModel, AdapterStore
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
from client.durable import make_directory, replace_file, storage_errors
from client.evaluation import Scores, evaluate, mean_scores, uncertainty
from client.finetuning import FineTuneConfig, FineTuneReport, Progress, finetune
from client.model import BaseModel, Embedding, Generation, load_model
from client.selection.policy import Decision
from client.settings import DeviceSettings
from client.synthesis import SYNTHESIZERS
from florilegium.errors import ConfigError, InputError, StorageError

__all__ = ["Device", "DeviceSettings", "Observation", "RoundReport"]

KEPT_VERSIONS = 5
REDRAW_TEMPERATURE = 0.8


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

    Use `Device.create` once and `Device.open` from then on; a device is a context manager.

    Attributes:
        directory: where its state is.
        settings: as in `device.toml`.
        buffer: the private buffer.
        adapters: the personal adapter's versions.
    """

    def __init__(self, directory: Path, settings: DeviceSettings, base: BaseModel, annotator: Annotator | None) -> None:
        self.directory, self.settings = directory, settings
        self.buffer = PrivateBuffer(
            directory / "buffer.sqlite",
            bins=settings.bins,
            bin_bytes=settings.bin_kilobytes * 1024,
            policy=settings.policy,
            holdout_share=settings.holdout_share,
            holdout_bins=max(1, settings.bins // 4),
            seed=settings.seed,
        )
        try:
            self.adapters = AdapterStore(directory / "adapters")
            self._annotator = annotator or QueueAnnotator(self.buffer)
            self._model = AdaptedModel(base, settings.adapter, slots=(PERSONAL,), seed=settings.seed)
            self._use_present()
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
    def open(cls, directory: Path, *, model: BaseModel | None = None, annotator: Annotator | None = None) -> Self:
        """Open a device; only one process at a time can.

        Args:
            directory: as given to `create`.
            model: the base model, if it is loaded already; the settings' own otherwise.
            annotator: who answers; a durable queue for people by default.

        Raises:
            StorageError: there is no device, it is in use, or it cannot be read.
            ModelError: the base model cannot be loaded.
        """
        if not (directory / "device.toml").is_file():
            raise StorageError(f"{directory} is no device", f"make one: florilegium device init {directory}")
        settings = DeviceSettings.load(directory / "device.toml")
        base = model or load_model(settings.model, dtype=settings.dtype, quantization=settings.quantization)
        return cls(directory, settings, base, annotator)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the adapter off the base model and release the directory."""
        self._model.detach()
        self.buffer.close()

    def observe(self, question: str, response: str | None = None, *, dialogue_id: str | None = None) -> Observation:
        """Answer a question, unless its response is given, and let selection decide about the dialogue.

        When this returns, the decision is on the disk.

        Args:
            question: what the user said.
            response: what the model answered, if it answered already.
            dialogue_id: an identifier of the caller's; a random one by default. Observing one again changes nothing.

        Raises:
            InputError: the question is empty.
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
        key = derive_id("regenerated", dialogue.dialogue_id)
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
        self.buffer.adopt(dialogue, self._model.embed([dialogue])[0])
        return self.buffer.annotate(annotation)

    @property
    def due(self) -> bool:
        """Whether enough dialogues came since the last round."""
        return self.buffer.seen - int(self.buffer.meta("round_seen") or 0) >= self.settings.round_every

    def learn(self, *, memory_mb: int | None = None, progress: Callable[[Progress], None] | None = None) -> RoundReport:
        """Run one learning round; a round that was killed goes on where it was.

        Args:
            memory_mb: bound on the process's memory in fine-tuning, MiB, in place of the settings' own.
            progress: called after each step of fine-tuning.

        Raises:
            MemoryBudgetError: fine-tuning does not fit the memory it was given.
            StorageError: the disk refuses; the present adapter stays.
        """
        number = int(self.buffer.meta("round") or 0) + 1
        seen = self.buffer.seen
        with self.buffer.frozen():
            config = self.settings.finetuning
            report = self._learn(
                number, config if memory_mb is None else replace(config, memory_mb=memory_mb), progress
            )
            self.buffer.set_meta("round_seen", str(seen))
            self.buffer.set_meta("round", str(number))
        return report

    def forget(self, dialogue_id: str) -> bool:
        """Delete a dialogue and all that came of it; adapters that may have learned from it are deleted as well.

        The next learning round trains without it, to the bit what it would be had the dialogue never been kept, if
        rounds start afresh.

        Returns:
            Whether anything was known of it.
        """
        if not self.buffer.forget(dialogue_id):
            return False
        with storage_errors(self.directory):
            self._checkpoint.unlink(missing_ok=True)
            shutil.rmtree(self.adapters.directory)
        self.adapters = AdapterStore(self.adapters.directory)
        self._use_present()
        return True

    def roll_back(self) -> int | None:
        """Put the adapter before the present one in use again; return its version, None for the bare base."""
        self.adapters.roll_back()
        self._use_present()
        return self.adapters.current

    def status(self) -> dict[str, object]:
        """Return what the device has seen, holds, asks and learned: numbers, for people and programs."""
        return {
            "model": self.settings.model,
            **asdict(self.buffer.stats()),
            "asked": len(self.buffer.pending()),
            "rounds": int(self.buffer.meta("round") or 0),
            "round_due": self.due,
            "adapter_version": self.adapters.current,
            "adapter_versions": [version.number for version in self.adapters.versions()],
        }

    @property
    def _checkpoint(self) -> Path:
        return self.directory / "round" / "finetuning.pt"

    def _answer(self, question: str, *, redraw: int | None = None) -> Generation:
        """Answer with the present adapter, greedily unless `redraw` seeds a draw.

        The embedding comes from the pass that made the response. Where an adapter took part in that pass there is none:
        embeddings of different adapters cannot be compared.
        """
        prompt = self._model.base.chat.prompt(question)
        with self._model.active(PERSONAL):
            (answer,) = self._model.base.generate(
                [prompt],
                max_new_tokens=self.settings.max_new_tokens,
                temperature=0.0 if redraw is None else REDRAW_TEMPERATURE,
                seeds=[redraw or 0],
                embed=self._model.is_blank(PERSONAL),
            )
        return answer

    def _offer(self, dialogue: Dialogue, embedding: Embedding | None = None) -> Observation:
        """Let selection decide; without an embedding the bare base reads the dialogue first."""
        decision = self.buffer.offer(dialogue, embedding or self._model.embed([dialogue])[0])
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
            drops=drops,
            heldout=len(probes),
            outcome="no-holdout" if examples else "nothing-annotated",
            version=self.adapters.current,
        )
        return self._train(report, examples, probes, config, progress) if examples and probes else report

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
        with self._model.active(PERSONAL):
            return uncertainty(self._model.base, dialogues)

    def _examples(self) -> tuple[list[Example], Counter[str]]:
        """Return the training rows, originals and children, and why generations were dropped.

        Children are written once for each annotated dialogue, by the bare base: they depend on that dialogue alone.
        """
        synthesize = SYNTHESIZERS[self.settings.synthesizer]
        rows: list[Example] = []
        drops: Counter[str] = Counter()
        for original in annotated_examples(self.buffer.dialogues()):
            key = original.source_id
            if not self.buffer.children(key) and not self.buffer.child_drops(key):
                with self._model.active():
                    made = synthesize(
                        self._model.base,
                        original,
                        count=self.settings.synthesis_count,
                        seed=self.settings.seed,
                        temperature=self.settings.synthesis_temperature,
                    )
                self.buffer.store_children(key, made.children, made.drops)
            rows += [original, *self.buffer.children(key)]
            drops.update(self.buffer.child_drops(key))
        return rows, drops

    def _train(
        self,
        report: RoundReport,
        examples: Sequence[Example],
        probes: Sequence[Example],
        config: FineTuneConfig,
        progress: Callable[[Progress], None] | None,
    ) -> RoundReport:
        """Train a candidate and let the gate decide; the model is left with the adapter then in use."""
        present = self._score(probes)
        if self.settings.start == "fresh":
            self._model.reset(PERSONAL, derive_seed(self.settings.seed, "adapter"))
        with storage_errors(self._checkpoint.parent):
            make_directory(self._checkpoint.parent)
        training = finetune(
            self._model,
            examples,
            slot=PERSONAL,
            config=config,
            checkpoint=self._checkpoint,
            progress=progress,
        )
        candidate = None if training.stopped else self._score(probes)
        outcome = "not-finite"
        if candidate is not None:
            outcome = "promoted" if self.settings.gate.better_or_equal(candidate, present) else "rejected"
            metrics = {"round": report.number, "outcome": outcome, "rows": len(examples), **asdict(candidate)}
            version = self.adapters.save_candidate(self._model, metrics=metrics)
            if outcome == "promoted":
                self.adapters.promote(version)
            self.adapters.prune(keep=KEPT_VERSIONS)
        self._use_present()
        return replace(
            report,
            outcome=outcome,
            version=self.adapters.current,
            present=present,
            candidate=candidate,
            training=training,
        )

    def _score(self, probes: Sequence[Example]) -> Scores:
        with self._model.active(PERSONAL):
            return mean_scores(evaluate(self._model.base, probes, max_new_tokens=self.settings.max_new_tokens))

    def _use_present(self) -> None:
        """Load the adapter in use; with none, a blank one, which changes no answer."""
        if self.adapters.load(self._model) is None:
            self._model.reset(PERSONAL, derive_seed(self.settings.seed, "adapter"))
