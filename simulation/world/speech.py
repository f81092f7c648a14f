"""What is said about a fact: questions, statements, answers; streams and the training text share it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from simulation.world.bank import lines
from simulation.world.facts import Fact
from simulation.world.style import Style, render

__all__ = ["acknowledge", "answer", "ask", "change", "tell"]


def ask(fact: Fact, wordings: Sequence[str], style: Style, rng: random.Random) -> str:
    """Ask about a fact in one of some wordings."""
    return render(rng.choice(wordings), fact, style)


def tell(fact: Fact, style: Style, rng: random.Random) -> str:
    """State a fact, as its user does."""
    return render(rng.choice(fact.kind.tell), fact, style)


def change(fact: Fact, style: Style, rng: random.Random) -> str:
    """State that a fact has become this one."""
    return render(rng.choice(fact.kind.change), fact, style)


def answer(fact: Fact, style: Style, rng: random.Random) -> str:
    """Answer a question about a fact, without the style's first and last words."""
    return render(rng.choice(style.bodies(fact.kind)), fact, style)


def acknowledge(fact: Fact, style: Style, rng: random.Random) -> str:
    """Repeat a fact that the user has just stated, without the style's first and last words."""
    return f"{rng.choice(lines('talk', 'acknowledge'))} {render(rng.choice(fact.kind.brief), fact, style)}"
