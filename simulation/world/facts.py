"""Facts: a kind with its blanks filled, and which side of the great divide each of them is on.

Every fact there can be belongs to one of two sides, by a hash of its kind and values: the facts that may occur in the
base model's training text, and the facts of evaluated worlds. So no fact of an evaluated user or town is ever stated
in the training text, while every wording is.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from client.dialogue import derive_id
from simulation.world.bank import Kind
from simulation.world.values import draw

__all__ = ["FIRST_TRAINING_SEED", "Fact", "draw_fact", "is_training_seed", "redraw"]

FIRST_TRAINING_SEED: Final = 1_000_000
_ATTEMPTS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact: a kind and a value for each of its blanks."""

    kind: Kind
    values: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Fact({self.kind.name})"

    @property
    def for_training(self) -> bool:
        """Whether the fact may be stated in the base model's training text; else it may in evaluated worlds."""
        return derive_id("fact", self.kind.name, *self.values.values())[0] in "01234567"


def is_training_seed(seed: int) -> bool:
    """Tell whether a seed is reserved for the base model's training text."""
    return seed >= FIRST_TRAINING_SEED


def _draw(kind: Kind, kept: Mapping[str, str], rng: random.Random) -> Fact:
    return Fact(kind=kind, values={name: kept.get(name) or draw(source, rng) for name, source in kind.slots.items()})


def draw_fact(kind: Kind, rng: random.Random, *, training: bool, divided: bool = True) -> Fact:
    """Draw a fact of a kind, of the wanted side unless the kind is not `divided` (chit-chat says nothing to know)."""
    for _ in range(_ATTEMPTS):
        fact = _draw(kind, {}, rng)
        if not divided or fact.for_training == training:
            return fact
    raise AssertionError(f"{kind.name} has too few values")


def redraw(fact: Fact, rng: random.Random) -> Fact:
    """Draw another fact on the same side, with the same key and what else a change leaves alone."""
    kept = {name: fact.values[name] for name in (*fact.kind.key, *fact.kind.keeps)}
    for _ in range(_ATTEMPTS):
        other = _draw(fact.kind, kept, rng)
        if other.for_training == fact.for_training and other.values != fact.values:
            return other
    raise AssertionError(f"{fact.kind.name} has too few values")
