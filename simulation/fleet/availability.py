"""Availability: when a device is online and willing, which is idle, on its charger and on an unmetered network.

A `Trace` is a source of windows, cut to the time in which the device belongs to the fleet. `Daily`, the generative
source, gives each local day one charging window that begins in its evening, and a few sessions in its waking hours:

    begins = 23 h + the device's own shift + jitter,   lasts = 7 h + jitter,   sessions ~ Poisson(weekday or weekend)

All of it is drawn from (seed, device, day) when it is asked for, so that ten thousand devices cost ten thousand small
values and no day of any of them. Time 0 is a Monday's midnight in time zone 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from pydantic import Field

from florilegium.errors import ConfigError
from florilegium.settings import Settings
from simulation.fleet.draws import exponential, normal, poisson, uniforms

__all__ = ["DAY_SECONDS", "HORIZON_SECONDS", "Always", "Daily", "Habits", "Interval", "Source", "Trace", "draw_daily"]

DAY_SECONDS: Final = 86_400.0
# How far ahead anyone looks for a device that may never come again.
HORIZON_SECONDS: Final = 366 * DAY_SECONDS

_HOUR: Final = 3_600.0
_WAKING_HOURS: Final = (8.0, 22.0)
_MOST_SESSIONS: Final = 8
# A day's windows lie within these of its hours, with room for rounding, so that two days decide about any instant.
_FIRST_HOUR, _LAST_HOUR = 1.0, 47.0
_FRIDAY, _SATURDAY = 4, 5

Interval: TypeAlias = tuple[float, float]


class Habits(Settings):
    """How the user of a device with a battery charges it; hours are local.

    Attributes:
        night_share: share of nights on which it is on its charger, and willing.
        night_start_hour: when it is plugged in, on average over devices.
        night_hours: how long it stays so, on average.
        spread_hours: standard deviation of that beginning between devices.
        jitter_hours: standard deviation of beginning and length between one device's nights.
        weekend_shift_hours: how much later nights before Saturday and Sunday begin.
        weekday_sessions: willing sessions between 8 and 22 hours, on average (never more than 8 a day).
        weekend_sessions: those of a Saturday or Sunday.
        session_hours: mean length of a session, exponential.
    """

    night_share: float = Field(0.8, ge=0.0, le=1.0)
    night_start_hour: float = Field(23.0, ge=12.0, le=30.0)
    night_hours: float = Field(7.0, gt=0.0, le=16.0)
    spread_hours: float = Field(1.0, ge=0.0, le=4.0)
    jitter_hours: float = Field(0.75, ge=0.0, le=4.0)
    weekend_shift_hours: float = Field(1.0, ge=0.0, le=4.0)
    weekday_sessions: float = Field(2.5, ge=0.0, le=4.0)
    weekend_sessions: float = Field(3.0, ge=0.0, le=4.0)
    session_hours: float = Field(1.0, gt=0.0, le=12.0)


class Source(Protocol):
    """Where a device's windows come from."""

    def windows(self, start: float, end: float) -> Iterator[Interval]:
        """Yield windows [from, to) by their beginnings, among them all that meet [start, end]; they may overlap."""
        ...


