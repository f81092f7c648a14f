"""Spending: what a simulated fleet's rounds took, as its journal says.

wasted share = energy spent on replies that nobody heard, or that an abandoned attempt threw away / all energy
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Final

from simulation.fleet.journal import FleetRecord, read_journal
from simulation.fleet.tasks import Usage, total_usage

__all__ = ["FleetSummary", "RoundSpending", "spending", "summarize"]

_JOULES_PER_WH: Final = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSpending:
    """What one round took, waiting for devices and all attempts at it included.

    Attributes:
        round: its number.
        fleet_seconds: from the end of the round before to its own.
        used: what its devices spent.
        wasted: what of it was in vain.
        device_joules: energy that each device drew.
    """

    round: int
    fleet_seconds: float
    used: Usage
    wasted: Usage
    device_joules: Mapping[int, float] = field(repr=False)

    @property
    def wasted_share(self) -> float:
        """The share of the energy that was spent in vain."""
        return _share(self.wasted, self.used)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSummary:
    """What a run took.

    Attributes:
        rounds: how many; of asynchronous ones those in which work was given out.
        fleet_seconds: from the fleet's beginning to the last round's end.
        bytes_up: sent by devices.
        bytes_down: received by them.
        energy_wh: drawn by each device that took part, by its index.
        wasted_share: of the energy, in vain.
    """

    rounds: int
    fleet_seconds: float
    bytes_up: int
    bytes_down: int
    energy_wh: Mapping[int, float] = field(repr=False)
    wasted_share: float

    @property
    def mean_energy_wh(self) -> float:
        """Energy drawn by a device that took part, on average."""
        return math.fsum(self.energy_wh.values()) / max(1, len(self.energy_wh))


def spending(records: Iterable[FleetRecord]) -> Iterator[RoundSpending]:
    """Yield what each round took."""
    began = 0.0
    for number, group in groupby(records, key=lambda record: record.round):
        exchanges = list(group)
        last_attempt = max(record.attempt for record in exchanges)
        joules: defaultdict[int, float] = defaultdict(float)
        for record in exchanges:
            for device, drawn in record.device_joules.items():
                joules[device] += drawn
        yield RoundSpending(
            round=number,
            fleet_seconds=exchanges[-1].ended_at - began,
            used=total_usage(record.used for record in exchanges),
            wasted=total_usage(
                record.wasted if record.attempt == last_attempt else record.used for record in exchanges
            ),
            device_joules=dict(joules),
        )
        began = exchanges[-1].ended_at


def summarize(journal: Path) -> FleetSummary:
    """Sum up a journal.

    Raises:
        StorageError: it cannot be read.
    """
    rounds, seconds, joules = 0, 0.0, defaultdict[int, float](float)
    used, wasted = Usage(), Usage()
    for each in spending(read_journal(journal)):
        rounds, seconds = rounds + 1, seconds + each.fleet_seconds
        used, wasted = total_usage((used, each.used)), total_usage((wasted, each.wasted))
        for device, drawn in each.device_joules.items():
            joules[device] += drawn
    return FleetSummary(
        rounds=rounds,
        fleet_seconds=seconds,
        bytes_up=used.bytes_up,
        bytes_down=used.bytes_down,
        energy_wh={device: drawn / _JOULES_PER_WH for device, drawn in sorted(joules.items())},
        wasted_share=_share(wasted, used),
    )


def _share(wasted: Usage, used: Usage) -> float:
    return wasted.energy_joules / used.energy_joules if used.energy_joules else 0.0
