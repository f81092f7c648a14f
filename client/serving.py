"""Serving: with which adapters a device answers, as its own hold-out says; with none at all is always a candidate.

    none        the base model
    shared      the shared adapter alone
    personal    what the plan means: the personal adapter, beside the shared one or in its place

Coordination helps devices in the mean and harms some. So every device chooses for itself: the way with the lowest
nats per token of its hold-out, if the gate finds it no worse than none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from client.dialogue import Example
from client.evaluation import Scores, evaluate, mean_scores, nll
from client.gate import Gate
from client.model import BaseModel
from client.participant import Participant
from strategies.plan import Plan
from strategies.rule import Loaded

__all__ = ["Serving", "Way", "choose_way"]

Way = Literal["none", "shared", "personal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A device with all that it could answer with.

    Attributes:
        participant: the device.
        plan: of the fleet.
        loaded: the shared part as the device would use it; None if nothing is shared.
    """

    participant: Participant
    plan: Plan
    loaded: Loaded | None = None

    @property
    def ways(self) -> tuple[Way, ...]:
        """What there is beside "none"; the plan's own way is the first."""
        ways: list[Way] = []
        if self.plan.personal is not None and self.participant.has_personal:
            ways.append("personal")
        if self.loaded is not None:
            ways.append("shared")
        return tuple(ways)

    @contextmanager
    def answering(self, way: Way) -> Iterator[BaseModel]:
        """Let the device's model answer in a way, within the block."""
        if way == "none":
            with self.participant.bare() as base:
                yield base
            return
        plan = replace(self.plan, personal=None) if way == "shared" else self.plan
        with self.participant.serving(plan, self.loaded) as base:
            yield base


def choose_way(
    serving: Serving,
    holdout: Sequence[Example],
    *,
    bare: Scores | None = None,
    gate: Gate | None = None,
    max_new_tokens: int = 64,
) -> Way:
    """Return the way that does best on a device's hold-out; without one, "none".

    Args:
        serving: the device.
        holdout: its annotated dialogues that nothing is trained on.
        bare: the base model's scores on them, if they are known.
        gate: decides whether the best is good enough.
        max_new_tokens: longest answer.
    """
    if not holdout or not serving.ways:
        return "none"
    likelihoods = {way: _nats(serving, way, holdout) for way in serving.ways}
    best = min(likelihoods, key=likelihoods.__getitem__)  # of equals the plan's own
    if bare is None:
        bare = _score(serving, "none", holdout, max_new_tokens)
    candidate = _score(serving, best, holdout, max_new_tokens)
    return best if (gate or Gate()).better_or_equal(candidate, bare) else "none"


def _nats(serving: Serving, way: Way, holdout: Sequence[Example]) -> float:
    with serving.answering(way) as base:
        nats = nll(base, holdout)[0]
    return nats if math.isfinite(nats) else math.inf


def _score(serving: Serving, way: Way, holdout: Sequence[Example], max_new_tokens: int) -> Scores:
    with serving.answering(way) as base:
        return mean_scores(evaluate(base, holdout, max_new_tokens=max_new_tokens))
