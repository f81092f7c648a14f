"""Tell whether a stream gives a held-out question away: whether it has said nearly the same, word by word.

    F1 = 2 |a ∩ b| / (|a| + |b|)      a, b: the words of two texts, counted with repetition

A text that shares more than `LIMIT` with one of the stream's is a near-copy of it, and to answer it shows nothing that
was learned. The built-in world and the readers of files hold out by this one rule.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Final, TypeAlias

from client.selection.words import split_words

__all__ = ["LIMIT", "KnownTexts", "overlap_f1", "words_of"]

LIMIT: Final = 0.85
Word: TypeAlias = tuple[str, int]
Bag: TypeAlias = frozenset[Word]


def words_of(text: str) -> list[str]:
    """Return the words of a text, in any script and in one case; a text without words stands for itself.

    >>> words_of("Hi, Zoë!"), words_of(" 🙂 ")
    (['hi', 'zoë'], ['🙂'])
    """
    return split_words(text) or [text.strip()]


def _bag(text: str) -> Bag:
    """Return the words of a text, each with the number of its occurrence, so that sets count like bags."""
    return frozenset((word, number) for word, times in Counter(words_of(text)).items() for number in range(times))


def _f1(left: Bag, right: Bag) -> float:
    return 2 * len(left & right) / (len(left) + len(right))


def overlap_f1(left: str, right: str) -> float:
    """Return the F1 of the words two texts share, counted with repetition.

    >>> overlap_f1("What is my cat called?", "What is my dog called?")
    0.8
    """
    return _f1(_bag(left), _bag(right))


class KnownTexts:
    """Texts that are known, each indexed by a few of its rarest words (prefix filtering: Chaudhuri et al., 2006)."""

    def __init__(self, texts: Iterable[str]) -> None:
        bags = {_bag(text) for text in texts}
        self._spread = Counter(chain.from_iterable(bags))
        self._having: defaultdict[Word, list[Bag]] = defaultdict(list)
        for bag in bags:
            for word in self._rarest(bag):
                self._having[word].append(bag)

    def give_away(self, text: str) -> bool:
        """Tell whether a text is a near-copy of a known one."""
        bag = _bag(text)
        return any(_f1(bag, known) > LIMIT for word in self._rarest(bag) for known in self._having.get(word, ()))

    def _rarest(self, bag: Bag) -> list[Word]:
        """Return so many of a text's rarest words that any two near-copies have one of them in common.

        Of its n words a text shares more than n · LIMIT / (2 - LIMIT) with a near-copy, which has no fewer words than
        they share. So if their rarest shared word were not among these, too few would be left to share.
        """
        count = len(bag) - int(len(bag) * LIMIT / (2 - LIMIT))
        return sorted(bag, key=lambda word: (self._spread[word], word))[:count]
