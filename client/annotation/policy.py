"""What an annotation policy is given and what it answers: numbers, never text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from client.dialogue import Dialogue
from client.selection.metrics import Vector

__all__ = ["AskPolicy", "Candidate", "Measure", "Order"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A buffered dialogue that may be asked about.

    Attributes:
        dialogue_id: which one.
        vector: its embedding, (hidden,), of unit norm.
        arrived_index: its place in the stream.
        asks: how often it was asked about before.
        regenerated: its user wanted another response: the present one was not good.
        uncertainty: how unsure the device's model is of it, nats per token; None where no one measured it.
    """

    dialogue_id: str
    vector: Vector = field(repr=False)
    arrived_index: int
    asks: int = 0
    regenerated: bool = False
    uncertainty: float | None = None


Order: TypeAlias = Callable[[Sequence[Candidate], Sequence[Vector], int], list[Candidate]]
Measure: TypeAlias = Callable[[Sequence[Dialogue]], Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPolicy:
    """Who is asked first, and how many.

    Attributes:
        order: given the candidates, the vectors of what is annotated already and how many will be asked, returns at
            least that many candidates, most wanted first; a pure function, the same for candidates in any order.
        budget: asks when the settings give no number; None asks for all.
        per_day: the budget is for one day, over however many rounds; else for one round.
        needs_uncertainty: whether `order` looks at it; measuring it takes a pass over the candidates.
    """

    order: Order
    budget: int | None
    per_day: bool = False
    needs_uncertainty: bool = False
