"""Compare what two questions ask, word by word: in any script, with no word list."""

from __future__ import annotations

import re
from typing import Final

from client.selection.words import split_words

__all__ = ["asks", "content_kept", "gives_away", "key_tokens", "keys_within", "word_key"]

_SHORT: Final = 2  # letters of a word that says nothing
_LEAST_STEM: Final = 4
_LONGEST_ENDING: Final = 3
_NUMBER: Final = re.compile(r"\d+")
_ASKING_SENTENCE: Final = re.compile(r"[^.!?…。]*[?？؟՞፧\u037e]")
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
    numbers = set(_NUMBER.findall(text))
    pieces = text.split()
    opens = [True, *(piece.rstrip("\"'”’)").endswith(_SENTENCE_ENDS) for piece in pieces)]
    named = [
        word
        for piece, first in zip(pieces, opens, strict=False)
        if not first and any(character.isupper() for character in piece)
        for word in split_words(piece)
        if len(re.split("['’]", word)[0]) > 1 and not word.isdigit()
    ]
    return frozenset(numbers if 3 * len(named) >= max(len(pieces), 4) else numbers.union(named))


def keys_within(keys: frozenset[str], text: str) -> bool:
    """Tell whether all key tokens stand in a text, in whatever case."""
    return keys <= {*split_words(text), *_NUMBER.findall(text)}


def content_kept(candidate: str, original: str) -> float:
    """Return the share of the original's content that the candidate keeps, in [0, 1].

    A word weighs its letters beyond the second: in most languages the frequent words, which say little, are the short
    ones (Zipf). It is kept if the candidate has a word that differs in at most three last letters. 1 where no word is
    long enough to tell.

    >>> content_kept("What is my favourite drink?", "What is my sister's name?")  # what 2, sister 4, name 2
    0.25
    """
    found = set(split_words(candidate))
    weights = {word: max(0, len(word) - _SHORT) for word in split_words(original)}
    kept = sum(weight for word, weight in weights.items() if any(_same_stem(word, other) for other in found))
    return kept / sum(weights.values()) if any(weights.values()) else 1.0


def _same_stem(one: str, other: str) -> bool:
    stem = max(_LEAST_STEM, max(len(one), len(other)) - _LONGEST_ENDING)
    return one == other or (min(len(one), len(other)) >= stem and one[:stem] == other[:stem])


def asks(candidate: str, original: str) -> bool:
    """Tell whether the candidate asks, if the original does.

    It has a question mark or, as "Tell me when …", the question's first word after some of its own.
    """
    question = _ASKING_SENTENCE.search(original)
    if question is None or _ASKING_SENTENCE.search(candidate) is not None:
        return True
    first, words = split_words(question.group())[:1], split_words(candidate)
    return len(words) > len(split_words(original)) and set(first) <= set(words[1:])


def gives_away(candidate: str, original: str, response: str) -> bool:
    """Tell whether the candidate holds more than half of the words that the response adds to the original."""
    added = set(split_words(response)) - set(split_words(original))
    return 2 * len(added.intersection(split_words(candidate))) > len(added)
