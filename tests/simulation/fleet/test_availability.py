"""Traces: what holds of every source of windows, and what the generated days look like."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florilegium.errors import ConfigError
from simulation.fleet.availability import DAY_SECONDS, Always, Daily, Habits, Interval, Source, Trace, draw_daily
from simulation.fleet.config import FleetConfig, assign
from simulation.fleet.recorded import Recorded

HOUR = 3600.0
ZONES = (-11.0, -4.5, 0.0, 5.75, 13.0)
TIMES = st.floats(0, 40 * DAY_SECONDS)

habits = st.builds(
    Habits,
    night_share=st.floats(0, 1),
    night_start_hour=st.floats(12, 30),
    night_hours=st.floats(0.1, 16),
    jitter_hours=st.floats(0, 4),
    weekday_sessions=st.floats(0, 4),
    weekend_sessions=st.floats(0.5, 4),
    session_hours=st.floats(0.1, 12),
)
daily = st.builds(draw_daily, st.integers(0, 99), st.integers(0, 99), habits, st.sampled_from([ZONES, ZONES[1:2]]))
windows = st.lists(
    st.tuples(TIMES, st.floats(1, 3 * DAY_SECONDS)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=12
)
sources = st.one_of(st.just(Always()), windows.map(Recorded.of), daily)


@st.composite
def traces(draw: st.DrawFn, source: st.SearchStrategy[Source] = sources) -> Trace:
    joins = draw(st.one_of(st.just(0.0), TIMES))
    leaves = draw(st.one_of(st.just(math.inf), st.floats(1, 30 * DAY_SECONDS).map(lambda stay: joins + stay)))
    return Trace(source=draw(source), joins_at=joins, leaves_at=leaves)


@settings(max_examples=60, deadline=None)
@given(traces(), TIMES, st.floats(0, 20 * DAY_SECONDS), st.lists(st.floats(0, 1), max_size=20))
def test_intervals_are_sorted_disjoint_and_when_it_is_online(
    trace: Trace, start: float, length: float, shares: list[float]
) -> None:
    end = start + length
    intervals = list(trace.intervals(start, end))
    edges = [edge for interval in intervals for edge in interval]
    assert edges == sorted(set(edges)), "each ends after it begins, and before the next begins"
    assert all(start <= edge <= end for edge in edges)
    inside = [share * length + start for share in shares] + [(one + two) / 2 for one, two in pairwise(edges)]
    for moment in edges + inside:
        if start <= moment < end:
            assert trace.is_online(moment) == any(first <= moment < last for first, last in intervals)


@settings(max_examples=50, deadline=None)
@given(traces(), TIMES, st.floats(1, 20 * DAY_SECONDS), st.floats(0, 1))
def test_asking_in_two_parts_says_the_same(trace: Trace, start: float, length: float, share: float) -> None:
    end, middle = start + length, start + share * length
    parts = [*trace.intervals(start, middle), *trace.intervals(middle, end)]
    joined: list[tuple[float, float]] = []
    for first, last in parts:
        if joined and first == joined[-1][1]:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    assert joined == list(trace.intervals(start, end))


@settings(max_examples=60, deadline=None)
@given(traces(), TIMES)
def test_next_online_is_the_earliest(trace: Trace, moment: float) -> None:
    following = trace.next_online(moment)
    assert following >= moment
    if following < math.inf:
        assert trace.is_online(following)
        assert not list(trace.intervals(moment, following))
    else:
        assert not list(trace.intervals(moment, moment + 300 * DAY_SECONDS))


@settings(max_examples=50, deadline=None)
@given(traces(), TIMES)
def test_nobody_is_online_before_joining_or_after_leaving(trace: Trace, moment: float) -> None:
    if not trace.joins_at <= moment < trace.leaves_at:
        assert not trace.is_online(moment)
    always = Trace(source=Always(), joins_at=trace.joins_at, leaves_at=trace.leaves_at)
    assert always.is_online(moment) == (trace.joins_at <= moment < trace.leaves_at)
    assert not trace.is_online(trace.leaves_at)


@settings(max_examples=50, deadline=None)
@given(habits, st.sampled_from(ZONES), TIMES)
def test_a_time_zone_shifts_the_day_and_changes_nothing_else(habits: Habits, zone: float, moment: float) -> None:
    here = Trace(source=Daily(seed=1, device=2, habits=habits), joins_at=-DAY_SECONDS)
    there = Trace(source=Daily(seed=1, device=2, habits=habits, zone_hours=zone), joins_at=-DAY_SECONDS)
    # Midnight comes `zone` hours earlier there, so fleet time is local time minus the zone.
    assert here.is_online(moment) == there.is_online(moment - zone * HOUR)


@dataclass(frozen=True)
class Listed:
    """Windows as they are, overlaps and all."""

    listed: tuple[Interval, ...]

    def windows(self, start: float, end: float) -> Iterator[Interval]:
        yield from self.listed


def test_windows_that_overlap_or_touch_are_one_interval() -> None:
    listed = ((0.0, 9.0), (2.0, 3.0), (9.0, 12.0), (13.0, 14.0), (13.0, 20.0))
    trace = Trace(source=Listed(listed), joins_at=1.0, leaves_at=18.0)
    assert list(trace.intervals(0.0, 100.0)) == [(1.0, 12.0), (13.0, 18.0)]
    assert list(trace.intervals(11.0, 15.0)) == [(11.0, 12.0), (13.0, 15.0)]
    assert [trace.next_online(moment) for moment in (0.0, 11.5, 12.0, 18.0)] == [1.0, 11.5, 13.0, math.inf]


def test_a_trace_leaves_after_it_joins() -> None:
    with pytest.raises(ConfigError, match=r"leaves_at must be > joins_at = 5\.0, got 5\.0"):
        Trace(source=Always(), joins_at=5.0, leaves_at=5.0)


def test_who_never_charges_is_never_online() -> None:
    never = Habits(night_share=0.0, weekday_sessions=0.0, weekend_sessions=0.0)
    trace = Trace(source=Daily(seed=0, device=0, habits=never))
    assert trace.next_online(0.0) == math.inf
    assert not list(trace.intervals(0.0, 100 * DAY_SECONDS))


def test_a_night_by_hand() -> None:
    """Without spread, jitter and sessions each evening's window is known: 23 h to 6 h, an hour later at the weekend."""
    regular = Habits(night_share=1.0, spread_hours=0.0, jitter_hours=0.0, weekday_sessions=0.0, weekend_sessions=0.0)
    trace = Trace(source=draw_daily(0, 0, regular, (0.0,)))
    # Monday's first hours belong to Sunday's evening, whose night is that of a working day.
    evenings = [(-1, 0), (0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 0)]
    expected = [(24 * day + 23 + shift, 24 * day + 30 + shift) for day, shift in evenings]
    hours = [(first / HOUR, last / HOUR) for first, last in trace.intervals(0.0, 7 * DAY_SECONDS)]
    assert hours == [(max(0, first), min(7 * 24, last)) for first, last in expected]


