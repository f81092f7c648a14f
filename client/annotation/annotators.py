"""Who answers: a simulated user who knows the ideal answers, or a person who answers later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Protocol

from client.annotation.answers import judge, read_edit, read_regenerate
from client.buffer import BufferedDialogue, PrivateBuffer
from client.dialogue import Annotation, Dialogue, Verdict, shown_id
from client.selection.words import split_words
from florilegium.errors import InputError

__all__ = ["Annotator", "Oracle", "QueueAnnotator"]


class Annotator(Protocol):
    """Answer questions about dialogues."""

    def ask(self, dialogues: Sequence[Dialogue]) -> list[Annotation]:
        """Return what is answered by now; of these dialogues only, not necessarily all of them."""


@dataclass(frozen=True, slots=True)
class Oracle:
    """A simulated user.

    The response is accepted if it differs from the ideal answer in case, punctuation and spacing only: same words, same
    order. Anything more generous would accept "called Rex" for "called Max".

    Attributes:
        ideals: the ideal answer of each dialogue.
    """

    ideals: Mapping[str, str] = field(repr=False)

    def ask(self, dialogues: Sequence[Dialogue]) -> list[Annotation]:
        """Answer every question.

        Raises:
            InputError: the ideal answer of a dialogue is unknown, empty or too long.
        """
        return [self._answer(dialogue) for dialogue in dialogues]

    def _answer(self, dialogue: Dialogue) -> Annotation:
        ideal = self.ideals.get(dialogue.dialogue_id)
        if ideal is None:
            raise InputError(f"no ideal answer is known for dialogue {dialogue.dialogue_id}", "add it to the oracle")
        annotation = judge(dialogue, Verdict.IDEAL, ideal)
        return judge(dialogue, Verdict.ACCEPT) if _same_words(dialogue.response, ideal) else annotation


class QueueAnnotator:
    """A person, asked through a durable queue: the buffer's list of pending asks.

    Questions wait there until they are answered, by the command line or over HTTP, or until their dialogue leaves the
    buffer.

    Args:
        buffer: where questions and answers are kept.
    """

    def __init__(self, buffer: PrivateBuffer) -> None:
        self._buffer = buffer

    def ask(self, dialogues: Sequence[Dialogue]) -> list[Annotation]:
        """Return the answers that are there; queue the other questions, unless they wait already."""
        known = [self._buffer.annotation(dialogue.dialogue_id) for dialogue in dialogues]
        answers = [each for each in known if each is not None and each.verdict is not Verdict.SKIP]
        answered = {each.dialogue_id for each in answers}
        self._buffer.request(key for key in (each.dialogue_id for each in dialogues) if key not in answered)
        return answers

    def answer(
        self, dialogue_id: str, verdict: Verdict | str, ideal: str | None = None, *, day: date | None = None
    ) -> Annotation:
        """Store an answer, asked for or not; a later one replaces it.

        Args:
            dialogue_id: the dialogue.
            verdict: "ideal", "accept" or "skip".
            ideal: the ideal answer, with "ideal" only.
            day: the day to count it on, today (UTC) by default.

        Raises:
            InputError: the dialogue is not in the buffer, or the answer is none; see `judge`.
        """
        return self._store(judge(self._find(dialogue_id).dialogue, verdict, ideal), day)

    def edited(self, dialogue_id: str, text: str, *, day: date | None = None) -> Annotation:
        """Store the reply as its user edited it: an ideal answer that nobody had to ask for.

        Raises:
            InputError: as in `answer`.
        """
        return self._store(read_edit(self._find(dialogue_id).dialogue, text), day)

    def regenerated(self, dialogue_id: str, *, day: date | None = None) -> bool:
        """Note that a user wanted another response; return whether that changes anything.

        An acceptance is taken back. An ideal answer stays, and so does a question that waits already.

        Raises:
            InputError: the dialogue is not in the buffer.
        """
        found = self._find(dialogue_id)
        waits = any(each.dialogue.dialogue_id == dialogue_id for each in self._buffer.pending())
        if waits or (found.annotation is not None and found.annotation.verdict is Verdict.IDEAL):
            return False
        self._store(read_regenerate(found.dialogue), day)
        return True

    def _find(self, dialogue_id: str) -> BufferedDialogue:
        for found in [*self._buffer.dialogues(), *self._buffer.heldout()]:
            if found.dialogue.dialogue_id == dialogue_id:
                return found
        raise _gone(dialogue_id)

    def _store(self, annotation: Annotation, day: date | None) -> Annotation:
        if not self._buffer.annotate(annotation, day=day):
            raise _gone(annotation.dialogue_id)
        return annotation


def _gone(dialogue_id: str) -> InputError:
    return InputError(
        f"no dialogue {shown_id(dialogue_id)} in the buffer", "list the pending ones; it may have been replaced since"
    )


def _same_words(one: str, other: str) -> bool:
    return (split_words(one) or one.split()) == (split_words(other) or other.split())
