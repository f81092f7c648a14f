"""What was asked when: durable, so that no restart asks anyone the same thing again."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Final, Self

from client.buffer import PrivateBuffer

__all__ = ["AskHistory", "AskRecord"]

_KEY: Final = "asks"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskRecord:
    """How often one dialogue was asked about, and when last."""

    times: int = 0
    last_day: date
    last_round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AskHistory:
    """The asks of a device.

    Attributes:
        round_number: the last round that asked anything.
        asked: how many asks it made.
        unsent: planned asks that are perhaps not in the queue yet: a process died between plan and queue.
        records: by dialogue, for those still in the buffer.
    """

    round_number: int = -1
    asked: int = 0
    unsent: tuple[str, ...] = ()
    records: Mapping[str, AskRecord] = field(default_factory=dict)

    def asked_in(self, round_number: int) -> int:
        """Return how many asks a round made."""
        return self.asked if round_number == self.round_number else 0

    def plan(self, dialogue_ids: Sequence[str], round_number: int, day: date) -> Self:
        """Add asks, not sent yet."""
        added = {
            key: AskRecord(times=self.times(key) + 1, last_day=day, last_round=round_number) for key in dialogue_ids
        }
        return replace(
            self,
            round_number=round_number,
            asked=self.asked_in(round_number) + len(added),
            unsent=tuple(dialogue_ids),
            records={**self.records, **added},
        )

    def times(self, dialogue_id: str) -> int:
        """Return how often a dialogue was asked about."""
        return self.records[dialogue_id].times if dialogue_id in self.records else 0

    def only(self, dialogue_ids: Collection[str]) -> Self:
        """Forget what is no longer in the buffer."""
        return replace(self, records={key: each for key, each in self.records.items() if key in dialogue_ids})

    @classmethod
    def load(cls, buffer: PrivateBuffer) -> Self:
        """Read the history of a device, empty at first."""
        stored = json.loads(buffer.meta(_KEY) or "{}")
        records = {
            key: AskRecord(times=times, last_day=date.fromordinal(day), last_round=last_round)
            for key, (times, day, last_round) in stored.get("records", {}).items()
        }
        return cls(
            round_number=stored.get("round", -1),
            asked=stored.get("asked", 0),
            unsent=tuple(stored.get("unsent", ())),
            records=records,
        )

    def save(self, buffer: PrivateBuffer) -> Self:
        """Store the history; on return it is on the disk."""
        records = {key: (each.times, each.last_day.toordinal(), each.last_round) for key, each in self.records.items()}
        stored = {"round": self.round_number, "asked": self.asked, "unsent": self.unsent, "records": records}
        buffer.set_meta(_KEY, json.dumps(stored))
        return self