def test_the_longest_night_ends_before_the_evening_after_next() -> None:
    longest = Habits(
        night_share=1.0,
        night_start_hour=30.0,
        night_hours=16.0,
        spread_hours=0.0,
        jitter_hours=0.0,
        weekend_shift_hours=4.0,
        weekday_sessions=0.0,
        weekend_sessions=0.0,
    )
    trace = Trace(source=draw_daily(0, 0, longest, (0.0,)))
    # Friday's begins at 34 h and would last until 50 h, were it not cut at 47 h, Saturday's 23 h.
    saturday = 5 * DAY_SECONDS
    expected = [(saturday + 10 * HOUR, saturday + 23 * HOUR)]
    assert list(trace.intervals(saturday, saturday + DAY_SECONDS)) == expected


def test_shares_and_lengths_are_those_of_the_habits() -> None:
    nights = Habits(night_share=0.8, night_hours=6.0, jitter_hours=0.5, weekday_sessions=0.0, weekend_sessions=0.0)
    lengths = [
        last - first
        for device in range(300)
        for first, last in Trace(source=draw_daily(3, device, nights, (0.0,))).intervals(
            0.5 * DAY_SECONDS, 10.5 * DAY_SECONDS
        )
    ]
    # 3,000 nights, binomial with p = .8: standard deviation 22; the mean length's: .5 h / √2,400 = 37 s. Five of each.
    assert abs(len(lengths) - 2400) < 110
    assert abs(sum(lengths) / len(lengths) - 6 * HOUR) < 185


def test_weekdays_and_weekends_differ_as_the_habits_say() -> None:
    # Sessions of a second, so that none overlap; ten weeks of 100 devices.
    days = Habits(night_share=0.0, weekday_sessions=0.5, weekend_sessions=2.0, session_hours=1 / 3600)
    counts = [0, 0]
    for device in range(100):
        for first, _ in Trace(source=draw_daily(0, device, days, (0.0,))).intervals(0.0, 70 * DAY_SECONDS):
            day, hour = divmod(first, DAY_SECONDS)
            counts[day % 7 >= 5] += 1
            assert 8 * HOUR <= hour < 22 * HOUR
    # Poisson sums: 5,000 · .5 = 2,500 ± 50 and 2,000 · 2 = 4,000 ± 63; five of them. Cutting at 8 a day costs .03 %.
    assert abs(counts[0] - 2500) < 250
    assert abs(counts[1] - 4000) < 320


def test_phones_come_by_night_and_boards_are_always_there() -> None:
    phones = [spec.trace for spec in assign(FleetConfig(devices=400, mix={"phone": 1.0}, time_zones=(0.0,)))]
    night, noon = (sum(trace.is_online(day * DAY_SECONDS + hour * HOUR) for trace in phones for day in range(5))
                   for hour in (3, 12))  # fmt: skip
    assert 3 < night / noon < 8, "a fleet's swing is about fourfold"
    boards = [spec.trace for spec in assign(FleetConfig(devices=20, mix={"pi5": 1.0, "jetson_orin_nano": 1.0}))]
    assert all(list(trace.intervals(0.0, 1e9)) == [(0.0, 1e9)] for trace in boards)


def test_devices_and_seeds_have_days_of_their_own() -> None:
    habits = Habits()
    week = [
        tuple(Trace(source=draw_daily(seed, device, habits, (0.0,))).intervals(0.0, 7 * DAY_SECONDS))
        for seed in range(5)
        for device in range(20)
    ]
    assert len(set(week)) == len(week)


def test_a_trace_remembers_nothing() -> None:
    trace = Trace(source=draw_daily(0, 0, Habits(), ZONES))
    list(trace.intervals(0.0, 365 * DAY_SECONDS))
    assert not hasattr(trace, "__dict__")
    assert not hasattr(trace.source, "__dict__")
    assert trace == Trace(source=draw_daily(0, 0, Habits(), ZONES))


def test_phones_are_willing_at_night_and_some_hours_by_day() -> None:
    fleet = list(assign(FleetConfig(devices=1000, mix={"phone": 1.0})))
    online = sum(last - first for spec in fleet for first, last in spec.trace.intervals(0.0, 30 * DAY_SECONDS))
    # Eight nights of ten, seven hours long, and some two hours by day.
    assert 6 < online / (1000 * 30 * HOUR) < 10
