"""Decide whether a synthesized text may stand in for its original: one reason code for each way to fail.

The paper compares a generated question with its original by ROUGE-1 and drops poor ones (Qin et al., arXiv 2311.12275).
Ours: the window has an upper end too, since a copy teaches nothing new; and a question must ask what the original asks.
It keeps the original's numbers and names and most of its content, brings no new numbers and names, and gives no answer
away: ROUGE alone passes "What is my favourite drink?" for "What is my sister's name?", as most of a short question is
grammar.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from client.rouge import rouge1
from client.synthesis.meaning import asks, content_kept, gives_away, key_tokens, keys_within, word_key
from florilegium.errors import ConfigError

__all__ = ["DEFAULT_RULES", "Reason", "Rules", "check_answer", "check_question", "check_window"]


class Reason(StrEnum):
    """Why a sample was dropped; the first that holds, in this order."""

    NO_ROOM = "no-room"  # the context is too short for this question
    NO_BRACKETS = "no-brackets"
    EMPTY = "empty"
    ODD_CHARACTERS = "odd-characters"
    TOO_LONG = "too-long"
    SAME_AS_ORIGINAL = "same-as-original"
    DUPLICATE = "duplicate-of-sibling"
    ROUGE_TOO_HIGH = "rouge-too-high"
    ROUGE_TOO_LOW = "rouge-too-low"
    NOT_A_QUESTION = "not-a-question"
    ANSWERS = "answers-instead-of-asks"
    LOST_KEY_TOKEN = "lost-key-token"
    NEW_KEY_TOKEN = "new-key-token"
    LOST_CONTENT = "lost-content"
    ANSWER_STRAYS = "answer-strays"  # pairs only: unlike the annotated answer
    SURPLUS = "surplus"  # good, but enough were found


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
    content_low: float = 0.6
    length_ratio: float = 2.0
    batches: int = 3

    def __post_init__(self) -> None:
        if not 0.0 <= self.rouge_low <= self.rouge_high <= 1.0:
            raise ConfigError(
                f"the ROUGE-1 window must satisfy 0 <= low <= high <= 1, got [{self.rouge_low}, {self.rouge_high}]",
                "0.3 and 0.95 are the defaults",
            )
        if not 0.0 <= self.content_low <= 1.0:
            raise ConfigError(f"content_low must be from 0 to 1, got {self.content_low}", "0.6 is the default")
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
# Control, format, private and unassigned characters, surrogates: no one types them.
_ODD_CATEGORIES: Final = frozenset({"Cc", "Cf", "Co", "Cn", "Cs"})
_ODD_CHARACTERS: Final = frozenset("[]{}<>|\ufffd")


def check_question(
    candidate: str, *, original: str, response: str, siblings: Collection[tuple[str, ...]] = (), rules: Rules
) -> Reason | None:
    """Return the first rule that a synthesized question breaks, or None where it may stand in for `original`.

    Args:
        candidate: the synthesized question, on one line.
        original: the question it was written from.
        response: the answer to the original, which the candidate must not give away.
        siblings: `word_key` of the questions already accepted for the same original.
        rules: the window and the lengths.
    """
    reason = _check_form(candidate, original, rules)
    if reason is not None:
        return reason
    if word_key(candidate) == word_key(original):
        return Reason.SAME_AS_ORIGINAL
    if word_key(candidate) in siblings:
        return Reason.DUPLICATE
    return check_window(rouge1(candidate, original), rules) or _check_meaning(candidate, original, response, rules)


def check_answer(candidate: str, *, original: str, rules: Rules) -> Reason | None:
    """Return the first rule that an answer to a synthesized question breaks.

    It may repeat `original`; it must not stray from it: in its words, its numbers or its names.
    """
    reason = _check_form(candidate, original, rules)
    if reason is not None:
        return reason
    kept = keys_within(key_tokens(original), candidate) and keys_within(key_tokens(candidate), original)
    return None if kept and rouge1(candidate, original) >= rules.rouge_low else Reason.ANSWER_STRAYS


def check_window(rouge: float, rules: Rules) -> Reason | None:
    """Return the side on which a ROUGE-1 value leaves the window; both ends belong to it."""
    if rouge > rules.rouge_high + _ROUNDING:
        return Reason.ROUGE_TOO_HIGH
    return Reason.ROUGE_TOO_LOW if rouge < rules.rouge_low - _ROUNDING else None


def _check_form(candidate: str, original: str, rules: Rules) -> Reason | None:
    if not candidate.strip():
        return Reason.EMPTY
    if any(_is_odd(character) for character in set(candidate) - set(original)):
        return Reason.ODD_CHARACTERS
    return Reason.TOO_LONG if len(candidate) > rules.longest(original) else None


def _check_meaning(candidate: str, original: str, response: str, rules: Rules) -> Reason | None:
    if not asks(candidate, original):
        return Reason.NOT_A_QUESTION
    if gives_away(candidate, original, response):
        return Reason.ANSWERS
    if not keys_within(key_tokens(original), candidate):
        return Reason.LOST_KEY_TOKEN
    if not keys_within(key_tokens(candidate), original):
        return Reason.NEW_KEY_TOKEN
    return Reason.LOST_CONTENT if content_kept(candidate, original) < rules.content_low else None


def _is_odd(character: str) -> bool:
    return character in _ODD_CHARACTERS or unicodedata.category(character) in _ODD_CATEGORIES
