"""ε against the closed form, against a second accountant, and against published figures."""

from __future__ import annotations

import math
import sys
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from florilegium.errors import ConfigError
from privacy.accounting import effective_multiplier, gaussian_epsilon, gaussian_multiplier, sampled_epsilon

multipliers = st.floats(0.2, 20)
deltas = st.floats(1e-9, 1e-2)
counts = st.integers(1, 200)


def gaussian_delta(epsilon: float, multiplier: float) -> float:
    """Return δ of a Gaussian by Balle & Wang's theorem 8, for sensitivity 1: the formula of the module's docstring."""
    mu = 1 / multiplier
    return float(stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu)))


def test_the_figures_of_one_gaussian() -> None:
    assert gaussian_epsilon(1.0, delta=1e-5) == pytest.approx(4.37718, abs=1e-5)
    assert gaussian_multiplier(1.0, delta=1e-5) == pytest.approx(3.73063, abs=1e-5)
    assert gaussian_epsilon(1.0, delta=1e-3, compositions=5) == pytest.approx(8.7873, abs=1e-4)


@pytest.mark.parametrize(
    ("multiplier", "rate", "steps", "rdp", "pld"),
    [(1.5, 0.04, 2250, 7.3291, 6.769), (1.12, 256 / 60000, 14062, 2.5186, 2.310)],
)
def test_the_figures_of_sampled_gaussians(multiplier: float, rate: float, steps: int, rdp: float, pld: float) -> None:
    """The tolerance is one unit of the last digit of `pld`, and covers the choice of Rényi orders."""
    found = partial(sampled_epsilon, multiplier, sampling_rate=rate, steps=steps, delta=1e-5)
    assert found(method="rdp") == pytest.approx(rdp, abs=5e-4)
    assert found() == pytest.approx(pld, abs=5e-4), "the tight one is the default"


@settings(deadline=None, max_examples=25)
@given(multipliers, deltas, counts)
def test_a_gaussians_epsilon_solves_the_closed_form(multiplier: float, delta: float, count: int) -> None:
    found = gaussian_epsilon(multiplier, delta=delta, compositions=count)
    if found == 0:
        assert gaussian_delta(0.0, multiplier / math.sqrt(count)) <= delta
    else:
        assert gaussian_delta(found, multiplier / math.sqrt(count)) == pytest.approx(delta, rel=1e-5)


@pytest.mark.parametrize(("multiplier", "count"), [(2.0, 5), (0.8, 1)])
def test_the_closed_form_agrees_with_a_discretized_loss_distribution(multiplier: float, count: int) -> None:
    dp_accounting = pytest.importorskip("dp_accounting")
    pld = pytest.importorskip("dp_accounting.pld")
    accountant = pld.PLDAccountant().compose(dp_accounting.GaussianDpEvent(multiplier), count)
    assert gaussian_epsilon(multiplier, delta=1e-5, compositions=count) == pytest.approx(
        accountant.get_epsilon(1e-5), rel=1e-5
    )


@settings(deadline=None, max_examples=25)
@given(st.floats(0.05, 20), deltas, counts)
def test_the_multiplier_for_a_target_meets_it_and_is_the_least(epsilon: float, delta: float, count: int) -> None:
    multiplier = gaussian_multiplier(epsilon, delta=delta, compositions=count)
    assert gaussian_epsilon(multiplier * (1 + 1e-9), delta=delta, compositions=count) <= epsilon * (1 + 1e-9)
    assert gaussian_epsilon(multiplier * 0.999, delta=delta, compositions=count) > epsilon


@settings(deadline=None, max_examples=25)
@given(multipliers, deltas, counts)
def test_more_noise_fewer_releases_and_larger_delta_tell_less(multiplier: float, delta: float, count: int) -> None:
    found = gaussian_epsilon(multiplier, delta=delta, compositions=count)
    assert gaussian_epsilon(multiplier * 1.1, delta=delta, compositions=count) <= found
    assert gaussian_epsilon(multiplier, delta=delta, compositions=count + 1) >= found
    assert gaussian_epsilon(multiplier, delta=delta * 2, compositions=count) <= found


def test_sampling_tells_less_and_sampling_everything_is_no_sampling() -> None:
    whole = gaussian_epsilon(2.0, delta=1e-4, compositions=3)
    assert sampled_epsilon(2.0, sampling_rate=1.0, steps=3, delta=1e-4) == pytest.approx(whole, rel=1e-4)
    found = [sampled_epsilon(2.0, sampling_rate=rate, steps=3, delta=1e-4) for rate in (0.0, 0.05, 1.0)]
    assert found == sorted(found)
    assert found[0] == 0


