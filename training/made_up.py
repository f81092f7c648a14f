"""Make up names, places, things and numbers, so that the model learns to copy words it never saw."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Final

from training.tables import read_words

_WORDS: Final = read_words("words")
_ONSETS: Final = _WORDS["onsets"]
_VOWELS: Final = _WORDS["vowels"]
_CODAS: Final = _WORDS["codas"]

DAYS: Final = _WORDS["days"]
MONTHS: Final = _WORDS["months"]


def made_up_word(rng: random.Random, syllables: int | None = None) -> str:
    """Make up a lower-case word of one to four syllables."""
    count = syllables or rng.choice((1, 2, 2, 3, 3, 4))
    parts = []
    for index in range(count):
        coda = rng.choice(_CODAS) if index == count - 1 and rng.random() < 0.6 else ""
        parts.append(rng.choice(_ONSETS) + rng.choice(_VOWELS) + coda)
    return "".join(parts)


def made_up_name(rng: random.Random) -> str:
    """Make up a name, or take a real first name a third of the time."""
    if rng.random() < 0.35:
        return rng.choice(_WORDS["first_names"])
    return made_up_word(rng, rng.choice((1, 2, 2, 3))).capitalize()


def made_up_place(rng: random.Random) -> str:
    """Make up a town, or take a real city a third of the time."""
    if rng.random() < 0.35:
        return rng.choice(_WORDS["cities"])
    return made_up_word(rng, rng.choice((2, 2, 3))).capitalize() + rng.choice(
        ("", "", "ville", "ton", "burg", " Bay", " Hill")
    )


def clock_time(rng: random.Random) -> str:
    """Return a time of day in one of several notations."""
    hour, minute = rng.randint(1, 12), rng.choice((0, 0, 15, 30, 45, 5, 20))
    half = rng.choice(("am", "pm"))
    if minute:
        return f"{hour}:{minute:02d} {half}"
    return rng.choice((f"{hour} {half}", f"{hour} o'clock", f"{hour} {half}"))


def code(rng: random.Random) -> str:
    """Make up a code of letters and digits, or a number."""
    if rng.random() < 0.5:
        return str(rng.randint(11, 99999))
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    return f"{letters}{rng.choice(('', '-', ''))}{rng.randint(1, 9999)}"


# The slot "hobby" is filled from the section "hobbies", and so on.
_LISTS: Final = {
    slot: _WORDS[section]
    for section, slot in {
        "pets": "pet", "relations": "relation", "things": "thing", "jobs": "job", "foods": "food", "drinks": "drink",
        "colours": "colour", "hobbies": "hobby", "days": "day", "months": "month", "events": "event",
    }.items()
}  # fmt: skip
_MAKERS: Final[dict[str, Callable[[random.Random], str]]] = {
    "name": made_up_name, "place": made_up_place, "word": made_up_word, "code": code, "time": clock_time,
    "number": lambda rng: str(rng.randint(2, 99)),
}  # fmt: skip
_SLOT: Final = re.compile(r"\{(\w+)\}")


def draw(slot: str, rng: random.Random) -> str:
    """Draw a value for a slot.

    Slots: name, place, word, code, time, number, pet, relation, thing, job, food, drink, colour, hobby, day, month,
    event; a digit behind the name ("name2") makes it another slot of the same kind.
    """
    kind = slot.rstrip("0123456789")
    return _MAKERS[kind](rng) if kind in _MAKERS else rng.choice(_LISTS[kind])


def fill(template: str, rng: random.Random) -> str:
    """Fill the slots of a template, each with a fresh draw."""
    return _SLOT.sub(lambda match: draw(match.group(1), rng), template)


def fill_alike(templates: Sequence[str], rng: random.Random) -> list[str]:
    """Fill the slots of several templates, the same slot with the same value in all of them."""
    slots = dict.fromkeys(slot for template in templates for slot in _SLOT.findall(template))
    values = {slot: draw(slot, rng) for slot in slots}
    return [_SLOT.sub(lambda match: values[match.group(1)], template) for template in templates]
