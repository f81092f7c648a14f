"""Decide whether a synthesized question may stand in for its original: one reason code for each way to fail.

The paper compares a generated question with its original by ROUGE-1 and drops poor ones (Qin et al., arXiv 2311.12275).
Ours: the window has an upper end too, since a copy teaches nothing new; and a question must ask what the original asks.
It keeps the original's numbers and names and half of its content, brings no new numbers and names, and gives no answer
away: ROUGE alone passes "What is my favourite drink?" for "What is my sister's name?", as most of a short question is
grammar. All rules look at words of any script; none needs a word list.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from os.path import commonprefix
from typing import Final

from client.rouge import rouge1
from client.selection.words import split_words
from florilegium.errors import ConfigError

__all__ = [
    "DEFAULT_RULES",
    "Reason",
    "Rules",
    "check_answer",
    "check_question",
    "check_window",
    "content_kept",
    "key_tokens",
    "word_key",
]


class Reason(StrEnum):
    """Why a sample was dropped."""

    NO_BRACKETS = "no-brackets"
    EMPTY = "empty"
    ODD_CHARACTERS = "odd-characters"
    SAME_AS_ORIGINAL = "same-as-original"
    DUPLICATE = "duplicate-of-sibling"
    TOO_LONG = "too-long"
    ROUGE_TOO_HIGH = "rouge-too-high"
    ROUGE_TOO_LOW = "rouge-too-low"
    NOT_A_QUESTION = "not-a-question"
    ANSWERS = "answers-instead-of-asks"
    LOST_CONTENT = "lost-content"
    LOST_KEY_TOKEN = "lost-key-token"
    NEW_KEY_TOKEN = "new-key-token"
    ANSWER_STRAYS = "answer-strays"
    NO_ROOM = "no-room"
    SURPLUS = "surplus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a synthesized text must satisfy.

    Attributes:
        rouge_low: least ROUGE-1 F1 with the original; below it the meaning is likely another.
        rouge_high: largest; above it the text is the original over again.
        content_low: least share of the original's content that stays; see `content_kept`.
        length_ratio: at most this many times the original's characters, and 16 more.
        batches: at most this many batches of `count` samples are drawn for one example.

    Raises:
        ConfigError: a value is out of its range.
    """

    rouge_low: float = 0.3
    rouge_high: float = 0.95
    content_low: float = 0.5
    length_ratio: float = 2.0
    batches: int = 3

    def __post_init__(self) -> None:
        if not 0.0 <= self.rouge_low <= self.rouge_high <= 1.0:
            raise ConfigError(
                f"the ROUGE-1 window must satisfy 0 <= low <= high <= 1, got [{self.rouge_low}, {self.rouge_high}]",
                "0.3 and 0.95 are the defaults",
            )
        if not 0.0 <= self.content_low <= 1.0:
            raise ConfigError(f"content_low must be from 0 to 1, got {self.content_low}", "0.5 is the default")
        if not self.length_ratio >= 1.0:
            raise ConfigError(f"length_ratio must be >= 1, got {self.length_ratio}", "2.0 is the default")
        if self.batches < 1:
            raise ConfigError(f"batches must be >= 1, got {self.batches}", "3 is the default")

    def longest(self, original: str) -> int:
        """Return how many characters a text that stands in for `original` may have."""
        return int(self.length_ratio * len(original)) + _LENGTH_SLACK


DEFAULT_RULES: Final = Rules()
_LENGTH_SLACK: Final = 16
_ROUNDING: Final = 1e-9  # F1 is a quotient of quotients; 3 words of 10 may come out a hair below 0.3
_QUESTION_MARKS: Final = frozenset("?？؟՞፧\u037e")
# Control, format, private and unassigned characters, surrogates: no one types them.
_ODD_CATEGORIES: Final = frozenset({"Cc", "Cf", "Co", "Cn", "Cs"})
_ODD_CHARACTERS: Final = frozenset("[]{}<>|\ufffd")
_SENTENCE_ENDS: Final = (".", "?", "!", ":", "…", "。")


def word_key(text: str) -> tuple[str, ...]:
    """Return what two texts share when they differ in case, punctuation and spacing only."""
    return tuple(split_words(text)) or (text.strip().casefold(),)


def key_tokens(text: str) -> frozenset[str]:
    """Return the numbers and the names of a text: what no rewording may change.

    A name is a word with a capital letter that does not open a sentence; single letters ("I") are none. Where a third
    of the words or more are capitalised (titles, German nouns, shouting), capitals tell nothing and only numbers count.

    >>> sorted(key_tokens("When does Anna's train leave for York? At 7:30 or at 8?"))
    ['30', '7', '8', 'anna', 'york']
    """
    numbers = set(re.findall(r"\d+", text))
    pieces = text.split()
    opens = [True, *(piece.rstrip("\"'”’)").endswith(_SENTENCE_ENDS) for piece in pieces)]
    named = [
        word
        for piece, first in zip(pieces, opens, strict=False)
        if not first and any(character.isupper() for character in piece)
        for word in split_words(piece)
        if len(word.split("'")[0].split("’")[0]) > 1 and not word.isdigit()
    ]
    return frozenset(numbers if 3 * len(named) >= max(len(pieces), 4) else numbers | set(named))


