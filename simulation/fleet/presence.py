"""Presence: who can be asked, as time goes on, which is who is online and not at work.

Time only moves forward, so each window is looked up once, when the one before it ends: from one moment to another a
fleet costs as much as devices come and go, however many there are.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from florilegium.errors import ConfigError
from simulation.fleet.availability import HORIZON_SECONDS, Interval, Trace

__all__ = ["Presence"]


class Presence:
    """Who of a fleet can be asked.

    Args:
        traces: of the devices, by index.
        start: seconds.

    Attributes:
        now: seconds.
    """

    def __init__(self, traces: Sequence[Trace], start: float = 0.0) -> None:
        self.now = start
        self._traces = traces
        self._windows: list[Iterator[Interval]] = [iter(()) for _ in traces]
        self._online: set[int] = set()
        self._busy: dict[int, float] = {}
        self._coming: list[tuple[float, int, float]] = []
        self._leaving: list[tuple[float, int]] = []
        self._working: list[tuple[float, int]] = []
        for device in range(len(traces)):
            self._look_ahead(device, start)
        self.advance(start)

    @property
    def busy(self) -> Mapping[int, float]:
        """Until when each device that is at work will be, seconds."""
        return self._busy

    def is_free(self, device: int) -> bool:
        """Tell whether a device can be asked now."""
        return device in self._online and device not in self._busy

    def occupy(self, device: int, until: float) -> None:
        """Let a free device be at work."""
        if until > self.now:
            self._busy[device] = until
            heapq.heappush(self._working, (until, device))

    def advance(self, time: float) -> set[int]:
        """Go on to a time.

        Returns:
            Who can be asked now and, for some while since the last call, could not.
        """
        assert time >= self.now
        self.now = time
        while self._leaving and self._leaving[0][0] <= time:
            left_at, device = heapq.heappop(self._leaving)
            self._online.remove(device)
            self._look_ahead(device, left_at)
        came = set()
        while self._coming and self._coming[0][0] <= time:
            _, device, leaves_at = heapq.heappop(self._coming)
            if leaves_at <= time:
                self._look_ahead(device, leaves_at)
            else:
                self._online.add(device)
                heapq.heappush(self._leaving, (leaves_at, device))
                came.add(device)
        while self._working and self._working[0][0] <= time:
            _, device = heapq.heappop(self._working)
            del self._busy[device]
            came.add(device)
        return {device for device in came if self.is_free(device)}

    def wait(self, needed: int, among: Collection[int]) -> None:
        """Go on to the next moment at which one of `among` comes, or is free again, and `needed` can be asked.

        Raises:
            ConfigError: there is none within a year.
        """
        until = self.now + HORIZON_SECONDS if needed <= len(among) else self.now
        while (moment := self._next_edge()) < until:
            came = self.advance(moment)
            if not came.isdisjoint(among) and sum(map(self.is_free, among)) >= needed:
                return
        raise ConfigError(
            f"of {len(among)} devices nobody comes within a year with whom there are {needed}",
            "make the fleet larger, ask for fewer replies, or let fewer devices leave",
        )

    def _next_edge(self) -> float:
        return min(heap[0][0] if heap else math.inf for heap in (self._coming, self._leaving, self._working))

    def _look_ahead(self, device: int, after: float) -> None:
        """Find the device's next window; who has none within a year is gone for good."""
        window = next(self._windows[device], None)
        if window is None:
            self._windows[device] = self._traces[device].intervals(after, after + HORIZON_SECONDS)
            window = next(self._windows[device], None)
        if window is not None:
            heapq.heappush(self._coming, (window[0], device, window[1]))