@dataclass(frozen=True, slots=True)
class Always:
    """A device on mains that nobody turns off."""

    def windows(self, start: float, end: float) -> Iterator[Interval]:
        """Yield the one window."""
        del start, end
        yield (-math.inf, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Daily:
    """A device that its user charges by night and at times by day.

    Attributes:
        seed: the fleet's.
        device: its index.
        habits: its user's.
        zone_hours: local time minus fleet time.
        shift_hours: how much later than `habits` says this user plugs in.
    """

    seed: int
    device: int
    habits: Habits
    zone_hours: float = 0.0
    shift_hours: float = 0.0

    def windows(self, start: float, end: float) -> Iterator[Interval]:
        """Yield the windows from the day before `start`'s until `end`'s; without end if that is infinite."""
        day = math.floor((start + self.zone_hours * _HOUR) / DAY_SECONDS) - 1
        pending: list[Interval] = []
        while self._midnight(day) <= end:
            pending = sorted(pending + self._windows_of(day))
            day += 1
            # What begins before the next midnight begins before any window of the next day.
            while pending and pending[0][0] < self._midnight(day):
                yield pending.pop(0)
        yield from pending

    def _midnight(self, day: int) -> float:
        return day * DAY_SECONDS - self.zone_hours * _HOUR

    def _windows_of(self, day: int) -> list[Interval]:
        charges, begins, lasts, sessions, *draws = uniforms(4 + 2 * _MOST_SESSIONS, "day", self.seed, self.device, day)
        hours = [self._night(day % 7, begins, lasts)] if charges < self.habits.night_share else []
        hours += self._sessions(day % 7, sessions, draws)
        midnight = self._midnight(day)
        cut = ((max(first, _FIRST_HOUR), min(last, _LAST_HOUR)) for first, last in hours)
        return [(midnight + first * _HOUR, midnight + last * _HOUR) for first, last in cut if first < last]

    def _night(self, weekday: int, begins: float, lasts: float) -> Interval:
        habits = self.habits
        first = habits.night_start_hour + self.shift_hours + habits.jitter_hours * normal(begins)
        first += habits.weekend_shift_hours if weekday in (_FRIDAY, _SATURDAY) else 0.0
        return first, first + habits.night_hours + habits.jitter_hours * normal(lasts)

    def _sessions(self, weekday: int, uniform: float, draws: Sequence[float]) -> list[Interval]:
        mean = self.habits.weekend_sessions if weekday >= _SATURDAY else self.habits.weekday_sessions
        count = poisson(uniform, mean, _MOST_SESSIONS)
        wakes, sleeps = _WAKING_HOURS
        begins = [wakes + (sleeps - wakes) * draw for draw in draws[:count]]
        lengths = [exponential(draw, self.habits.session_hours) for draw in draws[_MOST_SESSIONS:][:count]]
        return [(first, first + length) for first, length in zip(begins, lengths, strict=True)]


def draw_daily(seed: int, device: int, habits: Habits, time_zones: Sequence[float]) -> Daily:
    """Draw a device's time zone and its user's own hours.

    Args:
        seed: the fleet's.
        device: its index.
        habits: of users of such devices.
        time_zones: hours by which local time is ahead of fleet time, one to be drawn.
    """
    zone, shift = uniforms(2, "user", seed, device)
    return Daily(
        seed=seed,
        device=device,
        habits=habits,
        zone_hours=time_zones[int(zone * len(time_zones))],
        shift_hours=habits.spread_hours * normal(shift),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """When one device is online and willing.

    Attributes:
        source: its windows.
        joins_at: when it joins the fleet, seconds.
        leaves_at: when it leaves for good, seconds; infinite for never.

    Raises:
        ConfigError: it leaves before it joins.
    """

    source: Source
    joins_at: float = 0.0
    leaves_at: float = math.inf

    def __post_init__(self) -> None:
        if not self.joins_at < self.leaves_at:
            raise ConfigError(f"leaves_at must be > joins_at = {self.joins_at}, got {self.leaves_at}")

    def is_online(self, time: float) -> bool:
        """Tell whether the device is online at `time`; windows are half-open, [from, to)."""
        if not self.joins_at <= time < self.leaves_at:
            return False
        return any(first <= time < last for first, last in self.source.windows(time, time))

    def next_online(self, time: float) -> float:
        """Return the earliest time >= `time` at which it is online; infinite if that is more than a year off."""
        return next((first for first, _ in self._windows(time, time + HORIZON_SECONDS)), math.inf)

    def intervals(self, start: float, end: float) -> Iterator[Interval]:
        """Yield when it is online in [start, end): disjoint intervals [from, to), sorted, none touching the next."""
        present: Interval | None = None
        for first, last in self._windows(start, end):
            if present is None:
                present = (first, last)
            elif first <= present[1]:
                present = (present[0], max(last, present[1]))
            else:
                yield present
                present = (first, last)
        if present is not None:
            yield present

    def _windows(self, start: float, end: float) -> Iterator[Interval]:
        """Yield the source's windows, cut to [start, end) and to the time in the fleet."""
        start, end = max(start, self.joins_at), min(end, self.leaves_at)
        if start >= end:
            return
        for window in self.source.windows(start, end):
            first, last = max(window[0], start), min(window[1], end)
            if first >= end:
                return
            if first < last:
                yield first, last
