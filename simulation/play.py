"""Play one user under several arms: stream, selection, annotation, synthesis, fine-tuning, gate, measuring.

Everything a device does is done by the device's own parts (buffer, annotation, synthesis, fine-tuning, gate). What arms
share is computed once for a user: the base model's answers and embeddings, its scores, and what it synthesizes from a
dialogue, which depends on the dialogue alone.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from client.adapters import PERSONAL, AdaptedModel, AdapterConfig
from client.annotation import ANNOTATION_POLICIES, Oracle, annotated_examples, ask_round
from client.buffer import BufferedDialogue, PrivateBuffer
from client.dialogue import Dialogue, Example, derive_id, derive_seed
from client.evaluation import ExampleScore, Gate, evaluate, forgetting_probe, mean_scores, uncertainty
from client.finetuning import FineTuneConfig, finetune
from client.model import BaseModel, Embedding, load_model
from client.synthesis import SYNTHESIZERS, Synthesis
from simulation.arms import Arm
from simulation.plan import Task
from simulation.records import RoundRecord
from simulation.retrieval import Shots, retrieve

__all__ = ["play_user"]

_FIRST_DAY: Final = date(2026, 1, 1)  # the days of a simulated stream are counted from here
_GATE: Final = Gate()


def play_user(task: Task) -> Iterator[list[RoundRecord]]:
    """Yield, for each arm of a task, the records of all its rounds."""
    with _single_thread():
        base = load_model(task.config.model)
        model = AdaptedModel(
            base,
            AdapterConfig(rank=task.config.rank, alpha=2.0 * task.config.rank, top_layers=task.config.top_layers),
            slots=(PERSONAL,),
        )
        try:
            stage = _Stage(task, model)
            for arm in task.arms:
                yield _play_arm(stage, arm)
        finally:
            model.detach()


@contextmanager
def _single_thread() -> Iterator[None]:
    """Compute on one thread, in workers and in the parent alike, so that the numbers agree."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Stage:
    """What all arms of one user share: what the base model says of the stream, and whatever was computed once."""

    def __init__(self, task: Task, model: AdaptedModel) -> None:
        self.draw, self.user, self.config, self.model = task.seed, task.user, task.config, model
        self.work = task.work
        self._seeds = (task.config.seed, task.seed, task.user.user_id)
        self.dialogues, self.embeddings = _answer(task, model.base)
        self._syntheses: dict[tuple[str, tuple[Example, ...]], list[Synthesis]] = {}
        self._trained: dict[frozenset[Example], _Trained] = {}
        self._scores: dict[tuple[frozenset[Example], str, tuple[tuple[str, str], ...]], ExampleScore] = {}
        self.untrained = self._measure_probe(_Trained(rows=frozenset()))

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

    def train(self, rows: Sequence[Example]) -> _Trained:
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
            report = finetune(self.model, rows, config=config)
            trained = _Trained(
                rows=key, state=self.model.state(PERSONAL), steps=report.steps, diverged=bool(report.stopped)
            )
            self._trained[key] = self._measure_probe(trained)
        return self._trained[key]

    def evaluate(self, adapter: _Trained, examples: Sequence[Example], shots: Sequence[Shots]) -> list[ExampleScore]:
        """Score an adapter, with `shots` before each question; nothing is computed twice.

        An adapter is first asked in the round it is trained in and then in every round it is in place, by whatever arm.
        So the questions that share a call, and with them the last bits of the numbers, do not depend on other arms.
        """
        before = [tuple(each) for each in shots]
        keys = [(adapter.rows, example.example_id, given) for example, given in zip(examples, before, strict=True)]
        new = [index for index, key in enumerate(keys) if key not in self._scores]
        if new:
            with self.wearing(adapter):
                scores = evaluate(
                    self.model.base,
                    [examples[index] for index in new],
                    shots=[before[index] for index in new],
                    max_new_tokens=self.config.max_new_tokens,
                )
            self._scores.update(zip((keys[index] for index in new), scores, strict=True))
        return [self._scores[key] for key in keys]

    def _measure_probe(self, adapter: _Trained) -> _Trained:
        with self.wearing(adapter):
            return replace(adapter, probe=forgetting_probe(self.model.base))

    @contextmanager
    def wearing(self, adapter: _Trained) -> Iterator[None]:
        """Let the model answer with an adapter inside the block."""
        if adapter.state is None:
            with self.model.active():
                yield
            return
        self.model.load_state(PERSONAL, adapter.state)
        with self.model.active(PERSONAL):
            yield


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """An adapter; the base model itself where there is no state.

    Attributes:
        rows: what it was trained on; it is a function of them.
        state: its tensors.
        steps: optimizer steps.
        probe: nats per token of general text.
        diverged: whether training ended in numbers that are not finite; the state is then that of the beginning.
    """

    rows: frozenset[Example]
    state: Mapping[str, Tensor] | None = None
    steps: int = 0
    probe: float = math.nan
    diverged: bool = False


