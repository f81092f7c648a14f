"""Families of sentence frames that mean the same, with slots.

A frame is a sentence with slots: `{vp}` a verb phrase in its base form ("buy a car"), `{np}` a noun phrase ("the
nearest station"), `{x}` anything within a sentence, `{w}` one word. Frames of a family say the same thing, so a
sentence that fits one of them may be said as any other. A frame that begins with ">" is only ever an outcome,
because as a pattern it would match too much.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Final

from training.tables import read_table

_FIRST_NOT: Final = r"(?!(?:it|this|that|these|those|there|you|i|we|they|he|she|going|up|wrong|so|if|not)\b)"
_SLOTS: Final = {
    "vp": r"(?!(?:the|a|an|not|you|i|we|they|it|my|your|of|in|is|are)\b)[a-z][\w'-]*(?: [^.?!;\n]+)?",
    "np": _FIRST_NOT + r"[^\s.?!,;\n][^?!,;\n]*?",
    "np2": _FIRST_NOT + r"[^\s.?!,;\n][^?!,;\n]*?",
    "x": r"[^\s.?!\n][^.?!\n]*?",
    "w": r"[\w'-]+",
}
_SLOT: Final = re.compile(r"\{(\w+)\}")
_CLAUSE_WORDS: Final = re.compile(
    r"\b(?:is|are|was|were|do|does|did|will|would|but|because|and i|and you|i'm|it's|don't|i am|i like|you are)\b", re.I
)
MOST_WORDS: Final = {"np": 9, "np2": 8, "vp": 22, "x": 22, "w": 1}


@dataclass(frozen=True, slots=True)
class Frame:
    """One way to say a family's meaning, as a pattern and as an outcome."""

    text: str
    pattern: re.Pattern[str] | None


def _pattern(text: str) -> re.Pattern[str]:
    body = text.rstrip(".?!")
    parts: list[str] = []
    position = 0
    for match in _SLOT.finditer(body):
        parts.append(re.escape(body[position : match.start()]))
        parts.append(f"(?P<{match.group(1)}>{_SLOTS[match.group(1)]})")
        position = match.end()
    parts.append(re.escape(body[position:]))
    return re.compile("^" + "".join(parts) + r"[.?!]*$", re.IGNORECASE)


def _frame(text: str) -> Frame:
    if text.startswith(">"):
        return Frame(text[1:].strip(), None)
    return Frame(text, _pattern(text))


_FRAMES: Final = [[_frame(part.strip()) for part in line.split(" | ")] for line in read_table("frames")[""]]
# Most frames begin with their own words: looking them up by the first word spares most of the matching.
_BY_FIRST_WORD: Final[dict[str, list[tuple[Frame, list[Frame]]]]] = {}
for _family in _FRAMES:
    for _item in _family:
        if _item.pattern is not None:
            _first = _item.text.split()[0].strip(".?!,").lower()
            _BY_FIRST_WORD.setdefault(_first, []).append((_item, _family))

_LOWER_AT_START: Final = frozenset(
    [
        "a",
        "an",
        "the",
        "my",
        "your",
        "his",
        "her",
        "its",
        "our",
        "their",
        "this",
        "that",
        "these",
        "those",
        "some",
        "any",
        "every",
        "each",
        "all",
        "many",
        "most",
        "in",
        "on",
        "at",
        "for",
        "to",
        "from",
        "with",
        "of",
        "by",
        "and",
        "or",
        "but",
        "no",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "as",
        "if",
        "when",
        "while",
        "after",
        "before",
        "because",
        "people",
        "what",
        "who",
        "where",
        "why",
        "how",
        "which",
        "it",
        "he",
        "she",
        "they",
        "we",
        "you",
        "are",
        "is",
        "do",
        "does",
        "can",
        "could",
        "would",
        "not",
    ]
)


def lower_first(text: str) -> str:
    """Take the capital from a sentence's first word when it is no name."""
    first = text.split(" ", 1)[0].rstrip(",")
    if first.lower() in _LOWER_AT_START:
        return text[0].lower() + text[1:]
    return text


def upper_first(text: str) -> str:
    """Give a sentence its capital."""
    return text[:1].upper() + text[1:]


def _acceptable(slots: dict[str, str]) -> bool:
    for name, value in slots.items():
        if len(value.split()) > MOST_WORDS[name]:
            return False
        if name in ("np", "np2") and _CLAUSE_WORDS.search(value):
            return False
    return True


def matches(sentence: str) -> list[tuple[Frame, list[Frame], dict[str, str]]]:
    """Return the frames that a sentence fits, with their families and the slots' texts."""
    words = sentence.split()
    if not words:
        return []
    candidates = _BY_FIRST_WORD.get(words[0].strip(".?!,").lower(), [])
    candidates = candidates + _BY_FIRST_WORD.get("{np}", []) + _BY_FIRST_WORD.get("{w}", [])
    found = []
    for frame, family in candidates:
        assert frame.pattern is not None
        match = frame.pattern.match(sentence)
        if match and _acceptable(match.groupdict()):
            found.append((frame, family, match.groupdict()))
    return found


def reframe(sentence: str, rng: random.Random) -> str | None:
    """Say a sentence in another frame of a family it fits, or return None if it fits none.

    The most specific frame (the one with the most words of its own) is preferred.
    """
    found = matches(sentence)
    if not found:
        return None
    found.sort(key=lambda item: -len(_SLOT.sub("", item[0].text)))
    # Now and then a more general reading, for variety.
    frame, family, slots = found[0] if rng.random() < 0.8 else rng.choice(found)
    other = rng.choice([candidate for candidate in family if candidate.text != frame.text])
    filled = other.text
    for name, value in slots.items():
        at_start = frame.text.startswith("{" + name)
        filled = filled.replace("{" + name + "}", lower_first(value) if at_start else value)
    return upper_first(filled)
