r"""Informative: ask where an answer teaches most, one choice after another.

    score(i) = novelty(i) · uncertainty(i),   novelty(i) = (1 − max_{a ∈ A} cos(e_i, e_a)) / 2

A holds what is annotated and what was chosen before, so that no two asks of a round are about the same thing; with A
empty the novelty is 1. The uncertainty is the model's own negative log-likelihood of its response, nats per token, or
1 where no one measured it: the choice is then the farthest-first traversal of core-set selection (Sener and Savarese,
arXiv 1708.00489). A product needs no weight between two numbers of different units, and leaves a copy of something
annotated at zero however unsure the model is.
"""

from __future__ import annotations

from collections.abc import Sequence

from client.annotation.policy import AskPolicy, Candidate
from client.selection.metrics import Vector

__all__ = ["INFORMATIVE", "most_informative_first"]


def most_informative_first(
    candidates: Sequence[Candidate], annotated: Sequence[Vector], wanted: int
) -> list[Candidate]:
    """Return `wanted` candidates: what the user regenerated first, then by score; ties go to the older."""
    left = sorted(candidates, key=lambda each: (each.arrived_index, each.dialogue_id))
    nearest = [max((float(each.vector @ other) for other in annotated), default=-1.0) for each in left]
    chosen: list[Candidate] = []
    while left and len(chosen) < wanted:
        best = max(range(len(left)), key=lambda row: (left[row].regenerated, _score(left[row], nearest[row]), -row))
        nearest.pop(best)
        chosen.append(left.pop(best))
        nearest = [
            max(cosine, float(each.vector @ chosen[-1].vector)) for each, cosine in zip(left, nearest, strict=True)
        ]
    return chosen


def _score(candidate: Candidate, nearest_cosine: float) -> float:
    novelty = min(max((1.0 - nearest_cosine) / 2.0, 0.0), 1.0)
    return novelty * (1.0 if candidate.uncertainty is None else candidate.uncertainty)


INFORMATIVE = AskPolicy(order=most_informative_first, budget=16, needs_uncertainty=True)
