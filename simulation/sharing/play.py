"""Play one arm on the fleet of one seed: rounds, and after some of them every device measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from client.durable import make_directory, replace_file, storage_errors
from client.evaluation import ExampleScore, evaluate, forgetting_probe, mean_scores
from client.recorded import release
from client.serving import Serving, Way, choose_way
from simulation.records import RoundRecord
from simulation.retrieval import retrieve
from simulation.sharing.export import export_adapter
from simulation.sharing.fleets import DeviceFacts, Ground
from simulation.sharing.learning import ArmTask, Learning, make_learning
from simulation.sharing.tensorboard import RoundWriter
from simulation.threads import single_thread
from simulation.users import UserData

__all__ = ["RoundDone", "play_arm"]


@dataclass(frozen=True, slots=True)
class RoundDone:
    """An arm has come so far."""

    seed: int
    arm: str
    round: int


def play_arm(task: ArmTask) -> Iterator[RoundDone | list[RoundRecord]]:
    """Yield a sign after each round, and at the end one list of records for each device."""
    with single_thread(), RoundWriter(task.kept("tensorboard")) as board, ExitStack() as stack:
        try:
            ground = Ground(task.folder)
            records = _Records(ground.arm(task.arm.name) / "records.jsonl")
            learning = stack.enter_context(closing(make_learning(task, ground)))
            meter = _Meter(task, ground, learning)
            began = time.perf_counter()
            for number in range(task.config.rounds + 1):
                learning.go_to(number)
                if number in task.config.measured_rounds and number not in records.rounds:
                    found = [meter.measure(device, number) for device in task.measured]
                    seconds = (time.perf_counter() - began) / len(found)
                    records.append([each.model_copy(update={"seconds": seconds}) for each in found])
                    began = time.perf_counter()
                if number in records.rounds:
                    board.add(records.rounds[number])
                yield RoundDone(task.seed, task.arm.name, number)
            adapter = learning.shared_adapter()
            if adapter is not None:
                export_adapter(adapter, task.kept("adapters"))
            yield from records.by_device()
        finally:
            release()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a device does, answering in one way.

    Attributes:
        scores: of the user's held-out questions.
        probe: nats per token of general text.
    """

    scores: Sequence[ExampleScore]
    probe: float


class _Meter:
    """Measures the devices of one arm."""

    def __init__(self, task: ArmTask, ground: Ground, learning: Learning) -> None:
        self._task, self._ground, self._learning = task, ground, learning
        self._fleet = ground.fleet
        with self._fleet.participant(0).bare() as base:
            self._untrained = forgetting_probe(base)

    def measure(self, device: int, number: int) -> RoundRecord:
        """Let a device choose with what to answer after a round, and score that."""
        task, config, user = self._task, self._task.config, self._task.users[device]
        facts, stage = self._ground.facts(device), config.stage_of(number)
        bare = _Outcome([facts.bare[question.example_id] for question in user.heldout], self._untrained)
        served, meant, way, promoted = bare, None, "none", None
        if task.arm.kind == "retrieval" and number:
            served = self._retrieve(device, number)
        serving = self._learning.serving(device, number)
        if serving is not None and serving.ways:
            planned, way = serving.ways[0], self._choose(serving, device, number, facts)
            meant, promoted = self._answer(serving, planned, user), way == planned
            served = meant if promoted else bare if way == "none" else self._answer(serving, way, user)
        takes_part = device < task.devices
        since = config.rounds_since_measured(number) if task.arm.trains and takes_part else ()
        rows = [row for each in since for row in self._fleet.examples(device, each)]
        return RoundRecord(
            seed=task.seed,
            user=user.user_id,
            arm=task.arm.name,
            round=number,
            seen=len(user.stream) * stage // config.stages,
            annotations=facts.asked[stage - 1] if stage and task.arm.learns and takes_part else 0,
            gate_annotations=facts.gate_asked[stage - 1] if stage and task.arm.trains else 0,
            original_rows=sum(not row.is_synthesized for row in rows),
            synthesized_rows=sum(row.is_synthesized for row in rows),
            steps=sum(config.steps_of(each, task.devices) for each in since),
            promoted=promoted,
            scores=self._metrics(served),
            candidate={} if meant is None else _finite(self._metrics(meant)),
            by_kind=_by_kind(served.scores, user),
            way=way,
            unseen=not takes_part,
            **self._learning.spent(device),
        )

    def _choose(self, serving: Serving, device: int, number: int, facts: DeviceFacts) -> Way:
        holdout = self._fleet.holdout(device, number)
        bare = mean_scores([facts.bare[row.example_id] for row in holdout]) if holdout else None
        return choose_way(serving, holdout, bare=bare, max_new_tokens=self._task.config.max_new_tokens)

    def _answer(self, serving: Serving, way: Way, user: UserData) -> _Outcome:
        with serving.answering(way) as base:
            scores = evaluate(base, user.heldout, max_new_tokens=self._task.config.max_new_tokens)
            return _Outcome(scores, forgetting_probe(base))

    def _retrieve(self, device: int, number: int) -> _Outcome:
        config, asked = self._task.config, self._task.users[device].heldout
        pool = [row for row in self._fleet.examples(device, number) if not row.is_synthesized]
        with self._fleet.participant(device).bare() as base:
            shots = retrieve(base, pool, [question.question for question in asked], count=config.shots)
            scores = evaluate(base, asked, shots=shots, max_new_tokens=config.max_new_tokens)
        return _Outcome(scores, self._untrained)

    def _metrics(self, outcome: _Outcome) -> dict[str, float]:
        return _means(outcome.scores) | {"forgetting": outcome.probe - self._untrained}


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    """Return no metrics where one is not finite: such an adapter is none that could be measured."""
    return metrics if all(map(math.isfinite, metrics.values())) else {}


def _means(scores: Sequence[ExampleScore]) -> dict[str, float]:
    means = mean_scores(scores)
    return {"rouge1": means.rouge1, "rougeL": means.rouge_l, "nll": means.nll_per_token}


def _by_kind(scores: Sequence[ExampleScore], user: UserData) -> dict[str, dict[str, float]]:
    kinds: dict[str, list[ExampleScore]] = {}
    for score in scores:
        if kind := user.heldout_kinds.get(score.example_id):
            kinds.setdefault(kind, []).append(score)
    return {kind: _means(each) for kind, each in sorted(kinds.items())}


class _Records:
    """What an arm has measured so far: one line for each round, with a record for each device.

    Args:
        path: of the file; a line that a kill cut short is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[int, list[RoundRecord]] = {}
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with suppress(ValidationError):
                records = _LINE.validate_json(line)
                self._lines[records[0].round] = records

    @property
    def rounds(self) -> Mapping[int, Sequence[RoundRecord]]:
        """The rounds after which devices were measured, with a record for each device."""
        return self._lines

    def append(self, records: Sequence[RoundRecord]) -> None:
        """Add a round."""
        self._lines[records[0].round] = list(records)
        text = b"".join(_LINE.dump_json(each) + b"\n" for _, each in sorted(self._lines.items()))
        with storage_errors(self._path):
            make_directory(self._path.parent)
            replace_file(self._path, text)

    def by_device(self) -> Iterator[list[RoundRecord]]:
        """Yield each device's records, in the order of rounds."""
        rounds = [each for _, each in sorted(self._lines.items())]
        yield from map(list, zip(*rounds, strict=True))


_LINE: Final = TypeAdapter(list[RoundRecord])
