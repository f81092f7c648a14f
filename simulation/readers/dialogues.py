"""Read dialogue files: each thing said by one side is a question, the other side's next words are its answer.

The formats are told apart by their fields:

    persona1, persona2, turns of {user, text}      a user is the set of a persona's sentences
    turns of {role or speaker, text}, or of texts
    messages of {role, content}                    system messages are passed over

All but the first belong to the `user_id`, or else to the first of the `services` or the `emotion` they are about, or to
a pseudo-user.

Persona files have real users. Such a user belongs to one of two halves for ever, by the hash in `persona_split`; the
first half may train the built-in model, so experiments on personalization read the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import pairwise
from typing import Final, Literal, TypeAlias

from client.dialogue import derive_id
from simulation.readers.assembly import Exchange, name_user, normalized
from simulation.readers.records import FieldError, Record, field, text_of, user_of

__all__ = ["Split", "parse_dialogue", "parse_personas", "persona_split"]

Split: TypeAlias = Literal["train", "evaluate", "all"]
Spoken: TypeAlias = list[tuple[str, str]]

_PERCENT: Final = 100
_TRAIN_PERCENT: Final = 50
_SPEAKER_FIELDS: Final = ("role", "speaker", "user")
_UNSAID: Final = ("developer", "system")


def persona_split(sentences: Iterable[str]) -> Literal["train", "evaluate"]:
    """Return the half of a persona's user.

    The rule: blake2b with an 8-byte digest and person "flori-split" over the UTF-8 of the distinct sentences, sorted
    and joined by newlines, as a big-endian integer modulo 100; below 50 is "train".
    """
    text = "\n".join(sorted(set(sentences)))
    digest = blake2b(text.encode(), digest_size=8, person=b"flori-split").digest()
    return "train" if int.from_bytes(digest, "big") % _PERCENT < _TRAIN_PERCENT else "evaluate"


def _spoken(record: Record) -> Spoken:
    """Return who said what, with one speaker's neighbouring turns joined and empty ones left out."""
    name = "turns" if "turns" in record else "messages"
    turns = record[name]
    if not isinstance(turns, list):
        raise FieldError(f"field {name} must be a list, got {type(turns).__name__}")
    merged: Spoken = []
    for index, turn in enumerate(turns):
        speaker, text = _said(turn, index)
        if not text.strip() or (name == "messages" and speaker in _UNSAID):
            continue
        if merged and merged[-1][0] == speaker:
            merged[-1] = (speaker, f"{merged[-1][1]} {text.strip()}")
        else:
            merged.append((speaker, text.strip()))
    return merged


def _said(turn: object, index: int) -> tuple[str, str]:
    if isinstance(turn, str):
        return ("user", "assistant")[index % 2], turn
    if isinstance(turn, dict):
        names = [name for name in _SPEAKER_FIELDS if name in turn]
        text = turn.get("text", turn.get("content"))
        if names and isinstance(text, str):
            return str(turn[names[0]]), text
    raise FieldError(f"turn {index} must be a text, or have a text or content and one of {', '.join(_SPEAKER_FIELDS)}")


def _answered(spoken: Spoken, answering: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield what was said to some speakers, and what they answered."""
    answering = set(answering)
    for (_, question), (speaker, answer) in pairwise(spoken):
        if speaker in answering:
            yield text_of(question, "text"), text_of(answer, "text")


def _unit(spoken: Spoken) -> str:
    # The words themselves name the dialogue: a file may hold one twice, under two numbers or none.
    return derive_id("dialogue", *(normalized(text) for _, text in spoken))


def _sentences(record: Record, name: str) -> list[str]:
    value = field(record, name)
    if not isinstance(value, list) or not all(isinstance(sentence, str) for sentence in value):
        raise FieldError(f"field {name} must be a list of texts")
    return value


def parse_personas(split: Split) -> Callable[[Record], list[Exchange]]:
    """Return a parser of dialogues between two personas, for users of one half."""

    def parse(record: Record) -> list[Exchange]:
        spoken = _spoken(record)
        exchanges: list[Exchange] = []
        for number in ("1", "2"):
            sentences = _sentences(record, f"persona{number}")
            if split in ("all", persona_split(sentences)):
                user = f"persona-{derive_id('persona', *sorted(set(sentences)))[:12]}"
                exchanges += _exchanges(_answered(spoken, {number}), user, "persona", _unit(spoken))
        return exchanges

    return parse


def _exchanges(said: Iterable[tuple[str, str]], user: str, kind: str, unit: str) -> list[Exchange]:
    return [
        Exchange(user=user, question=question, preferred=answer, unit=unit, kind=kind, dialogue=True)
        for question, answer in said
    ]


def parse_dialogue(pseudo_users: int) -> Callable[[Record], list[Exchange]]:
    """Return a parser of dialogues of one user; the second speaker answers."""

    def parse(record: Record) -> list[Exchange]:
        spoken = _spoken(record)
        unit = _unit(spoken)
        speakers = dict.fromkeys(speaker for speaker, _ in spoken)
        asking = "user" if "user" in speakers else next(iter(speakers), "")
        user = name_user(_owner(record), unit, pseudo_users)
        return _exchanges(_answered(spoken, speakers.keys() - {asking}), user, "dialogue", unit)

    return parse


def _owner(record: Record) -> str:
    if user := user_of(record):
        return user
    services, emotion = record.get("services"), record.get("emotion")
    if isinstance(services, list) and services:
        return str(services[0])
    return emotion.strip() if isinstance(emotion, str) else ""
