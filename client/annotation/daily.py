"""Daily: a few questions a day, the newest dialogues first, while their user still has them in mind."""

from __future__ import annotations

from collections.abc import Sequence

from client.annotation.policy import AskPolicy, Candidate
from client.selection.metrics import Vector

__all__ = ["DAILY"]


def newest_first(candidates: Sequence[Candidate], annotated: Sequence[Vector], wanted: int) -> list[Candidate]:
    """Order by what the user regenerated, then by how rarely it was asked, then from the newest."""
    return sorted(candidates, key=lambda each: (not each.regenerated, each.asks, -each.arrived_index, each.dialogue_id))


DAILY = AskPolicy(order=newest_first, budget=5, per_day=True)
