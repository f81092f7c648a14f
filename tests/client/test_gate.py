from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.gate import Gate, Scores
from florilegium.errors import ConfigError


def scores(nll_per_token: float, rouge1: float = 0.5) -> Scores:
    return Scores(rouge1=rouge1, rouge_l=0.5, nll_per_token=nll_per_token)


finite = st.floats(0, 100)


@given(one=finite, other=finite, rouge1=st.floats(0, 1))
def test_the_likelier_of_two_equal_writers_passes(one: float, other: float, rouge1: float) -> None:
    gate = Gate()
    assert gate.better_or_equal(scores(one, rouge1), scores(other, rouge1)) == (one <= other)
    assert gate.better_or_equal(scores(one, rouge1), scores(one, rouge1))


@given(nll_per_token=finite, drop=st.floats(0, 1), tolerance=st.floats(0, 1))
def test_rouge_guards(nll_per_token: float, drop: float, tolerance: float) -> None:
    gate = Gate(rouge_tolerance=tolerance)
    passes = gate.better_or_equal(scores(nll_per_token, 1.0 - drop), scores(nll_per_token + 1, 1.0))
    assert passes == (1.0 - drop >= 1.0 - tolerance)


def test_tolerance() -> None:
    assert Gate(nll_tolerance=0.5).better_or_equal(scores(2.5), scores(2.0))
    assert not Gate(nll_tolerance=0.25).better_or_equal(scores(2.5), scores(2.0))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_candidate_never_passes(broken: float) -> None:
    for candidate in (scores(broken), scores(1.0, broken)):
        assert not Gate(nll_tolerance=10, rouge_tolerance=1).better_or_equal(candidate, scores(2.0))
        assert not Gate().better_or_equal(candidate, candidate)
        assert Gate().better_or_equal(scores(2.0), candidate)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_tolerance_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="nll_tolerance must be finite and >= 0"):
        Gate(nll_tolerance=value)
    with pytest.raises(ConfigError, match="rouge_tolerance must be finite and >= 0"):
        Gate(rouge_tolerance=value)


@pytest.mark.parametrize("strengths", [(), (0.0,), (1.0, -0.5), (1.5,), (math.nan,)])
def test_strengths_out_of_range_are_refused(strengths: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="strengths must be numbers above 0 and at most 1"):
        Gate(strengths=strengths)


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ({1.0: 3.0, 0.5: 2.0, 0.25: 2.5}, 0.5),
        ({1.0: 2.0, 0.5: 2.0, 0.25: 2.5}, 1.0),
        ({0.25: 2.0, 0.5: 2.0, 1.0: 2.5}, 0.5),
        ({1.0: math.nan, 0.5: math.inf, 0.25: 9.0}, 0.25),
        ({1.0: math.inf, 0.5: math.nan, 0.25: math.inf}, 1.0),
    ],
)
def test_the_likeliest_strength_is_chosen_and_the_largest_of_equals(
    measured: Mapping[float, float], chosen: float
) -> None:
    assert Gate(strengths=tuple(measured)).choose_strength(measured.__getitem__) == chosen


@given(measured=st.dictionaries(st.floats(0.01, 1), st.sampled_from([1.0, 2.0, 3.0]), min_size=2))
def test_no_strength_is_likelier_than_the_chosen_one(measured: dict[float, float]) -> None:
    chosen = Gate(strengths=tuple(measured)).choose_strength(measured.__getitem__)
    assert chosen == max(strength for strength in measured if measured[strength] == min(measured.values()))


def test_one_strength_needs_no_measuring() -> None:
    def measure(_: float) -> float:
        raise AssertionError

    assert Gate(strengths=(0.5,)).choose_strength(measure) == 0.5
