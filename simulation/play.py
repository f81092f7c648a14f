"""Play one user under several arms: stream, selection, annotation, synthesis, fine-tuning, gate, measuring.

Everything a device does is done by the device's own parts (buffer, annotation, synthesis, fine-tuning, gate). What arms
share is computed once for a user: the base model's answers and embeddings, its scores, and what it synthesizes from a
dialogue, which depends on the dialogue alone.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from client.adapters import PERSONAL, AdaptedModel
from client.annotation import ANNOTATION_POLICIES, Oracle, annotated_examples, ask_round
from client.buffer import BufferedDialogue, PrivateBuffer
from client.dialogue import Dialogue, Example, derive_id, derive_seed
from client.evaluation import ExampleScore, evaluate, forgetting_probe, mean_scores, uncertainty
from client.finetuning import FineTuneConfig
from client.gate import Gate, Scores
from client.learning import Adapter, judge, train, wearing
from client.model import load_model
from client.selection.words import split_words
from client.synthesis import SYNTHESIZERS, Synthesis
from simulation.answers import answer_stream
from simulation.arms import Arm
from simulation.plan import Task
from simulation.records import RoundRecord
from simulation.retrieval import Shots, retrieve
from simulation.threads import single_thread

__all__ = ["play_user"]

_Key = tuple[frozenset[Example], float]  # rows and strength: what an adapter is a function of

_FIRST_DAY: Final = date(2026, 1, 1)  # the days of a simulated stream are counted from here


def play_user(task: Task) -> Iterator[list[RoundRecord]]:
    """Yield, for each arm of a task, the records of all its rounds."""
    with single_thread():
        base = load_model(task.config.model)
        model = AdaptedModel(
            base,
            task.config.adapter,
            slots=(PERSONAL,),
        )
        try:
            stage = _Stage(task, model)
            for arm in task.arms:
                yield _play_arm(stage, arm)
        finally:
            model.detach()


class _Stage:
    """What all arms of one user share: what the base model says of the stream, and whatever was computed once."""

    def __init__(self, task: Task, model: AdaptedModel) -> None:
        self.draw, self.user, self.config, self.model = task.seed, task.user, task.config, model
        self.work = task.work
        self._seeds = (task.config.seed, task.seed, task.user.user_id)
        self.answers = answer_stream(task.user.stream, model.base, max_new_tokens=task.config.max_new_tokens)
        self._syntheses: dict[tuple[str, tuple[Example, ...]], list[Synthesis]] = {}
        self._trained: dict[frozenset[Example], Adapter] = {}
        self._scores: dict[tuple[_Key, str, tuple[tuple[str, str], ...]], ExampleScore] = {}
        self._probes: dict[_Key, float] = {}
        self.untrained = Adapter()

    def seed(self, label: str) -> int:
        """Derive a seed that belongs to this user, whatever the arm."""
        return derive_seed(*self._seeds, label)

    def oracle(self, day: int) -> Oracle:
        """Return the user as they would answer on a day of the stream, whenever a question was asked first."""
        return Oracle({turn.turn_id: turn.preferred_on(day) for turn in self.user.stream})

    def synthesize(self, name: str, examples: tuple[Example, ...]) -> list[Synthesis]:
        """Return what a synthesizer makes of examples: a function of these alone, to the last bit, and so of no arm."""
        key = (name, examples)
        if key not in self._syntheses:
            count, seed = self.config.synthesis_count, self.seed("synthesis")
            with self.model.active():
                self._syntheses[key] = SYNTHESIZERS[name](self.model.base, examples, count=count, seed=seed)
        return self._syntheses[key]

    def train(self, rows: Sequence[Example]) -> Adapter:
        """Train a fresh adapter: a function of the set of rows, so arms with the same rows share one."""
        key = frozenset(rows)
        if key not in self._trained:
            config = FineTuneConfig(
                learning_rate=self.config.learning_rate,
                epochs=self.config.epochs,
                batch_size=self.config.batch_size,
                seed=self.seed("finetuning"),
            )
            self.model.reset(PERSONAL, self.seed("adapter"))
            self._trained[key] = train(self.model, rows, config)
        return self._trained[key]

    def evaluate(self, adapter: Adapter, examples: Sequence[Example], shots: Sequence[Shots]) -> list[ExampleScore]:
        """Score an adapter, with `shots` before each question; nothing is computed twice.

        An adapter is first asked in the round it is trained in and then in every round it is in place, by whatever arm.
        So the questions that share a call, and with them the last bits of the numbers, do not depend on other arms.
        """
        before = [tuple(each) for each in shots]
        keys = [(_key(adapter), example.example_id, given) for example, given in zip(examples, before, strict=True)]
        new = [index for index, key in enumerate(keys) if key not in self._scores]
        if new:
            with wearing(self.model, adapter) as base:
                scores = evaluate(
                    base,
                    [examples[index] for index in new],
                    shots=[before[index] for index in new],
                    max_new_tokens=self.config.max_new_tokens,
                )
            self._scores.update(zip((keys[index] for index in new), scores, strict=True))
        return [self._scores[key] for key in keys]

    def forgetting(self, adapter: Adapter) -> float:
        """Return by how many nats per token general text became less likely than it is to the base model."""
        for each in (self.untrained, adapter):
            if _key(each) not in self._probes:
                with wearing(self.model, each) as base:
                    self._probes[_key(each)] = forgetting_probe(base)
        return self._probes[_key(adapter)] - self._probes[_key(self.untrained)]


def _key(adapter: Adapter) -> _Key:
    return adapter.rows, adapter.strength


def _play_arm(stage: _Stage, arm: Arm) -> list[RoundRecord]:
    settings, turns = stage.config, len(stage.user.stream)
    with (
        tempfile.TemporaryDirectory(prefix="florilegium-", dir=stage.work) as folder,
        PrivateBuffer(
            Path(folder) / "buffer.sqlite",
            bins=settings.bins,
            policy=arm.policy,
            holdout_share=settings.holdout_share,
            holdout_bins=settings.holdout_bins,
            seed=stage.seed("buffer"),
        ) as buffer,
    ):
        device = _Device(stage, arm, buffer)
        stops = [turns * number // settings.rounds for number in range(settings.rounds + 1)]
        return [device.live(number, stop) for number, stop in enumerate(stops)]


class _Device:
    """One arm's device: what it holds, what it asked, which adapter is in place."""

    def __init__(self, stage: _Stage, arm: Arm, buffer: PrivateBuffer) -> None:
        self._stage, self._arm, self._buffer = stage, arm, buffer
        self._present = stage.untrained
        self._seen = self._day = 0
        self._asked = {"train": 0, "gate": 0}
        self._before: list[Shots] = []  # the examples before each held-out question, in this round
        self._made: dict[str, Synthesis] = {}  # by example

    def live(self, number: int, stop: int) -> RoundRecord:
        """Observe the stream up to a turn, then learn once; round 0 does neither."""
        began = time.perf_counter()
        self._observe(stop)
        lesson = _Lesson()
        if self._arm.learns and number:
            self._ask(number)
        self._before = self._shots(self._stage.user.heldout, [*self._buffer.dialogues(), *self._buffer.heldout()])
        if self._arm.trains and number:
            lesson = self._learn(number)
        return self._record(number, lesson, began)

    def _observe(self, stop: int) -> None:
        for turn in self._stage.user.stream[self._seen : stop]:
            self._day = turn.day
            if self._arm.learns:
                answers = self._stage.answers
                self._buffer.offer(answers.dialogues[turn.turn_id], answers.embeddings[turn.turn_id], day=self._date)
        self._seen = stop

    @property
    def _date(self) -> date:
        return _FIRST_DAY + timedelta(days=self._day)

    def _ask(self, number: int) -> None:
        """Ask for what is left of the budget so far, and for all of the gate's dialogues."""
        config, oracle = self._stage.config, self._stage.oracle(self._day)
        left = number * config.annotations_per_round - self._asked["train"]
        parts = {
            "train": (ANNOTATION_POLICIES[config.annotation], self._buffer.dialogues(), left),
            "gate": (ANNOTATION_POLICIES["all"], self._buffer.heldout(), None),
        }
        for part, (policy, among, budget) in parts.items():
            report = ask_round(
                self._buffer,
                oracle,
                policy,
                among=among,
                round_number=number,
                day=self._date,
                budget=budget,
                uncertainty=self._uncertainty,
            )
            self._asked[part] += len(report.asked)

    def _uncertainty(self, dialogues: Sequence[Dialogue]) -> list[float]:
        with wearing(self._stage.model, self._present) as base:
            return uncertainty(base, dialogues)

    def _learn(self, number: int) -> _Lesson:
        originals = self._everything() if self._arm.sees_everything else annotated_examples(self._buffer.dialogues())
        if not originals:
            return _Lesson()
        children = self._synthesize(originals)
        wanted = number * self._stage.config.annotations_per_round * (1 + self._stage.config.synthesis_count)
        missing = 0 if self._arm.sees_everything else wanted - len(originals) - len(children)
        candidate, promoted = self._judge(self._stage.train([*originals, *children, *_repeated(originals, missing)]))
        self._present = candidate if promoted else self._present
        return _Lesson(candidate, promoted, len(originals), len(children), missing)

    def _everything(self) -> list[Example]:
        """Return every turn so far with the answer preferred now, but for the questions that the gate judges by."""
        judged = {_words(item.dialogue.question) for item in self._buffer.heldout()}
        return [
            Example.original(self._stage.answers.dialogues[turn.turn_id], turn.preferred_on(self._day))
            for turn in self._stage.user.stream[: self._seen]
            if _words(turn.question) not in judged
        ]

    def _synthesize(self, originals: Sequence[Example]) -> list[Example]:
        """Return the children of all originals; those of new ones are written in one go."""
        new = tuple(example for example in originals if example.example_id not in self._made)
        made = self._stage.synthesize(self._arm.synthesizer, new)
        self._made.update((example.example_id, each) for example, each in zip(new, made, strict=True))
        return [child for example in originals for child in self._made[example.example_id].children]

    def _judge(self, trained: Adapter) -> tuple[Adapter, bool]:
        """Let the device's own gate decide; with nothing to judge by, no candidate passes."""
        judged = annotated_examples(self._buffer.heldout())
        if not judged or trained.diverged:
            return trained, False
        # What is judged must not stand before the question as an example.
        shots = self._shots(judged, self._buffer.dialogues())

        def score(adapter: Adapter) -> Scores:
            # One call answers the gate's questions and those of the report: a call costs as much as its longest answer.
            reported = [] if adapter is self._present else self._stage.user.heldout
            before = [] if adapter is self._present else self._before
            scores = self._stage.evaluate(adapter, [*judged, *reported], [*shots, *before])
            return mean_scores(scores[: len(judged)])

        gate = Gate(strengths=self._stage.config.strengths)
        trial = judge(self._stage.model, trained, self._present, gate, judged, score=score, shots=shots)
        return trial.candidate, trial.promoted

    def _record(self, number: int, lesson: _Lesson, began: float) -> RoundRecord:
        user, kind_of = self._stage.user, {turn.turn_id: turn.kind for turn in self._stage.user.stream}
        scores = self._score(self._present)
        kinds = sorted({user.heldout_kinds.get(each.example_id, "") for each in user.heldout} - {""})
        return RoundRecord(
            seed=self._stage.draw,
            user=user.user_id,
            arm=self._arm.name,
            round=number,
            seen=self._seen,
            annotations=lesson.originals if self._arm.sees_everything else self._asked["train"],
            gate_annotations=self._asked["gate"],
            original_rows=lesson.originals,
            synthesized_rows=lesson.synthesized,
            repeated_rows=lesson.repeated,
            steps=lesson.steps,
            promoted=lesson.promoted,
            strength=lesson.candidate.strength if lesson.candidate else None,
            scores=_metrics(scores) | {"forgetting": self._stage.forgetting(self._present)},
            candidate=self._judged_candidate(lesson),
            by_kind={
                kind: _metrics([each for each in scores if user.heldout_kinds.get(each.example_id) == kind])
                for kind in kinds
            },
            kept=Counter(kind_of[item.dialogue.dialogue_id] for item in self._buffer.dialogues()),
            decisions=dict(self._buffer.stats().outcomes),
            drops=sum((each.drops for each in self._made.values()), Counter[str]()),
            seconds=time.perf_counter() - began,
        )

    def _judged_candidate(self, lesson: _Lesson) -> dict[str, float]:
        if lesson.candidate is None:
            return {}
        forgetting = self._stage.forgetting(lesson.candidate)
        return _metrics(self._score(lesson.candidate)) | {"forgetting": forgetting}

    def _score(self, adapter: Adapter) -> list[ExampleScore]:
        """Score an adapter on the user's held-out questions, with examples before them if the arm retrieves."""
        return self._stage.evaluate(adapter, self._stage.user.heldout, self._before)

    def _shots(self, asked: Sequence[Example], held: Sequence[BufferedDialogue]) -> list[Shots]:
        """Return the examples to put before each question: none, unless the arm retrieves."""
        if not self._arm.retrieves:
            return [[] for _ in asked]
        with self._stage.model.active():
            questions = [example.question for example in asked]
            pool = annotated_examples(held)
            return retrieve(self._stage.model.base, pool, questions, count=self._stage.config.shots)


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What one learning round did."""

    candidate: Adapter | None = None
    promoted: bool | None = None
    originals: int = 0
    synthesized: int = 0
    repeated: int = 0

    @property
    def steps(self) -> int:
        training = None if self.candidate is None else self.candidate.training
        return 0 if training is None else training.steps


def _words(question: str) -> str:
    """Return what makes two questions one to the buffer, which holds out by it."""
    return " ".join(split_words(question)) or question


def _repeated(originals: Sequence[Example], count: int) -> list[Example]:
    """Return originals once more, in turn, under identifiers of their own."""
    return [
        replace(original, example_id=derive_id("repeat", original.example_id, index))
        for index, original in zip(range(count), itertools.cycle(originals), strict=False)
    ]


def _metrics(scores: Sequence[ExampleScore]) -> dict[str, float]:
    means = mean_scores(scores)
    return {"rouge1": means.rouge1, "rougeL": means.rouge_l, "nll": means.nll_per_token}
