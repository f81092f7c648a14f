"""Prepare what a device learns from: its stream, selection, annotation and synthesis, with no adapter anywhere.

All arms of a comparison have the same rows, so they are written once: what a device holds at the end of each stage of
its stream, and from which round to which. Whom to ask is decided by the base model, for all arms alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from client.annotation import ANNOTATION_POLICIES, Oracle, annotated_examples, ask_round
from client.buffer import PrivateBuffer
from client.dialogue import Example, derive_seed
from client.evaluation import uncertainty
from client.model import BaseModel
from client.recorded import Lesson
from client.synthesis import SYNTHESIZERS
from simulation.answers import answer_stream
from simulation.sharing.config import SharingConfig
from simulation.users import UserData

__all__ = ["Curriculum", "prepare", "schedule"]

_FIRST_DAY: Final = date(2026, 1, 1)  # the days of a simulated stream are counted from here


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """What one device learns from.

    Attributes:
        lessons: rows, with the rounds that have them.
        holdout: what its gate judges by, likewise.
        asked: answers asked for to learn from, by stage, so far.
        gate_asked: answers asked for to judge by, likewise.
    """

    lessons: tuple[Lesson, ...]
    holdout: tuple[Lesson, ...]
    asked: tuple[int, ...]
    gate_asked: tuple[int, ...]


def prepare(user: UserData, base: BaseModel, config: SharingConfig, *, draw: int, work: Path) -> Curriculum:
    """Play a user's stream.

    Args:
        user: whose.
        base: answers, embeds, and writes questions.
        config: of the comparison.
        draw: the seed that the user was drawn with.
        work: a folder for temporary files that hold text.
    """
    seeds = (config.seed, draw, user.user_id)
    file = work / f"{user.user_id}.sqlite"
    for stale in work.glob(f"{file.name}*"):
        stale.unlink()
    with closing(
        PrivateBuffer(
            file,
            bins=config.bins,
            policy=config.policy,
            holdout_share=config.holdout_share,
            holdout_bins=config.holdout_bins,
            seed=derive_seed(*seeds, "buffer"),
        )
    ) as buffer:
        stages = list(_stages(user, base, config, buffer, derive_seed(*seeds, "synthesis")))
    for stale in work.glob(f"{file.name}*"):
        stale.unlink()
    return Curriculum(
        lessons=schedule([stage.rows for stage in stages], config),
        holdout=schedule([stage.heldout for stage in stages], config),
        asked=tuple(stage.asked for stage in stages),
        gate_asked=tuple(stage.gate_asked for stage in stages),
    )


@dataclass(frozen=True, slots=True)
class _Stage:
    """What a device holds at the end of a stage."""

    rows: Sequence[Example]
    heldout: Sequence[Example]
    asked: int
    gate_asked: int


def _stages(
    user: UserData, base: BaseModel, config: SharingConfig, buffer: PrivateBuffer, seed: int
) -> Iterator[_Stage]:
    answers = answer_stream(user.stream, base, max_new_tokens=config.max_new_tokens)
    written: dict[str, Sequence[Example]] = {}
    asked = gate_asked = seen = 0
    for stage in range(1, config.stages + 1):
        stop = len(user.stream) * stage // config.stages
        for turn in user.stream[seen:stop]:
            today = _FIRST_DAY + timedelta(days=turn.day)
            buffer.offer(answers.dialogues[turn.turn_id], answers.embeddings[turn.turn_id], day=today)
        seen, day = stop, user.stream[stop - 1].day
        oracle = Oracle({turn.turn_id: turn.preferred_on(day) for turn in user.stream})
        now = _FIRST_DAY + timedelta(days=day)
        for held in (False, True):
            report = ask_round(
                buffer,
                oracle,
                ANNOTATION_POLICIES["all" if held else config.annotation],
                among=buffer.heldout() if held else buffer.dialogues(),
                round_number=stage,
                day=now,
                budget=None if held else stage * config.annotations_per_stage - asked,
                uncertainty=partial(uncertainty, base),
            )
            asked += 0 if held else len(report.asked)
            gate_asked += len(report.asked) if held else 0
        originals = annotated_examples(buffer.dialogues())
        new = [example for example in originals if example.example_id not in written]
        made = SYNTHESIZERS["questions"](base, new, count=config.synthesis_count, seed=seed)
        written |= {example.example_id: synthesis.children for example, synthesis in zip(new, made, strict=True)}
        rows = [row for original in originals for row in (original, *written[original.example_id])]
        yield _Stage(rows, annotated_examples(buffer.heldout()), asked, gate_asked)


def schedule(stages: Sequence[Sequence[Example]], config: SharingConfig) -> tuple[Lesson, ...]:
    """Return each row with the rounds of the stages in which it is held."""
    held: dict[Example, list[int]] = {}
    for stage, rows in enumerate(stages, start=1):
        for row in rows:
            held.setdefault(row, []).append(stage)
    return tuple(
        Lesson(
            example=row,
            since=config.first_round(first),
            until=None if last == config.stages else config.first_round(last + 1) - 1,
        )
        for row, numbers in held.items()
        for first, last in _runs(numbers)
    )


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last of each run of consecutive numbers."""
    first = last = numbers[0]
    for number in numbers[1:]:
        if number > last + 1:
            yield first, last
            first = number
        last = number
    yield first, last
