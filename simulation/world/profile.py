"""Who a user is: facts, opinions, interests, style, and which wordings of a question are hers in the stream.

Every user draws from a generator of their own, so a user does not depend on how many others there are. What users
share, the town and how popular each part of life is, comes from the seed alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

from client.dialogue import derive_seed
from simulation.world import bank
from simulation.world.bank import Kind
from simulation.world.config import WorldConfig
from simulation.world.facts import Fact, draw_fact
from simulation.world.style import Style, draw_style

__all__ = ["Profile", "Topic", "Town", "draw_profile", "draw_town"]

_Item = TypeVar("_Item")
_INTEREST_SPREAD: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Town:
    """What all users of a seed share.

    Attributes:
        facts: common knowledge.
        interests: for each part of life, how popular it is (a logarithm).
        popularity: for each of the facts, how often people ask about it (a logarithm).
    """

    facts: tuple[Fact, ...]
    interests: tuple[float, ...]
    popularity: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Topic:
    """Something a user talks about.

    Attributes:
        label: private, common, view or chitchat.
        kind: what it is.
        fact: what holds at the stream's beginning; None for chit-chat, which is drawn anew each time.
        asked: the wordings of its question that this user's stream may use.
        kept: the wordings left for held-out questions.
        usual: which of several answers this user usually gives preference.
    """

    label: str
    kind: Kind
    fact: Fact | None
    asked: tuple[str, ...]
    kept: tuple[str, ...]
    usual: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A user before the first dialogue."""

    style: Style
    private: tuple[Topic, ...]
    common: tuple[Topic, ...]
    views: tuple[Topic, ...]
    chitchat: tuple[Topic, ...]


def _pick(items: Sequence[_Item], log_weights: Sequence[float], count: int, rng: random.Random) -> list[_Item]:
    """Draw without replacement, with probabilities that grow with the weights (Gumbel top-k)."""
    noisy = [(weight - math.log(rng.expovariate(1.0)), index) for index, weight in enumerate(log_weights)]
    return [items[index] for _, index in sorted(noisy, reverse=True)[:count]]


def _town_facts(count: int, rng: random.Random) -> tuple[Fact, ...]:
    kinds = rng.sample(bank.common(), len(bank.common()))
    facts: dict[tuple[str, ...], Fact] = {}
    while len(facts) < count:
        kind = kinds[len(facts) % len(kinds)]
        fact = draw_fact(kind, rng, training=False)
        # One fact per question: no second bus line to the museum.
        facts.setdefault((kind.name, *(fact.values[name] for name in kind.key)), fact)
    return tuple(facts.values())


@lru_cache(maxsize=8)
def draw_town(seed: int, facts: int) -> Town:
    """Draw what all users of a seed share."""
    rng = random.Random(derive_seed("town", seed))
    return Town(
        facts=_town_facts(facts, rng),
        interests=tuple(rng.gauss(0, _INTEREST_SPREAD) for _ in bank.lines("domains", "private")),
        popularity=tuple(rng.gauss(0, _INTEREST_SPREAD) for _ in range(facts)),
    )


def _mix(shared: Sequence[float], overlap: float, rng: random.Random) -> list[float]:
    return [overlap * weight + (1 - overlap) * rng.gauss(0, _INTEREST_SPREAD) for weight in shared]


def _topic(label: str, kind: Kind, fact: Fact | None, rng: random.Random) -> Topic:
    wordings = rng.sample(kind.ask, len(kind.ask))
    kept = max(1, len(wordings) // 3)
    return Topic(
        label=label,
        kind=kind,
        fact=fact,
        asked=tuple(wordings[kept:]),
        kept=tuple(wordings[:kept]),
        usual=rng.randrange(2),
    )


def _view(pair: tuple[Kind, Kind], seed: int, conflict: float, rng: random.Random) -> Topic:
    # The majority's side is the town's; `conflict` of the users are of the other opinion.
    majority = derive_seed("majority", seed, pair[0].name) % 2
    kind = pair[majority ^ (rng.random() < conflict)]
    return _topic("view", kind, Fact(kind=kind, values={}), rng)


def draw_profile(seed: int, index: int, config: WorldConfig) -> Profile:
    """Draw user number `index` of a seed."""
    rng = random.Random(derive_seed("profile", seed, index))
    town = draw_town(seed, config.town_facts)
    interests = dict(zip(bank.lines("domains", "private"), _mix(town.interests, config.overlap, rng), strict=True))
    kinds = bank.private()
    chosen = _pick(kinds, [interests[kind.domain] for kind in kinds], config.private_facts, rng)
    known = _pick(town.facts, _mix(town.popularity, config.overlap, rng), config.common_facts, rng)
    views = rng.sample(bank.views(), config.opinions)
    return Profile(
        style=draw_style(rng, training=False),
        private=tuple(_topic("private", kind, draw_fact(kind, rng, training=False), rng) for kind in chosen),
        common=tuple(_topic("common", fact.kind, fact, rng) for fact in known),
        views=tuple(_view(pair, seed, config.conflict, rng) for pair in views),
        chitchat=tuple(_topic("chitchat", kind, None, rng) for kind in bank.chitchat()),
    )
