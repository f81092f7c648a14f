"""What is measured: the metrics, and one record per seed, user, arm and round.

A record holds numbers and short codes, never text: `metrics.jsonl` of a run directory is a list of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict

__all__ = ["METRICS", "Key", "Metric", "RoundRecord"]

Key = tuple[int, str, str]
"""Seed, user and arm: what is played as one piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A quantity that every arm is measured by.

    Attributes:
        name: its key in records and summaries.
        title: its name in tables and figures.
        higher_is_better: its direction.
    """

    name: str
    title: str
    higher_is_better: bool


METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric(name="rouge1", title="ROUGE-1", higher_is_better=True),
        Metric(name="rougeL", title="ROUGE-L", higher_is_better=True),
        Metric(name="nll", title="NLL per token", higher_is_better=False),
        Metric(name="forgetting", title="Forgetting", higher_is_better=False),
    )
}
"""ROUGE: F1 of greedy answers with the user's own, held-out ones. NLL: nats per token of the user's answers.
Forgetting: nats per token that general text became less likely than it is to the base model."""


class RoundRecord(BaseModel):
    """Where one arm stands with one user after a learning round; round 0 is before the first.

    Attributes:
        seed: the draw of users.
        user: the user's short name.
        arm: the arm's name.
        round: 0, 1, ….
        seen: turns of the stream so far.
        annotations: answers the user was asked for to learn from, so far.
        gate_annotations: answers the user was asked for to judge candidates by, so far.
        original_rows: annotated dialogues this round trained on; of fleets, each round since the last measured one.
        synthesized_rows: rows a model wrote that this round trained on, likewise.
        repeated_rows: originals trained on once more to reach the round's number of rows.
        steps: optimizer steps of this round, likewise; of fleets, those that the settings ask of a device on average.
        promoted: whether the candidate passed the gate, and is what the device answers with; None without training.
        strength: how much of the trained adapter the candidate uses; None where nothing was trained.
        scores: metric → value on the held-out questions, with the adapter that the gate left in place.
        candidate: the same for this round's candidate, before the gate; empty where nothing was trained.
        by_kind: kind of held-out question → metric → value, after the gate.
        kept: kind of turn → dialogues of it in the buffer.
        decisions: reason → arrivals decided for it, so far.
        drops: reason → synthesized texts dropped for it, so far.
        way: with which of its adapters the device answers; see `client.serving`.
        unseen: whether the device took no part and only received.
        uplink_bytes: sent by a device of the fleet on average, so far.
        downlink_bytes: received by it, so far.
        fleet_hours: the simulated fleet's time, so far.
        energy_wh: drawn by the device for its tasks, so far.
        seconds: of this round, with its measuring; what was computed for an earlier arm, or for all arms, is not in it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int
    user: str
    arm: str
    round: int
    seen: int
    annotations: int = 0
    gate_annotations: int = 0
    original_rows: int = 0
    synthesized_rows: int = 0
    repeated_rows: int = 0
    steps: int = 0
    promoted: bool | None = None
    strength: float | None = None
    scores: dict[str, float]
    candidate: dict[str, float] = {}
    by_kind: dict[str, dict[str, float]] = {}
    kept: dict[str, int] = {}
    decisions: dict[str, int] = {}
    drops: dict[str, int] = {}
    way: str = ""
    unseen: bool = False
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    fleet_hours: float = 0.0
    energy_wh: float = 0.0
    seconds: float = 0.0

    @property
    def key(self) -> Key:
        """Return seed, user and arm."""
        return self.seed, self.user, self.arm

    @property
    def rows(self) -> int:
        """Return the rows this round trained on."""
        return self.original_rows + self.synthesized_rows + self.repeated_rows
