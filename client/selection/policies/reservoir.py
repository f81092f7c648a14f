"""Baseline: a uniform sample of the stream (Vitter 1985, algorithm R, doi:10.1145/3147.3165).

After t newcomers every one of them is held with probability capacity / t: newcomer t takes a random bin with that
probability. Sets that were forgotten leave room, which the next newcomers fill; the sample is then no longer uniform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.selection.held import Held
from client.selection.policy import Action, Decision, Scored

__all__ = ["Reservoir"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservoir:
    """Uniform reservoir sampling; `held.seen` counts the stream."""

    def decide(self, newcomer: Scored, held: Held, rng: np.random.Generator) -> Decision:
        """Keep while there is room, else draw a place in the stream so far; a place in the buffer is replaced."""
        del newcomer
        if held.has_room:
            return Decision(action=Action.KEEP, reason="room")
        place = int(rng.integers(max(held.seen, len(held)) + 1))
        evidence = {"probability": len(held) / (max(held.seen, len(held)) + 1)}
        if place >= len(held):
            return Decision(action=Action.DROP, reason="not-drawn", evidence=evidence)
        return Decision(action=Action.REPLACE, victim_id=held.ids[place], reason="drawn", evidence=evidence)
