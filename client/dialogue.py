"""The values that flow through a device: dialogues, annotations, training examples.

Raw text lives only in these types. They print as an identifier and lengths, never as text, so that a log line, an
assertion or an exception that names one gives nothing away.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from florilegium.errors import InputError

__all__ = ["Annotation", "Dialogue", "Example", "Origin", "Verdict", "derive_id", "derive_seed", "shown_id"]

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def derive_id(*parts: str | int) -> str:
    """Return 32 hexadecimal digits that depend on `parts` alone."""
    digest = hashlib.blake2b(digest_size=16, person=b"flori-id")
    for part in parts:
        encoded = str(part).encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def derive_seed(*parts: str | int) -> int:
    """Return a 63-bit seed that depends on `parts` alone, so that no draw depends on a neighbour or on an order."""
    return int(derive_id("seed", *parts)[:16], 16) >> 1


def shown_id(text: str) -> str:
    """Return how a message names what someone gave as an identifier: only what looks like one is repeated."""
    return text if _IDENTIFIER.fullmatch(text) else f"of {len(text)} characters"


def _require_id(text: str) -> None:
    if not _IDENTIFIER.fullmatch(text):
        raise InputError(
            f"a dialogue_id has {len(text)} characters of any kind", "give 1 to 64 letters, digits or any of _ . : -"
        )


def _require_text(name: str, text: str) -> None:
    _require_unicode(name, text)
    if not text.strip():
        raise InputError(f"{name} is empty", "give at least one visible character")


def _require_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} is not valid Unicode", "give text without lone surrogates") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """A dialogue set: what the user asked and what the device's model answered.

    Attributes:
        question: the user's text.
        response: the model's text, as the user saw it.
        dialogue_id: 1 to 64 letters (A to Z), digits or any of "_.:-", since logs and messages name it; 32 random
            hexadecimal digits when none is given.

    Raises:
        InputError: the question is empty, a text is not valid Unicode, or the identifier may be a text.
    """

    question: str
    response: str
    dialogue_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        _require_text("question", self.question)
        _require_unicode("response", self.response)
        _require_id(self.dialogue_id)

    def __repr__(self) -> str:
        return f"Dialogue({self.dialogue_id}, {len(self.question)}+{len(self.response)} characters)"


class Verdict(StrEnum):
    """What a user said of a response."""

    IDEAL = "ideal"
    ACCEPT = "accept"
    SKIP = "skip"


class Origin(StrEnum):
    """How an annotation came about: on request, or read from what the user did."""

    ASKED = "asked"
    EDITED = "edited"
    REGENERATED = "regenerated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """A user's judgement of one dialogue.

    Attributes:
        dialogue_id: the dialogue it belongs to.
        verdict: an ideal answer is given, the response is accepted as it is, or the question was passed over.
        ideal: the ideal answer; only with `Verdict.IDEAL`.
        origin: how it came about.
    """

    dialogue_id: str
    verdict: Verdict
    ideal: str | None = None
    origin: Origin = Origin.ASKED

    def __post_init__(self) -> None:
        _require_id(self.dialogue_id)
        if (self.verdict is Verdict.IDEAL) != (self.ideal is not None):
            raise InputError("an ideal answer belongs to the verdict 'ideal' and to no other")
        if self.ideal is not None:
            _require_text("ideal answer", self.ideal)

    def __repr__(self) -> str:
        return f"Annotation({self.dialogue_id}, {self.verdict}, {self.origin})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training row: a question and the answer to learn.

    Attributes:
        question: the input.
        response: the supervised text.
        source_id: the dialogue it descends from.
        example_id: `source_id` itself for an original, another identifier for a synthesized child.
    """

    question: str
    response: str
    source_id: str
    example_id: str

    @classmethod
    def original(cls, dialogue: Dialogue, response: str) -> Example:
        """Make the row of an annotated dialogue: its question with the response its user wants."""
        key = dialogue.dialogue_id
        return cls(question=dialogue.question, response=response, source_id=key, example_id=key)

    @property
    def is_synthesized(self) -> bool:
        """Whether a model wrote it."""
        return self.example_id != self.source_id

    def __repr__(self) -> str:
        return f"Example({self.example_id} of {self.source_id}, {len(self.question)}+{len(self.response)} characters)"