def _answer(task: Task, base: BaseModel) -> tuple[dict[str, Dialogue], dict[str, Embedding]]:
    """Let the base model answer the stream where the data has no answer, and embed all of it."""
    open_turns = [turn for turn in task.user.stream if turn.response is None]
    answers = base.respond([turn.question for turn in open_turns], max_new_tokens=task.config.max_new_tokens)
    texts = {turn.turn_id: answer.text for turn, answer in zip(open_turns, answers, strict=True)}
    embeddings = {turn.turn_id: answer.embedding for turn, answer in zip(open_turns, answers, strict=True)}
    dialogues = {
        turn.turn_id: Dialogue(
            question=turn.question,
            response=texts[turn.turn_id] if turn.response is None else turn.response,
            dialogue_id=turn.turn_id,
        )
        for turn in task.user.stream
    }
    rest = [dialogue for key, dialogue in dialogues.items() if key not in embeddings]
    embeddings |= {dialogue.dialogue_id: each for dialogue, each in zip(rest, base.embed(rest), strict=True)}
    return dialogues, {key: each for key, each in embeddings.items() if each is not None}


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
                dialogue, embedding = self._stage.dialogues[turn.turn_id], self._stage.embeddings[turn.turn_id]
                self._buffer.offer(dialogue, embedding, day=self._date)
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
        with self._stage.wearing(self._present):
            return uncertainty(self._stage.model.base, dialogues)

    def _learn(self, number: int) -> _Lesson:
        originals = self._everything() if self._arm.sees_everything else annotated_examples(self._buffer.dialogues())
        if not originals:
            return _Lesson()
        children = self._synthesize(originals)
        wanted = number * self._stage.config.annotations_per_round * (1 + self._stage.config.synthesis_count)
        missing = 0 if self._arm.sees_everything else wanted - len(originals) - len(children)
        candidate = self._stage.train([*originals, *children, *_repeated(originals, missing)])
        promoted = self._passes(candidate)
        self._present = candidate if promoted else self._present
        return _Lesson(candidate, promoted, len(originals), len(children), missing)

    def _everything(self) -> list[Example]:
        """Return every turn so far with the answer preferred now, but for those that the gate judges by."""
        judged = {item.dialogue.dialogue_id for item in self._buffer.heldout()}
        return [
            Example.original(self._stage.dialogues[turn.turn_id], turn.preferred_on(self._day))
            for turn in self._stage.user.stream[: self._seen]
            if turn.turn_id not in judged
        ]

    def _synthesize(self, originals: Sequence[Example]) -> list[Example]:
        """Return the children of all originals; those of new ones are written in one go."""
        new = tuple(example for example in originals if example.example_id not in self._made)
        made = self._stage.synthesize(self._arm.synthesizer, new)
        self._made.update((example.example_id, each) for example, each in zip(new, made, strict=True))
        return [child for example in originals for child in self._made[example.example_id].children]

    def _passes(self, candidate: _Trained) -> bool:
        """Let the device's own gate decide; with nothing to judge by, no candidate passes."""
        judged = annotated_examples(self._buffer.heldout())
        if not judged or candidate.diverged:
            return False
        # What is judged must not stand before the question as an example.
        shots = self._shots(judged, self._buffer.dialogues())
        # One call answers the gate's questions and those of the report: a call costs as much as its longest answer.
        new = self._stage.evaluate(candidate, [*judged, *self._stage.user.heldout], [*shots, *self._before])
        old = self._stage.evaluate(self._present, judged, shots)
        return _GATE.better_or_equal(mean_scores(new[: len(judged)]), mean_scores(old))

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
            steps=lesson.candidate.steps if lesson.candidate else 0,
            promoted=lesson.promoted,
            scores=_metrics(scores) | {"forgetting": self._present.probe - self._stage.untrained.probe},
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
        forgotten = lesson.candidate.probe - self._stage.untrained.probe
        return _metrics(self._score(lesson.candidate)) | {"forgetting": forgotten}

    def _score(self, adapter: _Trained) -> list[ExampleScore]:
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

    candidate: _Trained | None = None
    promoted: bool | None = None
    originals: int = 0
    synthesized: int = 0
    repeated: int = 0


def _repeated(originals: Sequence[Example], count: int) -> list[Example]:
    """Return originals once more, in turn, under identifiers of their own."""
    return [
        replace(original, example_id=derive_id("repeat", original.example_id, index))
        for index, original in zip(range(count), itertools.cycle(originals), strict=False)
    ]


def _metrics(scores: Sequence[ExampleScore]) -> dict[str, float]:
    means = mean_scores(scores)
    return {"rouge1": means.rouge1, "rougeL": means.rouge_l, "nll": means.nll_per_token}
