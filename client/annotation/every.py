"""All: ask about every buffered dialogue at a round (Qin et al., arXiv 2311.12275, figure 1).

Under a budget the oldest go first, since they are the next to be replaced.
"""

from __future__ import annotations

from collections.abc import Sequence

from client.annotation.policy import AskPolicy, Candidate
from client.selection.metrics import Vector

__all__ = ["ALL"]


def oldest_first(candidates: Sequence[Candidate], annotated: Sequence[Vector], wanted: int) -> list[Candidate]:
    """Order by what the user regenerated, then by how rarely it was asked, then by arrival."""
    return sorted(candidates, key=lambda each: (not each.regenerated, each.asks, each.arrived_index, each.dialogue_id))


ALL = AskPolicy(order=oldest_first, budget=None)
