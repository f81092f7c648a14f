"""What a selection policy is given and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from client.selection.held import Held
    from client.selection.metrics import Vector

__all__ = ["Action", "Decision", "Policy", "Scored"]


class Action(StrEnum):
    """What becomes of a newcomer."""

    KEEP = "keep"
    REPLACE = "replace"
    DROP = "drop"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A dialogue as a policy sees it: numbers, no text.

    Attributes:
        dialogue_id: whose scores they are.
        vector: unit vector of the dialogue, (hidden,).
        domain: its dominant domain, or "unknown".
        eoe: entropy of embedding, in the buffer's reading.
        dss: domain specific score.
        idd: in-domain dissimilarity to the buffer as it is now.
        question_words: how many different words the user said.
        possessives: how many words of the user's say that something is the user's own ("my", "our", "mein", "我的").
        answered: whether its user accepted the response or gave the ideal one; never of a newcomer.
    """

    dialogue_id: str
    vector: Vector = field(repr=False)
    domain: str
    eoe: float
    dss: float
    idd: float = 1.0
    question_words: int = 0
    possessives: int = 0
    answered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a policy decided and why; numbers only.

    Attributes:
        action: keep in a free bin, replace the victim, or drop. The buffer alone answers "queue", during a round.
        victim_id: the dialogue that leaves; only with `Action.REPLACE`.
        reason: a short code.
        evidence: the numbers the decision rests on, all finite.
    """

    action: Action
    victim_id: str | None = None
    reason: str
    evidence: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.action is Action.REPLACE) != (self.victim_id is not None):
            raise ValueError("a victim belongs to 'replace' and to no other action")
        if not all(math.isfinite(value) for value in self.evidence.values()):
            raise ValueError(f"evidence for {self.reason!r} is not finite")


class Policy(Protocol):
    """Decide about one newcomer.

    A policy keeps no state of its own: all that must outlive a restart is in `held`, which the buffer stores. The same
    newcomer, `held` and generator state give the same decision.
    """

    def decide(self, newcomer: Scored, held: Held, rng: np.random.Generator) -> Decision:
        """Return what becomes of `newcomer`; a victim is one of `held.ids`, and a full buffer never gets "keep"."""
