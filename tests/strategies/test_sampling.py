"""Laws of drawing a cohort."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florilegium.errors import ConfigError
from strategies.sampling import SamplingConfig, uniform

IDS = st.sets(st.integers(0, 2**64 - 1), max_size=40)


def draw(
    online: list[int],
    cohort: int = 4,
    *,
    seed: int = 0,
    server_round: int = 1,
    over_selection: float = 1.0,
    cap: int | None = None,
    participations: dict[int, int] | None = None,
) -> tuple[int, ...]:
    config = SamplingConfig(cohort=cohort, over_selection=over_selection, participation_cap=cap)
    return uniform(online, config=config, seed=seed, server_round=server_round, participations=participations or {})


@settings(max_examples=80, deadline=None)
@given(IDS, st.integers(1, 12), st.integers(), st.integers(0, 100), st.integers(0, 9))
def test_a_cohort_is_of_those_online_without_repeats_and_no_order_matters(
    ids: set[int], cohort: int, seed: int, server_round: int, shuffle: int
) -> None:
    drawn = draw(sorted(ids), cohort, seed=seed, server_round=server_round)
    assert set(drawn) <= ids
    assert len(set(drawn)) == len(drawn) == min(cohort, len(ids))
    shuffled = sorted(ids)
    random.Random(shuffle).shuffle(shuffled)
    assert draw(shuffled, cohort, seed=seed, server_round=server_round) == drawn
    assert draw(shuffled * 2, cohort, seed=seed, server_round=server_round) == drawn


@settings(max_examples=80, deadline=None)
@given(st.sets(st.integers(0, 2**64 - 1), min_size=6, max_size=30), st.integers(0, 1000))
def test_who_was_not_drawn_is_not_missed_and_who_was_is_replaced_by_one(ids: set[int], seed: int) -> None:
    drawn = set(draw(sorted(ids), seed=seed))
    absent = min(ids - drawn)
    assert set(draw(sorted(ids - {absent}), seed=seed)) == drawn
    gone = min(drawn)
    assert drawn - {gone} < set(draw(sorted(ids - {gone}), seed=seed))


def test_rounds_and_seeds_draw_anew_and_can_be_drawn_again() -> None:
    ids = list(range(200))
    cohorts = {draw(ids, 10, seed=seed, server_round=number) for seed in range(5) for number in range(5)}
    assert len(cohorts) == 25
    assert draw(ids, 10, seed=3, server_round=4) == draw(ids, 10, seed=3, server_round=4)
    # (1, 23) and (12, 3) must not read alike.
    assert draw(ids, 10, seed=1, server_round=23) != draw(ids, 10, seed=12, server_round=3)


def test_every_set_of_devices_is_equally_likely() -> None:
    counts = Counter(draw([11, 22, 33, 44, 55], 2, server_round=number) for number in range(5000))
    assert set(counts) == set(combinations([11, 22, 33, 44, 55], 2))
    # Each of 10 pairs is binomial(5000, 1/10): standard deviation 21; five of them.
    assert all(abs(count - 500) < 106 for count in counts.values())


def test_a_cap_keeps_out_who_has_taken_part_often_enough() -> None:
    ids, taken = list(range(10)), Counter[int]()
    for number in range(20):
        drawn = draw(ids, 4, server_round=number, cap=3, participations=dict(taken))
        assert all(taken[node_id] < 3 for node_id in drawn)
        taken.update(drawn)
    assert taken == Counter(dict.fromkeys(ids, 3)), "20 rounds of 4 use up 10 devices of 3 each"
    assert draw(ids, 4, cap=3, participations=dict(taken)) == ()


def test_without_a_cap_participations_do_not_count() -> None:
    ids = list(range(10))
    assert draw(ids, 4, participations=dict.fromkeys(ids, 1000)) == draw(ids, 4)


@pytest.mark.parametrize(
    ("cohort", "over_selection", "asked"), [(10, 1.0, 10), (10, 1.3, 13), (100, 1.1, 110), (10, 1.25, 13), (1, 1.01, 2)]
)
def test_over_selection_asks_more_than_are_wanted(cohort: int, over_selection: float, asked: int) -> None:
    assert len(draw(list(range(200)), cohort, over_selection=over_selection)) == asked


def test_over_selection_adds_to_the_cohort() -> None:
    ids = list(range(100))
    assert set(draw(ids, 10)) < set(draw(ids, 10, over_selection=1.5))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("cohort", 0),
        ("over_selection", 0.9),
        ("over_selection", float("nan")),
        ("over_selection", float("inf")),
        ("participation_cap", 0),
    ],
)
def test_a_setting_out_of_its_range_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{setting} must be .*>= 1, got {value}"):
        SamplingConfig(**{setting: value})  # type: ignore[arg-type]
