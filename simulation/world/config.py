"""The knobs of the built-in world."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from florilegium.errors import ConfigError
from simulation.world import bank

__all__ = ["WorldConfig"]

_COUNTS = ("turns", "heldout", "private_facts", "common_facts", "town_facts", "opinions")
_SHARES = ("tell", "style_strength", "answer_variety", "overlap", "conflict", "typos")
_FACTS_PER_COMMON_KIND = 5
_WEIGHTS = ("chitchat", "private", "common", "views", "repeats", "near_duplicates")


def _limits() -> dict[str, int]:
    """Return how much the banks have; each kind of common fact has at least five keys to be about."""
    return {
        "private_facts": len(bank.private()),
        "town_facts": _FACTS_PER_COMMON_KIND * len(bank.common()),
        "opinions": len(bank.views()),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    """What a generated world looks like; the defaults are meant to be ordinary, not to flatter any method.

    Attributes:
        turns: dialogues in a user's stream.
        years: time that the stream spans; facts and styles change per year, not per turn.
        chitchat: weight of small talk and routine requests (the six weights are divided by their sum).
        private: weight of turns about the user's own facts.
        common: weight of questions about the town all users live in.
        views: weight of questions on which people disagree.
        repeats: weight of questions asked before, word for word.
        near_duplicates: weight of questions asked before, with a greeting, a typo or a word more or less.
        private_facts: facts a user has.
        common_facts: town facts a user cares about.
        town_facts: town facts there are.
        opinions: questions on which a user holds an opinion.
        tell: share of the private turns in which the user states the fact instead of asking for it.
        fact_drift: expected changes of one private fact in a year; the user mentions each change.
        style_drift: expected changes of a style's first or last words in a year.
        style_strength: chance that a preferred answer of the stream wears the user's style.
        answer_variety: chance that a preferred answer is not the user's usual wording of it.
        overlap: how alike users' interests are: 0 is independent, 1 is the same parts of life for all.
        conflict: share of the users who hold the minority opinion on a question; 0 means all agree.
        typos: share of the near-duplicates that carry a typing error.
        heldout: questions held out for measuring.
    """

    turns: int = 600
    years: float = 2.0
    chitchat: float = 0.60
    private: float = 0.16
    common: float = 0.08
    views: float = 0.04
    repeats: float = 0.06
    near_duplicates: float = 0.06
    private_facts: int = 24
    common_facts: int = 14
    town_facts: int = 48
    opinions: int = 5
    tell: float = 0.3
    fact_drift: float = 0.15
    style_drift: float = 0.3
    style_strength: float = 0.9
    answer_variety: float = 0.15
    overlap: float = 0.5
    conflict: float = 0.3
    typos: float = 0.4
    heldout: int = 40

    def __post_init__(self) -> None:
        for name in _COUNTS:
            self._require(name, "at least 1", getattr(self, name) >= 1)
        for name in _SHARES:
            self._require(name, "in [0, 1]", 0 <= getattr(self, name) <= 1)
        for item in fields(self):
            self._require(item.name, "at least 0 and finite", 0 <= getattr(self, item.name) < math.inf)
        for name, most in _limits().items():
            self._require(name, f"at most {most}", getattr(self, name) <= most)
        self._require("common_facts", "at most town_facts", self.common_facts <= self.town_facts)
        self._require("chitchat", "such that the weights of new turns are not all zero", sum(self.weights()[:4]) > 0)

    def _require(self, name: str, rule: str, holds: bool) -> None:
        if not holds:
            raise ConfigError(f"{name} must be {rule}, got {getattr(self, name)}")

    def weights(self) -> tuple[float, ...]:
        """Return the weights of chit-chat, private, common, views, repeats and near-duplicates."""
        return tuple(getattr(self, name) for name in _WEIGHTS)
