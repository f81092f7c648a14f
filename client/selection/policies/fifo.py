"""Baseline: always keep the newest; the oldest set leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.selection.held import Held
from client.selection.policy import Action, Decision, Scored

__all__ = ["Fifo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fifo:
    """First in, first out."""

    def decide(self, newcomer: Scored, held: Held, rng: np.random.Generator) -> Decision:
        """Keep while there is room, else replace the set that arrived first."""
        del newcomer, rng
        if held.has_room:
            return Decision(action=Action.KEEP, reason="room")
        victim = int(held.arrived.argmin())
        age = float(held.arrived.max() - held.arrived[victim])
        return Decision(action=Action.REPLACE, victim_id=held.ids[victim], reason="oldest", evidence={"age": age})