@pytest.mark.parametrize("multiplier", [0.01, 0.1])
def test_little_noise_is_accounted_for_in_bounded_time_and_still_below_no_sampling(multiplier: float) -> None:
    found = sampled_epsilon(multiplier, sampling_rate=0.1, steps=5, delta=1e-3)
    assert 0 < found <= gaussian_epsilon(multiplier, delta=1e-3, compositions=5)


@pytest.mark.parametrize("multiplier", [0.15, 0.4, 2.0])
def test_one_sampled_step_is_bounded_tightly_however_coarse_the_table(multiplier: float) -> None:
    """By hand, for adding a unit: P = (1−q) N(0) + q N(1), Q = N(0), so P − e^ε Q = q (N(1) − e^ε′ N(0)) with

    e^ε′ = 1 + (e^ε − 1) / q, and δ(ε) is q times δ of the unsampled Gaussian at ε′.
    """
    rate, delta = 0.1, 1e-3

    def exact_delta(epsilon: float) -> float:
        return rate * gaussian_delta(math.log1p(math.expm1(epsilon) / rate), multiplier)

    found = sampled_epsilon(multiplier, sampling_rate=rate, steps=1, delta=delta)
    assert exact_delta(found) <= delta * (1 + 1e-9)
    assert exact_delta(found * 0.999) > delta


def test_the_ends_of_the_ranges() -> None:
    assert gaussian_epsilon(0.0, delta=1e-5) == math.inf
    assert gaussian_epsilon(1.0, delta=1e-5, compositions=0) == 0
    assert sampled_epsilon(0.0, sampling_rate=0.1, steps=1, delta=1e-5) == math.inf
    assert sampled_epsilon(1.0, sampling_rate=0.1, steps=0, delta=1e-5) == 0


def test_several_multipliers_compose_to_one() -> None:
    """1/z² adds up: 1/3² + 1/4² = (5/12)², so that 3 and 4 make 12/5."""
    assert effective_multiplier([3.0, 4.0]) == pytest.approx(12 / 5)
    assert effective_multiplier([2.0] * 4) == 1.0
    assert effective_multiplier([5.0, 0.0]) == 0.0
    assert effective_multiplier([]) == math.inf
    dp_accounting = pytest.importorskip("dp_accounting")
    pld = pytest.importorskip("dp_accounting.pld")
    accountant = pld.PLDAccountant()
    for multiplier in (2.0, 3.0):
        accountant.compose(dp_accounting.GaussianDpEvent(multiplier))
    composed = gaussian_epsilon(effective_multiplier([2.0, 3.0]), delta=1e-5)
    assert composed == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-5)


@pytest.mark.parametrize("multiplier", [-1.0, math.nan, math.inf])
def test_impossible_noise_is_refused(multiplier: float) -> None:
    with pytest.raises(ConfigError, match="noise_multiplier must be finite and >= 0"):
        gaussian_epsilon(multiplier, delta=1e-5)
    with pytest.raises(ConfigError, match="noise_multiplier must be finite and >= 0"):
        sampled_epsilon(multiplier, sampling_rate=0.1, steps=1, delta=1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_an_impossible_delta_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta must be in"):
        gaussian_epsilon(1.0, delta=delta)
    with pytest.raises(ConfigError, match="delta must be in"):
        gaussian_multiplier(1.0, delta=delta)


def test_other_impossible_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="compositions must be >= 0"):
        gaussian_epsilon(1.0, delta=1e-5, compositions=-1)
    with pytest.raises(ConfigError, match="compositions must be >= 1"):
        gaussian_multiplier(1.0, delta=1e-5, compositions=0)
    with pytest.raises(ConfigError, match="epsilon must be finite and > 0"):
        gaussian_multiplier(0.0, delta=1e-5)
    with pytest.raises(ConfigError, match="sampling_rate must be in"):
        sampled_epsilon(1.0, sampling_rate=1.5, steps=1, delta=1e-5)
    with pytest.raises(ConfigError, match="steps must be >= 0"):
        sampled_epsilon(1.0, sampling_rate=0.5, steps=-1, delta=1e-5)
    with pytest.raises(ConfigError, match="no accounting method 'gdp'"):
        sampled_epsilon(1.0, sampling_rate=0.5, steps=1, delta=1e-5, method="gdp")  # type: ignore[arg-type]


def test_the_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[privacy\]'"):
        gaussian_epsilon(1.0, delta=1e-5)
