"""The printed rule: replace a random set that the newcomer beats on every metric (arXiv 2311.12275).

While there is room, keep. When the buffer is full, the sets that the newcomer beats on EOE, DSS and IDD, all three and
strictly, are the candidates; one of them, drawn uniformly, is replaced; without a candidate the newcomer is dropped.

Deviation: IDDs of held sets are those against the buffer as it is now, not as it was when they came. The rule freezes
early: every replacement raises the bar on all three metrics, and text without a lexicon word (DSS 0) never gets in.
`metrics` also makes the single-metric ablations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.selection.held import Held
from client.selection.policy import Action, Decision, Scored

__all__ = ["Paper"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """Compare on each of `metrics`, names of numbers that `Scored` and `Held` both have."""

    metrics: tuple[str, ...] = ("eoe", "dss", "idd")

    def decide(self, newcomer: Scored, held: Held, rng: np.random.Generator) -> Decision:
        """Keep while there is room, else replace a beaten set, else drop."""
        evidence = {name: float(getattr(newcomer, name)) for name in self.metrics}
        if held.has_room:
            return Decision(action=Action.KEEP, reason="room", evidence=evidence)
        beaten = np.ones(len(held), dtype=bool)
        for name in self.metrics:
            beaten &= evidence[name] > getattr(held, name)
        candidates = np.flatnonzero(beaten)
        evidence["beaten"] = float(len(candidates))
        if not len(candidates):
            return Decision(action=Action.DROP, reason="beats-none", evidence=evidence)
        victim = int(rng.choice(candidates))
        evidence |= {f"victim_{name}": float(getattr(held, name)[victim]) for name in self.metrics}
        return Decision(action=Action.REPLACE, victim_id=held.ids[victim], reason="beats", evidence=evidence)
