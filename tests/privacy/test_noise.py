"""The noise is Gaussian, of the scale it claims, fresh every time, and of no generator that anyone seeded."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors, zeros_like
from privacy import noise
from privacy.noise import NoiseSource, SeededSource, SystemSource, add_gaussian

MANY = 1_000_000


def gaussian_like(tensors: Tensors, std: float, source: NoiseSource) -> Tensors:
    return add_gaussian(zeros_like(tensors), std, source)


class Words:
    """Gives the 64-bit words it was given."""

    def __init__(self, *words: int) -> None:
        self._words = list(words)

    def read(self, count: int) -> bytes:
        words, self._words = self._words[: count // 8], self._words[count // 8 :]
        return b"".join(word.to_bytes(8, "little") for word in words)


def draw(count: int, std: float, source: NoiseSource) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values: np.ndarray[tuple[int], np.dtype[np.float64]] = (
        gaussian_like({"a": torch.zeros(count)}, std, source)["a"].double().numpy()
    )
    return values


def global_states() -> tuple[list[int], str, object]:
    return torch.get_rng_state().tolist(), repr(np.random.get_state(legacy=False)["state"]), random.getstate()


def scale_p_value(values: np.ndarray[tuple[int], np.dtype[np.float64]], std: float) -> float:
    """Two-sided p of Σ x²/σ² ~ χ²(n)."""
    statistic = float(np.square(values / std).sum())
    tail = min(stats.chi2.sf(statistic, len(values)), stats.chi2.cdf(statistic, len(values)))
    return float(2 * tail)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_noise_is_the_normal_quantile_of_the_words(words: list[int]) -> None:
    """Naive reference: Python's integers, exact fractions of 2⁵³, SciPy's quantile; the grid is at most 2⁻¹⁶."""
    made = gaussian_like({"a": torch.zeros(len(words))}, 1.0, Words(*words))["a"]
    expected = [stats.norm.ppf((2 * (word >> 12) + 1) / 2**53) for word in words]
    assert made.tolist() == pytest.approx(expected, abs=2**-17 + 1e-6)


@pytest.mark.parametrize("std", [2.0**-100, 1.0, 2.0**100])
def test_the_extreme_words_give_finite_and_opposite_noise(std: float) -> None:
    low, high = gaussian_like({"a": torch.zeros(2)}, std, Words(0, 2**64 - 1))["a"].tolist()
    assert low == -high
    assert high / std == pytest.approx(stats.norm.isf(2**-53), rel=1e-5)  # 8.2095


def test_moments_are_those_of_a_normal() -> None:
    """Tolerances are five standard errors: 1/√n, √(2/n), √(15/n) and √(96/n)."""
    values = draw(MANY, 1.0, SeededSource(1))
    assert abs(values.mean()) < 5 / math.sqrt(MANY)
    assert abs((values**2).mean() - 1) < 5 * math.sqrt(2 / MANY)
    assert abs((values**3).mean()) < 5 * math.sqrt(15 / MANY)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / MANY)


@pytest.mark.parametrize("std", [1e-6, 0.37, 1e4])
def test_the_distribution_is_normal_by_kolmogorov_and_smirnov(std: float) -> None:
    values = draw(200_000, std, SeededSource(2))
    assert stats.kstest(values / std, "norm").pvalue > 1e-3
    assert stats.kstest(values / std * 1.02, "norm").pvalue < 1e-3, "the test sees an error of 2 %"


@pytest.mark.parametrize("std", [1e-6, 0.37, 1e4])
def test_an_error_of_one_percent_in_the_scale_is_detected(std: float) -> None:
    """With n values the statistic is off by 0.01 √(2n) standard deviations: 14 for a million."""
    values = draw(MANY, std, SeededSource(3))
    assert scale_p_value(values, std) > 1e-3
    for wrong in (0.99, 1.01):
        assert scale_p_value(values * wrong, std) < 1e-19


def test_the_systems_entropy_gives_the_same_distribution() -> None:
    """Not seeded, hence the small level: a sound source fails once in 10⁹ runs."""
    values = draw(MANY, 2.0, SystemSource())
    assert scale_p_value(values, 2.0) > 1e-9
    assert stats.kstest(values[:200_000] / 2.0, "norm").pvalue > 1e-9


def test_every_entry_of_every_tensor_has_noise_of_its_own() -> None:
    made = gaussian_like({"a": torch.zeros(300, 300), "b": torch.zeros(90_000)}, 1.0, SeededSource(4))
    a, b = made["a"].reshape(-1).double(), made["b"].double()
    # Of n²/2 pairs a share of 2⁻¹⁶ / (2√π) meets on the grid: 17 400 of 90 000 values may be missing, and no chunk.
    assert len(np.unique(a.numpy())) > 70_000
    # Each correlation of independent values is N(0, 1/n): five standard errors.
    for one, other in ((a, b), (a[:-1], a[1:]), (a[:-300], a[300:])):
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5 / math.sqrt(len(one))


def test_two_calls_differ_whatever_the_global_generators_do() -> None:
    for source in (SystemSource(), SeededSource(5)):
        draws = []
        for _ in range(2):
            torch.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
            draws.append(gaussian_like({"a": torch.zeros(100)}, 1.0, source)["a"])
        assert not torch.equal(*draws)


def test_no_global_generator_is_touched() -> None:
    before = global_states()
    for source in (SystemSource(), SeededSource(6)):
        gaussian_like({"a": torch.zeros(1000)}, 1.0, source)
    assert global_states() == before
    torch.rand(1)
    assert global_states() != before, "the comparison sees a draw"


def test_a_simulations_noise_follows_from_its_whole_seed() -> None:
    like = {"a": torch.zeros(50)}
    first = gaussian_like(like, 1.0, SeededSource(7, 3, 1))["a"]
    assert torch.equal(first, gaussian_like(like, 1.0, SeededSource(7, 3, 1))["a"])
    for other in ((7, 3, 2), (7, 4, 1), (8, 3, 1), (7, 3)):
        assert not torch.equal(first, gaussian_like(like, 1.0, SeededSource(*other))["a"])


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gaussian_like({"a": torch.zeros(10, 10), "b": torch.zeros(())}, 1.0, SeededSource(8))
    monkeypatch.setattr(noise, "_CHUNK", 7)
    pieces = gaussian_like({"a": torch.zeros(10, 10), "b": torch.zeros(())}, 1.0, SeededSource(8))
    assert all(torch.equal(whole[key], pieces[key]) for key in whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32])
def test_noise_is_float32_in_the_shapes_given(dtype: torch.dtype) -> None:
    like = {"a": torch.ones(2, 3, dtype=dtype).T, "b": torch.ones((), dtype=dtype), "c": torch.ones(0, 4, dtype=dtype)}
    made = gaussian_like(like, 1.0, SeededSource(9))
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in made.items()} == {
        key: (tensor.shape, torch.float32) for key, tensor in like.items()
    }


@pytest.mark.parametrize("value", [0.0, 3.0, -1000.0])
def test_noise_is_added_to_what_is_there(value: float) -> None:
    update = {"a": torch.full((40, 25), value).T}
    noisy = add_gaussian(update, 0.5, SeededSource(10))
    alone = gaussian_like(update, 0.5, SeededSource(10))
    assert torch.allclose(noisy["a"], update["a"] + alone["a"], atol=1e-5 + 1e-6 * abs(value))
    assert torch.equal(update["a"], torch.full((25, 40), value)), "the operand is unchanged"


def test_no_noise_is_a_copy_and_draws_nothing() -> None:
    update = {"a": torch.tensor([1.5, -2.25])}
    copy = add_gaussian(update, 0.0, Words())
    assert torch.equal(copy["a"], update["a"])
    assert copy["a"].data_ptr() != update["a"].data_ptr()


@pytest.mark.parametrize("std", [0.3, 1.0, 1.99])
def test_sums_lie_on_one_grid_whatever_was_added_to(std: float) -> None:
    """The grid is 2⁻¹⁶ of the power of two at or below std; without it, low bits of the update would show."""
    grid = 2.0 ** (math.floor(math.log2(std)) - 16)
    for value in (0.0, 1 / 3, 1e-9, math.pi):
        noisy = add_gaussian({"a": torch.full((1000,), value)}, std, SeededSource(11))["a"].double()
        assert torch.equal(noisy, (noisy / grid).round() * grid)


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf, 1e-31, 1e31])
def test_noise_that_float32_cannot_hold_is_refused(std: float) -> None:
    with pytest.raises(ConfigError, match="standard deviation must be 0 or from"):
        gaussian_like({"a": torch.zeros(1)}, std, SeededSource(12))
