"""One learning round of a device: each step is on the disk when it is done, and is not done twice.

    ask → write rows → train a candidate → save it with the gate's verdict → promote it, or not

So a round that was killed is simply run again. After Qin et al., DAC 2024 (arXiv 2311.12275). Ours: a hold-out of the
device's own dialogues decides how much of the new adapter is used, and whether it replaces the present one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from client.adapters import PERSONAL, AdapterStore, Version
from client.annotation import ANNOTATION_POLICIES, Annotator, AskReport, annotated_examples, ask_round
from client.buffer import PrivateBuffer
from client.dialogue import Dialogue, Example
from client.durable import make_directory, storage_errors
from client.evaluation import evaluate, mean_scores, uncertainty
from client.finetuning import FineTuneConfig, FineTuneReport, Progress
from client.gate import Scores
from client.learning import Adapter, judge, train, wearing
from client.personal import PersonalModel
from client.rows import training_rows
from client.settings import DeviceSettings

__all__ = ["Round", "RoundReport"]

KEPT_VERSIONS: Final = 5


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
        strength: how much of the trained adapter the new one uses.
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
    strength: float | None = None
    version: int | None = None
    present: Scores | None = None
    candidate: Scores | None = None
    training: FineTuneReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A learning round, begun or not.

    Attributes:
        number: 1 for the first; a killed round keeps its own.
        settings: of the device.
        finetuning: how to train, in place of what the settings say.
        buffer: frozen while the round runs.
        annotator: is asked.
        model: trains, and wears the adapter in use afterwards.
        adapters: its versions.
        checkpoint: where training saves its state; the folder is made.
        progress: called after each step of fine-tuning.
    """

    number: int
    settings: DeviceSettings
    finetuning: FineTuneConfig
    buffer: PrivateBuffer
    annotator: Annotator
    model: PersonalModel
    adapters: AdapterStore
    checkpoint: Path
    progress: Callable[[Progress], None] | None = None

    def run(self) -> RoundReport:
        """Do what is left of the round.

        Raises:
            MemoryBudgetError: fine-tuning does not fit the memory it was given; the present adapter stays.
            ModelError: the base model cannot be loaded.
            StorageError: the disk refuses; the present adapter stays.
        """
        asked = self._ask()
        rows, drops = training_rows(self.buffer, self.model, self.settings)
        heldout = annotated_examples(self.buffer.heldout())
        report = RoundReport(
            number=self.number,
            asked=len(asked.asked),
            answered=len(asked.answers),
            originals=sum(not row.is_synthesized for row in rows),
            synthesized=sum(row.is_synthesized for row in rows),
            drops=dict(drops),
            heldout=len(heldout),
            outcome="no-holdout" if rows else "nothing-annotated",
            version=self.adapters.current,
        )
        return self._improve(report, rows, heldout) if rows and heldout else report

    def _ask(self) -> AskReport:
        """Ask about what would train and what the gate looks at, within one budget."""
        return ask_round(
            self.buffer,
            self.annotator,
            ANNOTATION_POLICIES[self.settings.annotation],
            among=[*self.buffer.heldout(), *self.buffer.dialogues()],
            round_number=self.number,
            day=datetime.now(UTC).date(),
            budget=self.settings.annotation_budget,
            uncertainty=self._uncertainty,
        )

    def _uncertainty(self, dialogues: Sequence[Dialogue]) -> list[float]:
        with self.model.in_use() as base:
            return uncertainty(base, dialogues)

    def _improve(self, report: RoundReport, rows: Sequence[Example], heldout: Sequence[Example]) -> RoundReport:
        """Train a candidate, unless that was done before, and put it in use if the gate lets it pass."""
        with self.model.changing():
            if self._candidate() is None:
                report = self._train(report, rows, heldout)
            candidate = self._candidate()
            if candidate is not None:
                outcome, strength = (candidate.metrics.get(name) for name in ("outcome", "strength"))
                report = replace(report, outcome=str(outcome), strength=float(strength or 1))
                if outcome == "promoted":
                    self.adapters.promote(candidate.number)
                self.adapters.prune(keep=KEPT_VERSIONS)
        return replace(report, version=self.adapters.current)

    def _candidate(self) -> Version | None:
        """Return the version that this round saved, if it came so far."""
        newest = self.adapters.version(self.adapters.numbers[-1]) if self.adapters.numbers else None
        if newest is None or newest.metrics.get("round") != self.number or not self.model.fits(newest):
            return None
        return newest

    def _train(self, report: RoundReport, rows: Sequence[Example], heldout: Sequence[Example]) -> RoundReport:
        """Train a candidate and save it with the gate's verdict."""
        model, settings = self.model.adapted, self.settings
        present = Adapter.of(model)
        if settings.start == "fresh":
            self.model.reset()
        with storage_errors(self.checkpoint.parent):
            make_directory(self.checkpoint.parent)
        trained = train(model, rows, self.finetuning, checkpoint=self.checkpoint, progress=self.progress)
        report = replace(report, outcome="not-finite", training=trained.training)
        if trained.diverged:
            return report

        def score(adapter: Adapter) -> Scores:
            with wearing(model, adapter) as base:
                return mean_scores(evaluate(base, heldout, max_new_tokens=settings.max_new_tokens))

        trial = judge(model, trained, present, settings.gate, heldout, score=score)
        outcome, strength = "promoted" if trial.promoted else "rejected", trial.candidate.strength
        told = {"round": self.number, "outcome": outcome, "strength": strength, "rows": len(rows)}
        metrics = {**told, **asdict(trial.scores), "adapter": model.fingerprint(PERSONAL)}
        with wearing(model, trial.candidate):
            self.adapters.save_candidate(model, metrics=metrics, slots=trial.candidate.states)
        return replace(report, present=trial.present, candidate=trial.scores)
