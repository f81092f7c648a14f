"""Faults: their rates, and that nothing but (seed, round, device) decides."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florilegium.errors import ConfigError
from simulation.fleet.faults import Fault, FaultConfig, draw_fault

PROBABILITIES = st.floats(0, 1)
SOME = FaultConfig(dropout=0.1, stragglers=0.2, slow_links=0.3, straggler_slowdown=8.0, link_slowdown=5.0)


def test_rates_are_those_asked_for() -> None:
    faults = [
        draw_fault(SOME, seed, number, device) for seed in (0, 1) for number in range(10) for device in range(500)
    ]
    drops = [fault.drops_after for fault in faults if fault.drops_after is not None]
    slow = [fault.training_slowdown for fault in faults if fault.training_slowdown > 1]
    links = [fault.link_slowdown for fault in faults if fault.link_slowdown > 1]
    # Binomial with n = 10,000: standard deviations 30, 40 and 46; five of them.
    assert abs(len(drops) - 1000) < 150
    assert abs(len(slow) - 2000) < 200
    assert abs(len(links) - 3000) < 230
    # Uniform on (0, 1): the mean's standard deviation is .289 / √1,000 = .009; five of them.
    assert abs(statistics.fmean(drops) - 0.5) < 0.046
    assert set(links) == {5.0}
    # Uniform logarithms between ln 2 and ln 8: mean ln 4, standard deviation .4 / √2,000 = .009; five of them.
    assert 2.0 <= min(slow) <= max(slow) <= 8.0
    assert abs(statistics.fmean(map(math.log, slow)) - math.log(4)) < 0.045


def test_kinds_of_faults_do_not_depend_on_one_another() -> None:
    faults = [draw_fault(FaultConfig(dropout=0.5, stragglers=0.5), 0, number, 0) for number in range(4000)]
    both = sum(fault.drops_after is not None and fault.training_slowdown > 1 for fault in faults)
    # Binomial(4,000, 1/4): standard deviation 27; five of them.
    assert abs(both - 1000) < 137


@given(PROBABILITIES, PROBABILITIES, st.integers(0, 99), st.integers(0, 99))
def test_a_higher_probability_adds_faults_and_takes_none_away(one: float, two: float, number: int, device: int) -> None:
    low, high = sorted((one, two))
    fewer = draw_fault(FaultConfig(dropout=low, stragglers=low, slow_links=low), 0, number, device)
    more = draw_fault(FaultConfig(dropout=high, stragglers=high, slow_links=high), 0, number, device)
    assert fewer.drops_after in (None, more.drops_after)
    assert fewer.training_slowdown in (1.0, more.training_slowdown)
    assert fewer.link_slowdown in (1.0, more.link_slowdown)


def test_seed_round_and_device_each_matter_and_nothing_else() -> None:
    certain = FaultConfig(dropout=1.0)
    places = [(seed, number, device) for seed in range(4) for number in range(4) for device in range(4)]
    forward = [draw_fault(certain, *place) for place in places]
    backward = [draw_fault(certain, *place) for place in reversed(places)]
    assert forward == backward[::-1]
    assert len({fault.drops_after for fault in forward}) == len(places)


def test_no_fault_is_the_default() -> None:
    assert all(draw_fault(FaultConfig(), 0, number, 0) == Fault() for number in range(100))


@pytest.mark.parametrize(
    "values", [{"training_slowdown": 0.5}, {"link_slowdown": math.inf}, {"drops_after": 1.0}, {"drops_after": -0.1}]
)
def test_a_fault_out_of_range_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        Fault(**values)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dropout = 1\.1 is refused"):
        FaultConfig.parse({"dropout": 1.1})
    with pytest.raises(ConfigError, match=r"straggler_slowdown = 1\.5 is refused"):
        FaultConfig.parse({"straggler_slowdown": 1.5})
