"""Presence: the same as asking every trace at every moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florilegium.errors import ConfigError
from simulation.fleet.availability import (
    DAY_SECONDS,
    HORIZON_SECONDS,
    Always,
    Habits,
    Interval,
    Source,
    Trace,
    draw_daily,
)
from simulation.fleet.config import FleetConfig, assign
from simulation.fleet.presence import Presence
from simulation.fleet.recorded import Recorded

windows = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=6
)
fleets = st.lists(windows, min_size=1, max_size=6)
moments = st.lists(st.integers(0, 60), min_size=1, max_size=12).map(sorted)


def traces(each: list[list[Interval]]) -> list[Trace]:
    return [Trace(source=Recorded.of(windows)) for windows in each]


def free(presence: Presence, count: int) -> list[bool]:
    return [presence.is_free(device) for device in range(count)]


@settings(max_examples=60, deadline=None)
@given(fleets, moments)
def test_who_is_free_is_who_is_online(fleet: list[list[Interval]], moments: list[int]) -> None:
    each = traces(fleet)
    presence = Presence(each)
    for moment in moments:
        presence.advance(moment)
        assert free(presence, len(each)) == [trace.is_online(moment) for trace in each]
        assert free(Presence(each, moment), len(each)) == free(presence, len(each)), "it remembers nothing that counts"


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.lists(st.floats(0, 20 * DAY_SECONDS), min_size=1, max_size=8).map(sorted))
def test_drawn_days_are_followed(seed: int, moments: list[float]) -> None:
    each = [
        Trace(source=draw_daily(seed, device, Habits(), (0.0, 5.0)), joins_at=device * DAY_SECONDS)
        for device in range(8)
    ]
    presence = Presence(each)
    for moment in moments:
        presence.advance(moment)
        assert free(presence, len(each)) == [trace.is_online(moment) for trace in each]


@pytest.mark.parametrize("years", [0.99, 1.0, 2.5])
def test_years_go_by(years: float) -> None:
    each = [
        Trace(source=Always()),
        Trace(source=draw_daily(0, 0, Habits(night_share=1.0), (0.0,))),
        Trace(source=Recorded.of([(0.0, 3 * HORIZON_SECONDS)])),
    ]
    presence = Presence(each)
    for hour in range(0, 24, 3):
        moment = years * HORIZON_SECONDS + 3600.0 * hour
        presence.advance(moment)
        assert free(presence, 3) == [trace.is_online(moment) for trace in each]


def test_who_works_is_not_free_until_it_is_done() -> None:
    presence = Presence(traces([[(0, 50)], [(0, 15), (30, 50)]]))
    presence.occupy(0, 20.0)
    presence.occupy(1, 20.0)
    assert free(presence, 2) == [False, False]
    assert presence.busy == {0: 20.0, 1: 20.0}
    assert presence.advance(19.0) == set()
    assert presence.advance(20.0) == {0}, "the other one is done and not there"
    assert free(presence, 2) == [True, False]
    assert presence.busy == {}
    assert presence.advance(30.0) == {1}
    presence.occupy(0, 30.0)
    assert presence.is_free(0), "work that takes no time is done"


def test_the_wait_by_hand() -> None:
    presence = Presence(traces([[(0, 5), (20, 30)], [(5, 10)], [(8, 22)]]))
    presence.wait(1, {0, 1, 2})
    assert presence.now == 5.0
    presence.wait(2, {0, 1, 2})
    assert presence.now == 8.0
    presence.wait(2, {0, 1, 2})
    assert presence.now == 20.0
    with pytest.raises(ConfigError, match="of 3 devices nobody comes within a year with whom there are 1"):
        presence.wait(1, {0, 1, 2})


def test_the_wait_is_for_those_who_count_and_for_those_who_finish() -> None:
    each = traces([[(0, 90)], [(5, 90)], [(8, 90)]])
    only = Presence(each)
    only.wait(1, {0, 2})
    assert only.now == 8.0
    finishing = Presence(each)
    finishing.occupy(0, 6.0)
    finishing.advance(5.0)
    finishing.wait(1, {0, 1, 2})
    assert finishing.now == 6.0
    hopeless = Presence(each)
    with pytest.raises(ConfigError, match="of 1 devices nobody comes"):
        hopeless.wait(2, {0})
    assert hopeless.now == 0.0


@settings(max_examples=60, deadline=None)
@given(fleets, st.integers(1, 6), st.integers(0, 40))
def test_the_wait_is_until_somebody_comes_and_enough_are_there(
    fleet: list[list[Interval]], needed: int, start: int
) -> None:
    each = traces(fleet)
    presence = Presence(each, start)
    online = [[trace.is_online(moment) for trace in each] for moment in range(61)]
    wanted = [
        moment
        for moment in range(start + 1, 61)
        if sum(online[moment]) >= needed
        and any(now and not before for now, before in zip(online[moment], online[moment - 1], strict=True))
    ]
    if wanted:
        presence.wait(needed, range(len(each)))
        assert presence.now == wanted[0]
    else:
        with pytest.raises(ConfigError):
            presence.wait(needed, range(len(each)))


@dataclass
class Counted:
    """A source that counts how often it is asked."""

    source: Source
    times: int = 0

    def windows(self, start: float, end: float) -> Iterator[Interval]:
        self.times += 1
        return self.source.windows(start, end)


def test_looking_often_costs_no_more_than_looking_once() -> None:
    asked = []
    for moments in ([7 * DAY_SECONDS], [900.0 * quarter for quarter in range(1, 7 * 24 * 4 + 1)]):
        each = [spec.trace for spec in assign(FleetConfig(devices=100, mix={"phone": 1.0}))]
        sources = [Counted(trace.source) for trace in each]
        presence = Presence([replace(trace, source=source) for trace, source in zip(each, sources, strict=True)])
        for moment in moments:
            presence.advance(moment)
        asked.append([source.times for source in sources])
    assert asked[0] == asked[1]
    assert min(asked[0]) > 0
