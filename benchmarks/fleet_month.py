"""What a month of a fleet's life costs beside its devices' work: the simulated clock alone.

Phones, boards and laptops come and go, charge, drop out and straggle for thirty days; one cohort is asked after the
other, and answers nothing as soon as its hardware would have been done.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.report import markdown, spread
from server.transport import Answer, Request
from simulation.fleet.availability import DAY_SECONDS
from simulation.fleet.config import FleetConfig
from simulation.fleet.faults import FaultConfig
from simulation.fleet.tasks import TaskCost
from simulation.fleet.transport import SimulatedFleet
from strategies.rule import Turn
from strategies.sampling import SamplingConfig, uniform

__all__ = ["Month", "measure", "table"]

_DAYS: Final = 30
_DEADLINE_SECONDS: Final = 7200.0
_SAMPLING: Final = SamplingConfig(cohort=20, over_selection=1.3)
_COST: Final = TaskCost(tokens=200_000, parameters=10**8, bytes_up=4 * 10**6, bytes_down=4 * 10**6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """One measurement: devices of the fleet, rounds that it played, seconds that it took."""

    devices: int
    rounds: int
    seconds: float


class _Idle:
    """Devices that have nothing to do."""

    def __init__(self, devices: int) -> None:
        self._devices = dict.fromkeys(range(devices), 8)

    def devices(self) -> Mapping[int, int]:
        return self._devices

    def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
        del seconds
        return (Answer(device=request.device) for request in requests)

    def wait(self) -> None:
        raise AssertionError("nobody waits for a simulation")


def measure(devices: int) -> Month:
    """Go through a month."""
    config = FleetConfig(devices=devices, faults=FaultConfig(dropout=0.1, stragglers=0.2), leave_share=0.2)
    number = 0
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "fleet.jsonl"
        began = time.perf_counter()
        fleet = SimulatedFleet(_Idle(devices), config, cost=lambda _: _COST, journal=journal, enough=_SAMPLING.cohort)
        while fleet.now < _DAYS * DAY_SECONDS:
            number += 1
            online = fleet.devices()
            cohort = uniform(online, config=_SAMPLING, seed=0, server_round=number, participations={})
            turn = Turn(round=number, exchange=0, rank=8, scale=2.0)
            requests = [Request(device=device, turn=turn, down={}, agreement={}) for device in cohort]
            list(fleet.ask(requests, seconds=_DEADLINE_SECONDS))
        return Month(devices=devices, rounds=number, seconds=time.perf_counter() - began)


def table(found: Sequence[Month]) -> str:
    """Return the months by size of the fleet."""
    rows = []
    for devices in sorted({month.devices for month in found}):
        own = [month for month in found if month.devices == devices]
        rows.append([f"{devices:,}", spread([m.rounds for m in own], 0), spread([m.seconds for m in own], 1)])
    return markdown(["devices", "rounds in 30 days", "seconds"], rows)
