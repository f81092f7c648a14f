"""Laws of device-level privacy: what noise 0 gives, how far one device can move a sum, and how wide the noise is."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from florilegium.errors import ConfigError
from florilegium.packing import accumulate, pack, unpack
from florilegium.tensors import Tensors, joint_norm, mean, subtract
from privacy.accounting import gaussian_epsilon
from privacy.device_level import DeviceLevel, bound, epsilon, noise_sum, promise, release_local
from privacy.egress import RefusedError
from privacy.noise import SeededSource, SystemSource

CENTRAL = DeviceLevel(clip_norm=0.5, noise_multiplier=1.2, delta=1e-5, max_rounds=10, cohort=4)
LOCAL = replace(CENTRAL, placement="local")
OPEN = replace(CENTRAL, clip_norm=math.inf, noise_multiplier=0.0)


def make_updates(count: int, size: float = 1.0, seed: int = 0) -> list[Tensors]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"a": size * torch.randn(3, 2, generator=generator), "b": size * torch.randn(5, generator=generator)}
        for _ in range(count)
    ]


entries = st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4)
drawn_updates = entries.map(lambda row: {"a": torch.tensor(row[:3]), "b": torch.tensor(row[3:])})


def distance(one: Tensors, other: Tensors) -> float:
    return joint_norm(subtract({k: t.double() for k, t in one.items()}, {k: t.double() for k, t in other.items()}))


def sum_bounded(updates: Sequence[Tensors], config: DeviceLevel) -> Tensors:
    """What a server sums before it adds noise."""
    total = None
    for update in updates:
        total = accumulate(total, pack(bound(update, config)))
    return unpack(total or [])


def test_no_noise_and_no_clip_give_the_plain_mean() -> None:
    updates = make_updates(4)
    made = noise_sum(sum_bounded(updates, OPEN), OPEN, SystemSource())
    plain = mean((1.0, update) for update in updates)
    assert all(torch.allclose(made[key], plain[key], rtol=1e-6, atol=1e-7) for key in plain)
    local = release_local(updates[0], replace(OPEN, placement="local"), SystemSource())
    assert all(torch.equal(local[key], updates[0][key]) for key in local)


def test_small_updates_without_noise_give_the_plain_mean_whatever_the_bound() -> None:
    updates = make_updates(4, size=1e-3)
    config = replace(CENTRAL, noise_multiplier=0.0)
    made = noise_sum(sum_bounded(updates, config), config, SystemSource())
    plain = mean((1.0, update) for update in updates)
    assert all(torch.allclose(made[key], plain[key], rtol=1e-6, atol=1e-9) for key in plain)


def test_the_denominator_is_the_configured_cohort_and_not_the_count_of_replies() -> None:
    updates = make_updates(3)
    made = noise_sum(sum_bounded(updates, OPEN), replace(OPEN, cohort=12), SystemSource())
    plain = mean((1.0, update) for update in updates)
    assert all(torch.allclose(made[key] * 4, plain[key], rtol=1e-6, atol=1e-7) for key in plain)


@given(st.lists(drawn_updates, min_size=2, max_size=5), drawn_updates, st.floats(1e-3, 1e3), st.data())
def test_one_device_moves_the_sum_by_no_more_than_the_bound(
    updates: list[Tensors], other: Tensors, clip_norm: float, data: st.DataObject
) -> None:
    """C for a device that is there or not, 2C for one that is replaced; slack for sums of float64."""
    config = replace(CENTRAL, clip_norm=clip_norm)
    victim = data.draw(st.integers(0, len(updates) - 1))
    whole = sum_bounded(updates, config)
    without = sum_bounded(updates[:victim] + updates[victim + 1 :], config)
    instead = sum_bounded([*updates[:victim], other, *updates[victim + 1 :]], config)
    assert distance(whole, without) <= config.sensitivity * (1 + 1e-12)
    assert distance(whole, instead) <= 2 * config.sensitivity * (1 + 1e-12)


@given(drawn_updates, drawn_updates, st.floats(1e-3, 1e3))
def test_two_updates_of_a_device_are_no_farther_apart_than_the_local_bound(
    one: Tensors, other: Tensors, clip_norm: float
) -> None:
    config = replace(LOCAL, clip_norm=clip_norm)
    assert distance(bound(one, config), bound(other, config)) <= config.sensitivity * (1 + 1e-12)


def test_both_bounds_are_attained() -> None:
    update = {"a": torch.tensor([30.0, 40.0])}
    opposite = {"a": torch.tensor([-30.0, -40.0])}
    assert joint_norm(sum_bounded([update], CENTRAL)) == pytest.approx(CENTRAL.sensitivity, rel=1e-6)
    assert distance(bound(update, LOCAL), bound(opposite, LOCAL)) == pytest.approx(LOCAL.sensitivity, rel=1e-6)
    assert (CENTRAL.sensitivity, LOCAL.sensitivity) == (0.5, 1.0)


def p_of_scale(values: torch.Tensor, std: float) -> float:
    """Two-sided p of Σ x²/σ² ~ χ²(n); with 10⁶ values an error of 1 % is 14 standard deviations."""
    statistic = float(values.double().div(std).square().sum())
    return float(2 * min(stats.chi2.sf(statistic, values.numel()), stats.chi2.cdf(statistic, values.numel())))


@pytest.mark.parametrize(("clip_norm", "multiplier"), [(0.5, 1.2), (2.0, 0.3)])
def test_the_noise_is_clip_times_multiplier_on_the_sum_and_twice_that_on_a_device(
    clip_norm: float, multiplier: float
) -> None:
    zero = {"a": torch.zeros(1000, 500), "b": torch.zeros(500_000)}
    central = replace(CENTRAL, clip_norm=clip_norm, noise_multiplier=multiplier)
    on_mean = noise_sum(zero, central, SeededSource(1))
    on_device = release_local(zero, replace(central, placement="local"), SeededSource(2))
    for made, std in ((on_mean, clip_norm * multiplier / 4), (on_device, 2 * clip_norm * multiplier)):
        values = torch.cat([tensor.reshape(-1) for tensor in made.values()])
        assert p_of_scale(values, std) > 1e-3
        assert p_of_scale(values, 1.01 * std) < 1e-19


def test_noise_does_not_depend_on_what_it_hides() -> None:
    large = {"a": torch.full((100,), 1e3)}
    zero = {"a": torch.zeros(100)}
    apart = subtract(
        release_local(large, LOCAL, SeededSource(3)),
        release_local(zero, LOCAL, SeededSource(3)),
    )
    assert joint_norm(apart) == pytest.approx(LOCAL.clip_norm, rel=1e-3)


def test_noise_is_fresh_in_every_release() -> None:
    update = make_updates(1)[0]
    first, second = (release_local(update, LOCAL, SystemSource()) for _ in range(2))
    assert not torch.equal(first["a"], second["a"])


@settings(deadline=None, max_examples=25)
@given(st.floats(0.3, 20), st.integers(1, 100), st.floats(1e-8, 1e-2))
def test_epsilon_is_that_of_one_gaussian_at_z_over_root_k_and_grows_with_k_and_less_noise(
    multiplier: float, rounds: int, delta: float
) -> None:
    config = replace(CENTRAL, noise_multiplier=multiplier, max_rounds=rounds, delta=delta)
    found = epsilon(config)
    assert found == pytest.approx(gaussian_epsilon(multiplier / math.sqrt(rounds), delta=delta), rel=1e-9, abs=1e-9)
    assert epsilon(replace(config, max_rounds=rounds + 1)) >= found
    assert epsilon(replace(config, noise_multiplier=multiplier * 1.1)) <= found


def test_epsilon_by_hand() -> None:
    """Nine rounds at z = 3 are one at z = 1, whose ε at δ = 1e-5 is 4.37718; placement and cohort change nothing."""
    config = replace(CENTRAL, noise_multiplier=3.0, max_rounds=9)
    for same in (config, replace(config, placement="local"), replace(config, cohort=1000)):
        assert epsilon(same) == pytest.approx(4.37718, abs=1e-5)
    assert epsilon(replace(config, noise_multiplier=0.0)) == math.inf


def test_the_claimed_epsilon_holds_for_the_best_threshold_between_the_farthest_updates() -> None:
    """P(x > t) ≤ e^ε P(x' > t) + δ, in 200 000 draws on either side; a tenth of the noise breaks it."""
    config = DeviceLevel(clip_norm=1.0, noise_multiplier=1.0, delta=0.05, placement="local", max_rounds=1, cohort=1)
    claimed = epsilon(config)

    def largest_excess(sampled_with: DeviceLevel) -> float:
        # Every coordinate is one release of a device with a single parameter: clip by hand to ±C, noise by the code.
        zero = {"a": torch.zeros(200_000)}
        high = 1.0 + release_local(zero, sampled_with, SeededSource(4))["a"].double().numpy()
        low = -1.0 + release_local(zero, sampled_with, SeededSource(5))["a"].double().numpy()
        return max(
            float((high > t).mean() - math.exp(claimed) * (low > t).mean()) - config.delta
            for t in np.linspace(-2, 8, 41)
        )

    # Standard error of either share is below 0.0012, of the right-hand side below e^ε · 0.0012.
    assert largest_excess(config) < 5 * 0.0012 * (1 + math.exp(claimed))
    assert largest_excess(replace(config, noise_multiplier=0.1)) > 0.5


def test_a_promise_says_of_whom_for_whom_and_how_much() -> None:
    said = promise(CENTRAL)
    assert "is (14.1, 1e-05)-private" in said
    assert f"{epsilon(CENTRAL):.3g}" == "14.1"
    assert ("there or not" in said, "sees the models" in said, "10 releases" in said) == (True, True, True)
    assert promise(LOCAL).replace("sees its updates", "sees the models") != said
    assert "sees its updates" in promise(LOCAL)
    assert promise(replace(CENTRAL, noise_multiplier=0.0)) == "Nothing is promised: no noise is added."


def test_without_the_library_a_promise_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    assert "noise 1.2 times" in promise(CENTRAL)
    assert "pip install" in promise(CENTRAL)


def test_an_update_that_is_not_finite_is_refused_with_and_without_a_bound() -> None:
    broken = {"a": torch.tensor([1.0, math.nan])}
    for config in (CENTRAL, OPEN):
        with pytest.raises(RefusedError):
            sum_bounded([broken], config)
    with pytest.raises(RefusedError):
        release_local(broken, LOCAL, SystemSource())


def test_noise_is_added_only_where_the_configuration_says() -> None:
    with pytest.raises(ConfigError, match="placement is 'central'"):
        release_local(make_updates(1)[0], CENTRAL, SystemSource())
    with pytest.raises(ConfigError, match="placement is 'local'"):
        noise_sum(make_updates(1)[0], LOCAL, SystemSource())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be > 0, got 0.0"),
        ({"clip_norm": -1.0}, "clip_norm must be > 0"),
        ({"clip_norm": math.nan}, "clip_norm must be > 0"),
        ({"clip_norm": math.inf}, "clip_norm is infinite and noise_multiplier is not 0"),
        ({"noise_multiplier": -0.1}, "noise_multiplier must be finite and >= 0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier must be finite and >= 0"),
        ({"noise_multiplier": math.inf}, "noise_multiplier must be finite and >= 0"),
        ({"delta": 0.0}, "delta must be in"),
        ({"delta": 1.0}, "delta must be in"),
        ({"placement": "nowhere"}, "no placement 'nowhere'"),
        ({"max_rounds": 0}, "max_rounds must be >= 1"),
        ({"cohort": 0}, "cohort must be >= 1"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CENTRAL, **change)  # type: ignore[arg-type]
