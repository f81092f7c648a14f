"""One round of asking: who may be asked, how many, and what comes back.

Durable step by step. The asks are planned and stored, then queued, then put to the annotator, and each answer is stored
as it comes. A round that was killed anywhere is run again with the same number and goes on: what was queued is put to
the annotator again, what was answered is not, and no ask is made beyond the budget.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Final

from client.annotation.annotators import Annotator
from client.annotation.history import AskHistory
from client.annotation.policy import AskPolicy, Candidate, Measure
from client.buffer import BufferedDialogue, PrivateBuffer
from client.dialogue import Annotation, Dialogue, Origin, Verdict
from florilegium.errors import ConfigError, InputError

__all__ = ["AskReport", "AskRules", "ask_round"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskRules:
    """How often anyone is asked about one dialogue.

    Attributes:
        rest_days: days that a question rests after it was asked and skipped.
        max_asks: a dialogue is asked about this many times at most.

    Raises:
        ConfigError: a value is out of its range.
    """

    rest_days: int = 7
    max_asks: int = 2

    def __post_init__(self) -> None:
        if self.rest_days < 0:
            raise ConfigError(f"rest_days must be >= 0, got {self.rest_days}", "7 is the default")
        if self.max_asks < 1:
            raise ConfigError(f"max_asks must be >= 1, got {self.max_asks}", "2 is the default")


DEFAULT_RULES: Final = AskRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class AskReport:
    """What one call of `ask_round` did.

    Attributes:
        asked: dialogues newly asked about, most wanted first.
        answers: all answers that came, to new and to waiting questions.
    """

    asked: tuple[str, ...]
    answers: tuple[Annotation, ...]


def ask_round(
    buffer: PrivateBuffer,
    annotator: Annotator,
    policy: AskPolicy,
    *,
    among: Sequence[BufferedDialogue],
    round_number: int,
    day: date,
    budget: int | None = None,
    rules: AskRules = DEFAULT_RULES,
    uncertainty: Measure | None = None,
) -> AskReport:
    """Ask about dialogues that have no answer yet, each at most once a round, and store what is answered.

    Args:
        buffer: holds the dialogues, the queue and the history.
        annotator: is asked.
        policy: decides who is asked first; its budget counts asks of the day or of the round.
        among: the buffered dialogues in question, such as `buffer.dialogues()`.
        round_number: of the learning round; calling again with the same number resumes it.
        day: today. Budgets and rests count days by it; a clock that jumps, forth or back, counts as time passed.
        budget: asks, in place of the policy's own number.
        rules: rests and repeats.
        uncertainty: measures how unsure the model is of each dialogue's response, nats per token (such as
            `client.evaluation.uncertainty`); called only for policies that look at it.

    Raises:
        ConfigError: the budget is negative.
        InputError: an answer belongs to no dialogue that was asked about.
    """
    history = AskHistory.load(buffer)
    _send(buffer, history, day)
    waiting = {each.dialogue.dialogue_id for each in buffer.pending()}
    due = [each for each in among if _is_due(each, waiting, history, round_number, day, rules)]
    measured: Sequence[float | None] = [None] * len(due)
    if uncertainty is not None and policy.needs_uncertainty:
        measured = uncertainty([each.dialogue for each in due])
    candidates = [_candidate(each, history, value) for each, value in zip(due, measured, strict=True)]
    answered = [each.scored.vector for each in among if _is_answered(each)]
    wanted = min(_allowance(buffer, policy, history, round_number, day, budget), len(candidates))
    asked = tuple(each.dialogue_id for each in policy.order(candidates, answered, wanted)[:wanted])
    held = {each.dialogue.dialogue_id for each in among}
    _send(buffer, history.only(held).plan(asked, round_number, day).save(buffer), day)
    answers = _collect(buffer, annotator, [each.dialogue for each in buffer.pending()], day)
    return AskReport(asked=asked, answers=answers)


def _send(buffer: PrivateBuffer, history: AskHistory, day: date) -> None:
    """Queue what was planned; only then may the annotator see it."""
    if history.unsent:
        buffer.request(history.unsent, day=day)
        replace(history, unsent=()).save(buffer)


def _is_answered(item: BufferedDialogue) -> bool:
    return item.annotation is not None and item.annotation.verdict is not Verdict.SKIP


def _is_due(
    item: BufferedDialogue,
    waiting: Collection[str],
    history: AskHistory,
    round_number: int,
    day: date,
    rules: AskRules,
) -> bool:
    key = item.dialogue.dialogue_id
    if _is_answered(item) or key in waiting:
        return False
    record = history.records.get(key)
    return record is None or (
        record.last_round != round_number
        and record.times < rules.max_asks
        and abs((day - record.last_day).days) >= rules.rest_days
    )


def _candidate(item: BufferedDialogue, history: AskHistory, uncertainty: float | None) -> Candidate:
    key = item.dialogue.dialogue_id
    return Candidate(
        dialogue_id=key,
        vector=item.scored.vector,
        arrived_index=item.arrived_index,
        asks=history.times(key),
        regenerated=item.annotation is not None and item.annotation.origin is Origin.REGENERATED,
        uncertainty=uncertainty,
    )


def _allowance(
    buffer: PrivateBuffer, policy: AskPolicy, history: AskHistory, round_number: int, day: date, budget: int | None
) -> int:
    """Return how many asks are left of the budget."""
    if budget is not None and budget < 0:
        raise ConfigError(f"the annotation budget must be >= 0, got {budget}", "0 asks nothing")
    total = policy.budget if budget is None else budget
    if total is None:
        return sys.maxsize
    return max(0, total - (buffer.on_day(day).asked if policy.per_day else history.asked_in(round_number)))


def _collect(
    buffer: PrivateBuffer, annotator: Annotator, dialogues: Sequence[Dialogue], day: date
) -> tuple[Annotation, ...]:
    if not dialogues:
        return ()
    answers = tuple(annotator.ask(dialogues))
    waiting = {dialogue.dialogue_id for dialogue in dialogues}
    for answer in answers:
        if answer.dialogue_id not in waiting:
            raise InputError(f"dialogue {answer.dialogue_id} was answered, but nobody asked about it")
        buffer.annotate(answer, day=day)
    return answers
