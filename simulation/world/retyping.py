"""Ask the same again, typed a little differently: a greeting, a politeness, a missing mark, a slip of the finger."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

__all__ = ["retype", "slip"]

_GREETINGS: Final = ("Hey, ", "Hi, ", "Sorry, ", "Again: ", "Quick question: ", "Well, ", "One more time: ", "Oh, ")
_POLITE: Final = (", please", ", thanks", ", if you can", " again", ", once more", " by the way")
_SHORTEST_SLIP: Final = 4
_LOWER_CASE_SHARE: Final = 0.5


def _lowered(text: str) -> str:
    return text if text.split(maxsplit=1)[0] in ("I", "English") else text[0].lower() + text[1:]


def _greet(text: str, rng: random.Random) -> str:
    return rng.choice(_GREETINGS) + _lowered(text)


def _be_polite(text: str, rng: random.Random) -> str:
    if not text.endswith("?"):
        return _greet(text, rng)
    return text[:-1] + rng.choice(_POLITE) + text[-1]


def _drop_marks(text: str, rng: random.Random) -> str:
    bare = text.rstrip(".?!")
    return bare.lower() if rng.random() < _LOWER_CASE_SHARE else bare


_EDITS: Final[tuple[Callable[[str, random.Random], str], ...]] = (_greet, _be_polite, _drop_marks)


def slip(text: str, rng: random.Random) -> str:
    """Swap two neighbouring letters inside a word of at least four letters; other texts stay as they are."""
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if word.isalpha() and len(word) >= _SHORTEST_SLIP]
    if not long:
        return text
    index = rng.choice(long)
    word = words[index]
    at = rng.randrange(1, len(word) - 2)
    words[index] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def retype(text: str, rng: random.Random, *, slips: float) -> str:
    """Type a question a little differently; a share `slips` of the results has a typing error."""
    edited = rng.choice(_EDITS)(text, rng)
    return slip(edited, rng) if rng.random() < slips else edited
