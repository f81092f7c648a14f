"""Draws against scipy's distributions, and the promise that a name alone decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simulation.fleet.draws import exponential, normal, poisson, uniforms


@given(st.integers(1, 40), st.integers(1, 40), st.integers(), st.integers(0, 10**6))
def test_asking_for_fewer_gives_the_first_of_them(fewer: int, more: int, seed: int, device: int) -> None:
    both = uniforms(fewer, "day", seed, device), uniforms(fewer + more, "day", seed, device)
    assert both[0] == both[1][:fewer]
    assert all(0.0 < number < 1.0 for number in both[1])


def test_every_part_of_the_name_matters() -> None:
    names = ["day", "day", "day", "day", "fault", "day"]
    numbers = [(1, 2), (2, 1), (12,), (1, 2, 0), (1, 2), (-1, 2)]
    assert len({uniforms(1, name, *each) for name, each in zip(names, numbers, strict=True)}) == 6


def test_a_number_is_its_value_whatever_library_it_comes_from() -> None:
    assert uniforms(3, "fault", 0, int(np.int64(7))) == uniforms(3, "fault", 0, np.int64(7))  # type: ignore[arg-type]


def test_uniforms_are_uniform_within_and_across_names() -> None:
    within = uniforms(5000, "x")
    across = [uniforms(1, "x", device)[0] for device in range(5000)]
    for numbers in (within, across):
        assert stats.kstest(numbers, "uniform").pvalue > 0.01
        # The correlation of neighbours has a standard deviation of 1/√5000 = .014; five of them.
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.07


@given(st.floats(1e-12, 1 - 1e-12))
def test_normal_and_exponential_invert_their_distributions(uniform: float) -> None:
    assert normal(uniform) == pytest.approx(stats.norm.ppf(uniform), rel=1e-9, abs=1e-12)
    assert exponential(uniform, 3.0) == pytest.approx(stats.expon.isf(uniform, scale=3.0), rel=1e-9)


@given(st.floats(1e-9, 1 - 1e-9), st.floats(0.0, 4.0))
def test_poisson_inverts_its_distribution_up_to_the_most(uniform: float, mean: float) -> None:
    expected = 0 if mean == 0 else int(stats.poisson.ppf(uniform, mean))
    # On a step of the distribution the last bit of its sum decides; there either side is right.
    steps = stats.poisson.cdf(np.arange(9), mean)
    if np.abs(steps - uniform).min() > 1e-12:
        assert poisson(uniform, mean, 8) == min(expected, 8)


def test_poisson_never_exceeds_the_most() -> None:
    assert [poisson(1 - 1e-12, 4.0, most) for most in (0, 3, 8)] == [0, 3, 8]
