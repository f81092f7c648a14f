"""Baseline: spread the held sets over embedding space (greedy k-center, Sener & Savarese 2018, arXiv 1708.00489).

The offline greedy rule picks the point farthest from the chosen ones. As a stream: of the buffer and the newcomer, the
two closest are found; one of that pair leaves. If the pair has the newcomer in it, the newcomer is dropped, else the
older of the two is replaced, so that the smallest distance between held sets never shrinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.selection.held import Held
from client.selection.policy import Action, Decision, Scored

__all__ = ["KCenter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KCenter:
    """Greedy k-center over cosine distance, ignorant of domains."""

    def decide(self, newcomer: Scored, held: Held, rng: np.random.Generator) -> Decision:
        """Keep while there is room, else replace the older of the closest pair if the newcomer lies farther off."""
        del rng
        if held.has_room:
            return Decision(action=Action.KEEP, reason="room")
        distance = 1.0 - float(held.cosines(newcomer.vector).max())
        row = int(held.nearest_cosine.argmax())
        evidence = {"distance": distance, "closest_pair": 1.0 - float(held.nearest_cosine[row])}
        if distance <= evidence["closest_pair"]:
            return Decision(action=Action.DROP, reason="covered", evidence=evidence)
        victim = min((row, int(held.nearest[row])), key=lambda item: int(held.arrived[item]))
        return Decision(action=Action.REPLACE, victim_id=held.ids[victim], reason="farther", evidence=evidence)
