"""A hand-written table of words that may stand for each other in a question, and how to put them there.

Only words with one common reading are listed, and a verb's synonyms take the same form as the verb. Phrases are
replaced whole.
"""

from __future__ import annotations

import random
import re
from typing import Final

from training.inflection import article, plural, verb_forms
from training.tables import read_table


def _groups(section: str) -> list[list[str]]:
    return [[word.strip() for word in line.split(",")] for line in read_table("synonyms")[section]]


def _add(table: dict[str, set[str]], source: str, targets: list[str]) -> None:
    table.setdefault(source, set()).update(target for target in targets if target != source)


def _build() -> dict[str, tuple[str, ...]]:
    table: dict[str, set[str]] = {}
    for head, *rest in _groups("plain"):
        _add(table, head, rest)
    for head, *rest in _groups("nouns"):
        _add(table, head, rest)
        # A synonym that is a phrase ("piece of advice") has no regular plural.
        irregular = {"child": "children", "tv": "tvs", "part": "parts"}
        _add(
            table,
            irregular.get(head, plural(head)),
            [irregular.get(word, plural(word)) for word in rest if " " not in word],
        )
    for head, *rest in _groups("verbs"):
        forms = verb_forms(head)
        for word in rest:
            other = verb_forms(word)
            if word.startswith("not "):
                continue
            for mine, theirs in zip(forms, other, strict=True):
                # "raised" is past and participle: its synonym must have one form for both.
                if mine == forms.past == forms.participle and other.past != other.participle:
                    continue
                if mine in (forms.past, forms.participle) and mine == forms.base:
                    continue
                _add(table, mine, [theirs])
    return {source: tuple(sorted(targets)) for source, targets in table.items() if targets}


SYNONYMS: Final = _build()
_LONGEST_FIRST: Final = sorted(SYNONYMS, key=len, reverse=True)
_PATTERN: Final = re.compile(r"(?<![\w'-])(" + "|".join(map(re.escape, _LONGEST_FIRST)) + r")(?![\w'-])", re.IGNORECASE)
_ARTICLE: Final = re.compile(r"\b(an?) (?=([A-Za-z]))(?=(\w+))", re.IGNORECASE)


def _like(model: str, word: str) -> str:
    return word[0].upper() + word[1:] if model[0].isupper() else word


def fix_articles(text: str) -> str:
    """Make every "a" and "an" agree with the word that follows.

    >>> fix_articles("a easy way")
    'an easy way'
    """

    def fixed(match: re.Match[str]) -> str:
        return _like(match.group(1), article(match.group(3))) + " "

    return _ARTICLE.sub(fixed, text)


def _is_name(match: re.Match[str]) -> bool:
    """Tell a name ("New York Store") from a sentence's first word by its capital in mid-sentence."""
    before = match.string[: match.start()].rstrip()
    return match.group(0)[0].isupper() and bool(before) and before[-1] not in ".?!:"


def replace_synonyms(text: str, rng: random.Random, probability: float) -> str:
    """Replace each known word with a synonym with some probability; names are left alone."""

    def replaced(match: re.Match[str]) -> str:
        word = match.group(0)
        if _is_name(match) or rng.random() >= probability:
            return word
        return _like(word, rng.choice(SYNONYMS[word.lower()]))

    swapped = _PATTERN.sub(replaced, text)
    return fix_articles(swapped) if swapped != text else text
