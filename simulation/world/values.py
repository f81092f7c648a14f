"""Draw values for blanks: made-up names, times, numbers, words from a pool.

A slot's source is one of

    red|green|blue      a word of this list
    #colour             a word of a pool in `pools.toml`
    @person             made by a rule below; `@int 2 9` takes bounds

Names are put together from syllables, so a world never runs out of people and places nobody has heard of.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Final

from simulation.world.bank import pool

__all__ = ["MAKERS", "TIMES", "draw"]

_LAST_SAFE_DAY: Final = 28
_MINUTES: Final = (0, 10, 15, 20, 30, 40, 45, 50)
TIMES: Final = ("@time", "@morning", "@evening")
_TRIPLED: Final = re.compile(r"(\w)\1\1")


def _stem(rng: random.Random) -> str:
    return rng.choice(pool("onset")) + rng.choice(pool("vowel")) + rng.choice(pool("middle"))


def _name(ends: str) -> Callable[[random.Random], str]:
    def make(rng: random.Random) -> str:
        return _TRIPLED.sub(r"\1\1", _stem(rng) + rng.choice(pool(ends))).capitalize()

    return make


def _titled(rng: random.Random) -> str:
    return f"{rng.choice(pool('adjective'))} {rng.choice(pool('noun'))}".title()


def _time(first: int, last: int) -> Callable[[random.Random], str]:
    return lambda rng: f"{rng.randint(first, last):02d}:{rng.choice(_MINUTES):02d}"


def _digits(count: int) -> Callable[[random.Random], str]:
    return lambda rng: "".join(str(rng.randrange(10)) for _ in range(count))


_person, _pet, _family = _name("person_end"), _name("pet_end"), _name("family_end")
_brand, _place = _name("brand_end"), _name("place_end")

MAKERS: Final[dict[str, Callable[[random.Random], str]]] = {
    "person": _person,
    "pet": _pet,
    "family": _family,
    "brand": _brand,
    "place": _place,
    "street": lambda rng: f"{_family(rng)} {rng.choice(pool('street_kind'))}",
    "firm": lambda rng: f"{_family(rng)} {rng.choice(pool('firm_kind'))}",
    "titled": _titled,
    "venue": lambda rng: f"the {_titled(rng)}",
    "time": _time(6, 22),
    "morning": _time(6, 11),
    "evening": _time(18, 23),
    "weekday": lambda rng: rng.choice(pool("weekday")),
    "month": lambda rng: rng.choice(pool("month")),
    "date": lambda rng: f"{rng.randint(1, _LAST_SAFE_DAY)} {rng.choice(pool('month'))}",
    "code": _digits(4),
    "long_code": _digits(6),
    "letter_code": lambda rng: f"{rng.choice('ABCDEFGHJKLMNPRSTVWXYZ')}{rng.randrange(10, 100)}",
}


def draw(source: str, rng: random.Random) -> str:
    """Draw one value from a slot's source.

    >>> draw("@int 3 3", random.Random(0))
    '3'
    """
    if source.startswith("#"):
        return rng.choice(pool(source[1:]))
    if source.startswith(("@int ", "@km ")):
        low, high = (int(bound) for bound in source.split()[1:])
        return str(rng.randint(low, high))
    if source.startswith("@"):
        return MAKERS[source[1:]](rng)
    return rng.choice(source.split("|"))
