"""Make annotations from what a user says or does; every door to a user checks the same things here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from client.buffer import BufferedDialogue
from client.dialogue import Annotation, Dialogue, Example, Origin, Verdict
from florilegium.errors import InputError

__all__ = ["LONGEST_IDEAL_BYTES", "annotated_examples", "judge", "read_edit", "read_regenerate", "training_example"]

LONGEST_IDEAL_BYTES: Final = 8192  # a good thousand words: more than any on-device model answers in one turn

_LONGEST_SHOWN: Final = 16  # a longer verdict may be a dialogue's text in the wrong place


def judge(
    dialogue: Dialogue, verdict: Verdict | str, ideal: str | None = None, *, origin: Origin = Origin.ASKED
) -> Annotation:
    """Make the annotation of a dialogue.

    Args:
        dialogue: what is judged.
        verdict: "ideal", "accept" or "skip".
        ideal: the ideal answer, with "ideal" only.
        origin: how it came about.

    Raises:
        InputError: the verdict is unknown, the ideal answer is missing, empty, too long or no valid text, or an empty
            response is accepted.
    """
    if verdict not in list(Verdict):
        shown = repr(verdict) if len(verdict) <= _LONGEST_SHOWN else f"{len(verdict)} characters"
        raise InputError(f"the verdict must be 'ideal', 'accept' or 'skip', got {shown}")
    verdict = Verdict(verdict)
    if verdict is Verdict.IDEAL and ideal is None:
        raise InputError("an ideal answer is missing", "give its text, or the verdict 'accept' or 'skip'")
    if verdict is Verdict.ACCEPT and not dialogue.response.strip():
        raise InputError(f"the response of {dialogue.dialogue_id} is empty", "give an ideal answer, or skip it")
    if ideal is not None:
        _check_ideal(ideal)
    return Annotation(dialogue_id=dialogue.dialogue_id, verdict=verdict, ideal=ideal, origin=origin)


def read_edit(dialogue: Dialogue, edited: str) -> Annotation:
    """Read a reply that its user edited: an ideal answer for free, or an acceptance where no word changed.

    Raises:
        InputError: as in `judge`.
    """
    _check_ideal(edited)
    if edited.split() == dialogue.response.split():
        return judge(dialogue, Verdict.ACCEPT, origin=Origin.EDITED)
    return judge(dialogue, Verdict.IDEAL, edited, origin=Origin.EDITED)


def read_regenerate(dialogue: Dialogue) -> Annotation:
    """Read a wish for another response: the present one was not good; what would be, only an ask can tell."""
    return judge(dialogue, Verdict.SKIP, origin=Origin.REGENERATED)


def training_example(dialogue: Dialogue, annotation: Annotation | None) -> Example | None:
    """Return the training row of an annotated dialogue: its ideal answer, or the response that was accepted.

    A skipped or regenerated response is never a target.
    """
    if annotation is None or annotation.verdict is Verdict.SKIP:
        return None
    return Example.original(dialogue, dialogue.response if annotation.ideal is None else annotation.ideal)


def annotated_examples(held: Iterable[BufferedDialogue]) -> list[Example]:
    """Return the training rows of those buffered dialogues that have one, in the same order."""
    rows = (training_example(item.dialogue, item.annotation) for item in held)
    return [row for row in rows if row is not None]


def _check_ideal(text: str) -> None:
    if not text.strip():
        raise InputError("the ideal answer is empty", "give at least one visible character, or skip the question")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InputError("the ideal answer is no valid Unicode text", "give UTF-8") from None
    if size > LONGEST_IDEAL_BYTES:
        raise InputError(
            f"the ideal answer has {size} bytes, at most {LONGEST_IDEAL_BYTES} are allowed", "give a shorter one"
        )
