"""Round numbers, so that a test can do the arithmetic beside them, and traces of windows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from simulation.fleet.availability import Always, Interval, Trace
from simulation.fleet.faults import Fault
from simulation.fleet.profile import DeviceProfile
from simulation.fleet.recorded import Recorded
from simulation.fleet.tasks import Task, TaskCost


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    """Return a maker of tasks: 2 s of download (2 MB), 4 s of training, 2 s of upload (1 MB), for a `speed` of 1."""

    def make(
        device: int = 0, *, speed: float = 1.0, fault: Fault | None = None, windows: list[Interval] | None = None
    ) -> Task:
        profile = DeviceProfile(
            memory_mb=1000,
            training_gflops=speed,
            idle_watts=2.0,
            training_watts=10.0,
            radio_joules_per_mb=3.0,
            uplink_mbps=4.0 * speed,
            downlink_mbps=8.0 * speed,
            battery_wh=0.0,
            rank=8,
            share=1.0,
        )
        source = Always() if windows is None else Recorded.of(windows)
        # 1,000 tokens · 4 · 10⁶ parameters = 4 · 10⁹ operations.
        cost = TaskCost(tokens=1000, parameters=10**6, bytes_up=10**6, bytes_down=2 * 10**6)
        return Task(device=device, profile=profile, trace=Trace(source=source), cost=cost, fault=fault or Fault())

    return make