def check_question(
    candidate: str, *, original: str, response: str, siblings: Iterable[tuple[str, ...]] = (), rules: Rules
) -> Reason | None:
    """Return the first rule that `candidate` breaks, or None where it may stand in for `original`.

    Args:
        candidate: the synthesized question, on one line.
        original: the question it was written from.
        response: the answer to the original, which the candidate must not give away.
        siblings: `word_key` of the questions already accepted for the same original.
        rules: the window and the lengths.
    """
    return _check_text(candidate, original, frozenset(siblings), rules) or _check_meaning(
        candidate, original, response, rules
    )


def check_answer(candidate: str, *, original: str, rules: Rules) -> Reason | None:
    """Return the first rule that an answer to a synthesized question breaks; it may repeat `original`, not stray."""
    reason = _check_form(candidate, original, rules)
    return reason or (Reason.ANSWER_STRAYS if rouge1(candidate, original) < rules.rouge_low else None)


def _check_text(candidate: str, original: str, siblings: frozenset[tuple[str, ...]], rules: Rules) -> Reason | None:
    key = word_key(candidate)
    if reason := _check_form(candidate, original, rules):
        return reason
    if key == word_key(original):
        return Reason.SAME_AS_ORIGINAL
    return Reason.DUPLICATE if key in siblings else check_window(rouge1(candidate, original), rules)


def _check_form(candidate: str, original: str, rules: Rules) -> Reason | None:
    if not candidate.strip():
        return Reason.EMPTY
    if any(_is_odd(character) for character in set(candidate) - set(original)):
        return Reason.ODD_CHARACTERS
    return Reason.TOO_LONG if len(candidate) > rules.longest(original) else None


def check_window(rouge: float, rules: Rules) -> Reason | None:
    """Return the side on which a ROUGE-1 value leaves the window; both ends belong to it."""
    if rouge > rules.rouge_high + _ROUNDING:
        return Reason.ROUGE_TOO_HIGH
    return Reason.ROUGE_TOO_LOW if rouge < rules.rouge_low - _ROUNDING else None


def _check_meaning(candidate: str, original: str, response: str, rules: Rules) -> Reason | None:
    if not _asks(candidate, original):
        return Reason.NOT_A_QUESTION
    if _gives_away(candidate, original, response):
        return Reason.ANSWERS
    if not key_tokens(original) <= _tokens(candidate):
        return Reason.LOST_KEY_TOKEN
    if not key_tokens(candidate) <= _tokens(original):
        return Reason.NEW_KEY_TOKEN
    return Reason.LOST_CONTENT if content_kept(candidate, original) < rules.content_low else None


def content_kept(candidate: str, original: str) -> float:
    """Return the share of the original's content that the candidate keeps, in [0, 1].

    A word weighs its letters beyond the third: in most languages the frequent words, which say little, are the short
    ones (Zipf). It is kept if the candidate has a word that differs in at most three last letters. 1 where no word is
    long enough to tell.

    >>> content_kept("What is my favourite drink?", "What is my sister's name?")  # what 1, sister 3, name 1
    0.2
    """
    found = set(split_words(candidate))
    weights = {word: max(0, len(word) - _SHORT) for word in split_words(original)}
    kept = sum(weight for word, weight in weights.items() if any(_same_stem(word, other) for other in found))
    return kept / sum(weights.values()) if any(weights.values()) else 1.0


def _same_stem(one: str, other: str) -> bool:
    common = len(commonprefix([one, other]))
    return one == other or common >= max(_SHORT + 1, max(len(one), len(other)) - _SHORT)


def _asks(candidate: str, original: str) -> bool:
    """Tell whether `candidate` asks, if `original` does.

    It has a question mark or, as "Tell me when …" does, the question's first word after words of its own.
    """
    asked = _QUESTION.search(original)
    if asked is None or _QUESTION.search(candidate) is not None:
        return True
    first = split_words(asked.group())[:1]
    words = split_words(candidate)
    return len(words) > len(split_words(original)) and first[0] in words[1:] if first else True


def _gives_away(candidate: str, original: str, response: str) -> bool:
    """Tell whether `candidate` holds more than half of the words that the response adds to the question."""
    asked = set(split_words(original))
    added = set(split_words(response)) - asked
    return 2 * len(added & set(split_words(candidate))) > len(added)


def _tokens(text: str) -> set[str]:
    return set(split_words(text)) | set(re.findall(r"\d+", text))


def _is_odd(character: str) -> bool:
    return character in _ODD_CHARACTERS or unicodedata.category(character) in _ODD_CATEGORIES
