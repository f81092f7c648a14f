"""Statistics against laws, naive references, tables and simulated coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from simulation.statistics import Floats, mean_interval, share_harmed, worst_tenth_mean

samples = st.lists(st.floats(-100, 100), min_size=6, max_size=40).map(np.array)


def _interval(values: Floats, seed: int = 0, draws: int = 400) -> tuple[float, float]:
    interval = mean_interval(values, seed=seed, draws=draws)
    assert interval is not None
    return interval.low, interval.high


@given(samples)
def test_an_interval_lies_within_the_sample(values: Floats) -> None:
    low, high = _interval(values)
    assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9


@given(samples, st.floats(-50, 50), st.floats(0.1, 10))
def test_an_interval_moves_and_stretches_with_the_sample(values: Floats, shift: float, scale: float) -> None:
    low, high = _interval(values)
    assert _interval(values * scale + shift) == pytest.approx((low * scale + shift, high * scale + shift), abs=1e-6)


@given(samples)
def test_an_interval_turns_over_with_the_sign(values: Floats) -> None:
    # Quantiles a and 1 - a of mirrored numbers are the mirrored quantiles 1 - a and a.
    low, high = _interval(values)
    assert _interval(-values) == pytest.approx((-high, -low), abs=1e-9)


def test_equal_values_give_an_interval_without_width() -> None:
    assert _interval(np.full(9, 0.25)) == pytest.approx((0.25, 0.25))


def test_users_too_few_give_no_interval() -> None:
    # n users lie all on one side of a median of 0 with probability 2^(1−n), and no interval then holds the 0:
    # 1/16 for five users is more than the 1/20 that may be missed, 1/32 for six is less.
    values = np.arange(1.0, 7.0)
    assert [mean_interval(values[:count], seed=0) is None for count in range(1, 7)] == [True] * 5 + [False]
    assert mean_interval(values[:5], seed=0, level=0.9) is not None


def test_resamples_depend_on_the_seed_alone() -> None:
    values = np.random.default_rng(1).normal(size=12)
    assert _interval(values, seed=3) == _interval(values, seed=3)
    assert _interval(values, seed=3) != _interval(values, seed=4)


def test_the_interval_agrees_with_a_plain_loop() -> None:
    """The same rule, one resample of one user at a time, drawn with another generator."""
    values = np.random.default_rng(2).exponential(size=15)
    rng = np.random.default_rng(99)
    means = sorted(sum(values[rng.integers(15)] for _ in range(15)) / 15 for _ in range(4000))
    # a = Φ(−√(15/14) · 2.1448) = Φ(−2.2201) = 0.01321; 0.01321 · 4000 = 53rd smallest and 53rd largest.
    low, high = _interval(values, draws=4000)
    # Two independent bootstraps differ by their own noise: at 4000 draws about 0.02 standard deviations of a mean.
    noise = values.std(ddof=1) / math.sqrt(15) * 0.12
    assert low == pytest.approx(means[53], abs=noise)
    assert high == pytest.approx(means[-54], abs=noise)


@settings(deadline=None)
@given(st.integers(20, 60), st.floats(0.5, 5))
def test_a_normal_sample_gives_nearly_the_t_interval(count: int, spread: float) -> None:
    # Evenly spaced normal quantiles: a sample with no luck in it.
    values = spread * np.array([stats.norm.ppf((i + 0.5) / count) for i in range(count)])
    half = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count)
    low, high = _interval(values, draws=4000)
    assert high == pytest.approx(half, rel=0.1)
    assert low == pytest.approx(-half, rel=0.1)


@pytest.mark.parametrize(
    ("count", "skewed", "at_least"),
    # 600 samples: a coverage of .95 has a standard error of .009. Few skewed users are covered less: that is known,
    # and the bound here is what the plain percentile bootstrap (.84 at 8 users) does not reach.
    [(6, False, 0.92), (8, False, 0.92), (24, False, 0.93), (24, True, 0.90), (8, True, 0.87)],
)
def test_intervals_cover_the_truth_as_often_as_they_say(count: int, skewed: bool, at_least: float) -> None:
    rng = np.random.default_rng(2026)
    covered = 0
    for trial in range(600):
        values = rng.exponential(size=count) - 1 if skewed else rng.normal(size=count)
        low, high = _interval(values, seed=trial, draws=600)
        covered += low <= 0 <= high
    assert at_least <= covered / 600 <= 0.985


def test_worst_tenth_by_hand() -> None:
    values = np.arange(1.0, 12.0)  # 11 users: a tenth is 1.1 users, so the two worst
    assert worst_tenth_mean(values, higher_is_better=True) == 1.5  # (1 + 2) / 2
    assert worst_tenth_mean(values, higher_is_better=False) == 10.5  # (11 + 10) / 2


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.booleans())
def test_worst_tenth_agrees_with_a_plain_loop(values: list[float], higher_is_better: bool) -> None:
    remaining = sorted(values, reverse=not higher_is_better)
    worst = [remaining.pop(0) for _ in range(max(1, -(-len(values) // 10)))]
    assert worst_tenth_mean(np.array(values), higher_is_better=higher_is_better) == pytest.approx(
        sum(worst) / len(worst)
    )


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40))
def test_the_worst_tenth_is_never_better_than_the_mean(values: list[float]) -> None:
    assert worst_tenth_mean(np.array(values), higher_is_better=True) <= np.mean(values) + 1e-9


def test_share_harmed_counts_strict_losses_in_the_metric_s_direction() -> None:
    differences = np.array([-0.1, 0.0, 1e-12, -1e-12, 0.2])
    assert share_harmed(differences, higher_is_better=True) == pytest.approx(1 / 5)
    assert share_harmed(differences, higher_is_better=False) == pytest.approx(1 / 5)
