from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from client.selection.lexicons import Lexicons
from client.selection.metrics import dss, eoe_energy, eoe_histogram, idd

States = NDArray[np.float64]
STATES = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=st.floats(-1e30, 1e30))


def random_states(tokens: int, seed: int) -> States:
    return np.random.default_rng(seed).normal(size=(tokens, 64))


@given(STATES)
def test_energy_entropy_is_in_the_unit_interval(states: States) -> None:
    assert 0.0 <= eoe_energy(states) <= 1.0


@given(st.integers(2, 20), st.integers(0, 100), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_energy_entropy_ignores_order_scale_rotation_and_shift(
    tokens: int, seed: int, scale: float, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    states = random_states(tokens, seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(64, 64)))
    changed = scale * rng.permutation(states) @ rotation + shift
    assert eoe_energy(changed) == pytest.approx(eoe_energy(states), abs=1e-6)


def test_energy_entropy_by_hand() -> None:
    # States 0, 0, 0, 4 have mean 1; energies 1, 1, 1, 9 are shares 1/12, 1/12, 1/12, 3/4.
    states = np.array([[0.0], [0.0], [0.0], [4.0]])
    entropy = 3 / 12 * math.log(12) + 3 / 4 * math.log(4 / 3)
    assert eoe_energy(states) == pytest.approx(entropy / math.log(4))


def test_energy_entropy_is_one_for_tokens_equally_far_from_their_mean() -> None:
    corners = np.concatenate([np.eye(5), -np.eye(5)])
    assert eoe_energy(corners) == pytest.approx(1.0)


def test_energy_entropy_hardly_depends_on_length_and_the_histogram_reading_does() -> None:
    short, long = (np.mean([eoe_energy(random_states(n, s)) for s in range(50)]) for n in (20, 200))
    assert abs(short - long) < 0.01
    short, long = (np.mean([eoe_histogram(random_states(n, s)) for s in range(50)]) for n in (20, 200))
    # The last token's histogram does not know the length: the ratio is log(201) / log(21) = 1.74.
    assert short / long == pytest.approx(math.log(201) / math.log(21), rel=0.05)


@pytest.mark.parametrize("reading", [eoe_energy, eoe_histogram])
def test_nothing_to_measure_is_zero(reading: Callable[[States], float]) -> None:
    for states in (
        np.empty((0, 4)),
        np.full((3, 4), np.nan),
        np.array([[1.0, np.inf], [0.0, 1.0]]),
    ):
        assert reading(states) == 0.0


@pytest.mark.parametrize("states", [np.ones((1, 4)), np.zeros((5, 4)), np.full((5, 4), 0.1), np.full((7, 3), 1e-300)])
def test_equal_tokens_carry_no_energy(states: States) -> None:
    assert eoe_energy(states) == 0.0


@pytest.mark.parametrize("reading", [eoe_energy, eoe_histogram])
def test_readings_take_any_float_type_and_refuse_another_shape(reading: Callable[[States], float]) -> None:
    states = random_states(9, 1)
    assert reading(states.astype(np.float32)) == pytest.approx(reading(states), abs=1e-3)
    assert reading(states.astype(np.float16)) == pytest.approx(reading(states), abs=0.05)
    with pytest.raises(ValueError, match="tokens, hidden"):
        reading(np.zeros(3))


def test_histogram_entropy_by_hand() -> None:
    # The last of 7 states has values 0, 0, 0, 1: two of 100 bins with shares 3/4 and 1/4; log2(7 + 1) = 3.
    states = np.zeros((7, 4))
    states[-1, 3] = 1.0
    entropy = 3 / 4 * math.log2(4 / 3) + 1 / 4 * math.log2(4)
    assert eoe_histogram(states) == pytest.approx(entropy / 3)


def test_histogram_entropy_exceeds_one_for_a_single_token() -> None:
    # 100 evenly spread values fill 100 bins: log2(100) / log2(2).
    assert eoe_histogram(np.linspace(0, 1, 100)[None]) == pytest.approx(math.log2(100))


def test_domain_specific_score_by_hand() -> None:
    # Of 4 words 2 are in the first lexicon and 1 in the second: (2/4 + 1/4) / 2.
    lexicons = Lexicons.of({"a": ["dog", "cat"], "b": ["cat"]})
    assert dss(lexicons.coverage(["my", "dog", "and", "cat"]), 4) == pytest.approx(0.375)


@given(st.lists(st.sampled_from(["dog", "cat", "hen", "x"]), max_size=20))
def test_domain_specific_score_is_in_the_unit_interval_and_additive_over_repetition(words: list[str]) -> None:
    lexicons = Lexicons.of({"a": ["dog", "cat"], "b": ["cat", "hen"]})
    value = dss(lexicons.coverage(words), len(words))
    assert 0 <= value <= 1
    assert dss(lexicons.coverage(words * 3), 3 * len(words)) == pytest.approx(value), "T is a multiset, a mean over it"


def test_domain_specific_score_without_words_or_lexicons_is_zero() -> None:
    assert dss((0, 0), 0) == 0.0
    assert dss((), 5) == 0.0


def test_in_domain_dissimilarity_by_hand() -> None:
    others = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    assert idd(np.array([1, 0], np.float32), others) == pytest.approx((0 + 1 + 2) / 3)
    assert idd(np.array([1, 0], np.float32), others[:0]) == 1.0
