"""FedEx: laws of the distribution, the authors' loop, and bandits with a best arm."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from florilegium.errors import ConfigError, InputError
from florilegium.tensors import Tensors
from privacy.noise import SeededSource, add_gaussian
from server.hyperparameters.fedex_hpo import FedExHPO

Divisor = Literal["aggressive", "adaptive", "decaying", "constant"]
DIVISORS: tuple[Divisor, ...] = ("aggressive", "adaptive", "decaying", "constant")
Answers = list[tuple[int, float]]  # arm and improvement of each device
RATES = tuple(round(1e-3 * (1 + arm), 6) for arm in range(9))

every_schedule = pytest.mark.parametrize("schedule", DIVISORS)


def make(
    arms: int = 3, *, schedule: Divisor = "aggressive", exploration: float = 0.1, discount: float = 0.9
) -> FedExHPO:
    candidates = tuple({"learning_rate": rate} for rate in RATES[:arms])
    return FedExHPO(candidates=candidates, schedule=schedule, exploration=exploration, discount=discount)


def total(tuner: FedExHPO, answers: Answers) -> Tensor:
    return torch.stack([tuner.feedback(tuner.candidates[arm], gain) for arm, gain in answers]).sum(dim=0)


def play(tuner: FedExHPO, rounds: Sequence[Answers]) -> Tensors:
    state = tuner.start()
    for answers in rounds:
        state = tuner.advance(state, total(tuner, answers))
    return state


def on_grid(gain: float) -> float:
    return round(gain * 256) / 256


ANSWERS = st.lists(st.tuples(st.integers(0, 2), st.floats(-1, 1).map(on_grid)), min_size=1, max_size=6)
ROUNDS = st.lists(ANSWERS, min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(ROUNDS, st.sampled_from(DIVISORS), st.sampled_from([1e-6, 0.1, 1.0]))
def test_the_distribution_stays_one_and_never_gives_up_a_candidate(
    rounds: list[Answers], schedule: Divisor, exploration: float
) -> None:
    tuner = make(schedule=schedule, exploration=exploration)
    state = play(tuner, rounds)
    probabilities = tuner.probabilities(state)
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-12)
    assert bool((probabilities >= exploration / 3 * (1 - 1e-9)).all())
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
    assert float(state["log_weights"].logsumexp(dim=0)) == pytest.approx(0.0, abs=1e-9)


def authors_loop(tuner: FedExHPO, rounds: Sequence[Answers]) -> list[float]:
    """FedEx as its authors wrote it, over single devices and with losses, plus the share of uniform draws."""
    arms, remembered = len(tuner.candidates), 0.0
    means: list[float] = []
    z = [-math.log(arms)] * arms
    for number, answers in enumerate(rounds, start=1):
        losses = [(arm, -gain) for arm, gain in answers]
        weights = [tuner.discount**age for age in range(len(means))][::-1]
        baseline = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights) if means else 0.0
        p = [(1 - tuner.exploration) * math.exp(each) + tuner.exploration / arms for each in z]
        surplus = [0.0] * arms
        for arm, loss in losses:
            surplus[arm] += loss - baseline
        gradient = [
            each / len(losses) / share if abs(each) > 1e-9 else 0.0 for each, share in zip(surplus, p, strict=True)
        ]
        largest = max(map(abs, gradient))
        remembered += largest**2
        divisor = {
            "aggressive": largest,
            "adaptive": math.sqrt(remembered),
            "decaying": math.sqrt(number),
            "constant": 1.0,
        }[tuner.schedule]
        rate = math.sqrt(2 * math.log(arms)) / divisor if divisor else 0.0
        z = [each - rate * slope for each, slope in zip(z, gradient, strict=True)]
        norm = max(z) + math.log(sum(math.exp(each - max(z)) for each in z))
        z = [each - norm for each in z]
        means.append(sum(loss for _, loss in losses) / len(losses))
    return z


@settings(max_examples=80, deadline=None)
@given(ROUNDS, st.sampled_from(DIVISORS), st.sampled_from([1e-6, 0.1, 0.5]), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_a_sum_over_devices_gives_the_authors_loop_over_single_ones(
    rounds: list[Answers], schedule: Divisor, exploration: float, discount: float
) -> None:
    tuner = make(schedule=schedule, exploration=exploration, discount=discount)
    expected = torch.tensor(authors_loop(tuner, rounds), dtype=torch.float64)
    torch.testing.assert_close(play(tuner, rounds)["log_weights"], expected, rtol=1e-9, atol=1e-9)


def test_a_first_step_by_hand() -> None:
    # Two candidates; one device drew the first and improved by 1: ∇ = (−1 / ½, 0), ‖∇‖∞ = 2, η = √(2 ln 2) / 2, so that
    # z₁ − z₂ = √(2 ln 2) = 1.17741, softmax (0.76448, 0.23552), and with a tenth of uniform draws (0.73803, 0.26197).
    tuner = make(2)
    state = play(tuner, [[(0, 1.0)]])
    assert tuner.probabilities(state).tolist() == pytest.approx([0.73803, 0.26197], abs=1e-5)
    assert tuner.best(state) == {"learning_rate": RATES[0]}


def test_a_baseline_by_hand() -> None:
    # Round means ½, then ¼: λ = (0.9 · ½ + ¼) / 1.9. A device at λ's nearest step on the grid hardly moves anything.
    tuner = make(2, schedule="constant")
    state = play(tuner, [[(0, 0.5), (1, 0.5)], [(0, 0.25), (1, 0.25)]])
    numerator, weight = state["baseline"].tolist()
    assert numerator / weight == pytest.approx((0.9 * 0.5 + 0.25) / 1.9)


@every_schedule
def test_what_is_as_good_as_ever_changes_no_draw(schedule: Divisor) -> None:
    """An improvement that equals the baseline says nothing about what was drawn, and rounding says nothing either."""
    tuner, usual = make(schedule=schedule), 77 / 256
    state = play(tuner, [[(0, usual), (1, usual), (2, usual)]])
    once = tuner.probabilities(state)
    for answers in ([(0, usual)] * 5, [(2, usual)], [(0, usual), (1, usual)], [(1, usual)] * 3):
        state = tuner.advance(state, total(tuner, answers))
        torch.testing.assert_close(tuner.probabilities(state), once, rtol=0, atol=1e-12)


@every_schedule
def test_no_improvement_anywhere_changes_no_draw(schedule: Divisor) -> None:
    tuner = make(schedule=schedule)
    state = play(tuner, [[(0, 0.0), (1, 0.0)], [(2, 0.0)]])
    assert torch.equal(tuner.probabilities(state), tuner.probabilities(tuner.start()))


@every_schedule
def test_who_did_better_is_drawn_more_and_who_did_worse_less(schedule: Divisor) -> None:
    tuner = make(schedule=schedule)
    better, untried, worse = tuner.probabilities(play(tuner, [[(0, 0.5), (2, -0.5)]])).tolist()
    assert better > untried > worse


@pytest.mark.parametrize("schedule", ["aggressive", "adaptive"])
def test_the_size_of_improvements_does_not_matter_where_it_is_divided_by(schedule: Divisor) -> None:
    tuner = make(schedule=schedule)
    rounds = [[(0, 0.5), (1, -0.25), (2, 0.75)], [(0, 0.25), (0, 0.5), (1, 0.125)], [(2, 1.0), (1, 0.0)]]
    small = [[(arm, gain / 8) for arm, gain in answers] for answers in rounds]
    torch.testing.assert_close(play(tuner, rounds)["log_weights"], play(tuner, small)["log_weights"])


@every_schedule
def test_the_order_of_candidates_does_not_matter(schedule: Divisor) -> None:
    tuner, turned = make(schedule=schedule), make(schedule=schedule)
    rounds = [[(0, 0.5), (1, -0.25), (2, 0.75)], [(0, 0.25), (0, 0.5), (1, 0.125)]]
    mirrored = [[(2 - arm, gain) for arm, gain in answers] for answers in rounds]
    one, other = play(tuner, rounds)["log_weights"], play(turned, mirrored)["log_weights"]
    torch.testing.assert_close(one, other.flip(0))


def learn(
    tuner: FedExHPO, means: Sequence[float], *, seed: int, rounds: int, cohort: int, noise: float = 0.0
) -> Tensors:
    """Let a fleet learn in which candidate c improves a device by N(means[c], 0.15²)."""
    state, rng, source = tuner.start(), np.random.default_rng(seed), SeededSource(seed)
    mean_of = {candidate["learning_rate"]: mean for candidate, mean in zip(tuner.candidates, means, strict=True)}
    for server_round in range(1, rounds + 1):
        summed = torch.zeros(2, len(means), dtype=torch.float64)
        for device in range(cohort):
            drawn = tuner.draw(state, server_round=server_round, device=device, seed=seed)
            summed += tuner.feedback(drawn, float(rng.normal(mean_of[drawn["learning_rate"]], 0.15)))
        if noise:
            summed = add_gaussian({"feedback": summed}, noise * tuner.sensitivity, source)["feedback"]
        state = tuner.advance(state, summed)
    return state


@every_schedule
@pytest.mark.parametrize("means", [(-0.2, 0.0, 0.1, 0.3, 0.5), (0.15, -0.9, 0.0, -0.2, 0.05)])
def test_the_best_candidate_wins(schedule: Divisor, means: tuple[float, ...]) -> None:
    """Of 8 seeds at most one may end elsewhere; by chance a candidate would win one in five."""
    tuner = make(5, schedule=schedule)
    best = tuner.candidates[int(np.argmax(means))]
    ends = [learn(tuner, means, seed=seed, rounds=15, cohort=16) for seed in range(8)]
    assert sum(tuner.best(state) == best for state in ends) >= 7


def test_the_best_candidate_wins_under_noise() -> None:
    """128 devices and noise of z = 1 on their sum: of 4 seeds all end at the best."""
    tuner, means = make(5), (-0.2, 0.0, 0.1, 0.3, 0.5)
    for seed in range(4):
        assert tuner.best(learn(tuner, means, seed=seed, rounds=12, cohort=128, noise=1.0)) == tuner.candidates[4]


@every_schedule
def test_noise_of_any_size_leaves_a_distribution(schedule: Divisor) -> None:
    tuner = make(schedule=schedule, exploration=1e-6)
    state = tuner.start()
    for number in range(60):
        generator = torch.Generator().manual_seed(number)
        noisy = 10.0 ** (number % 6) * torch.randn(2, 3, generator=generator, dtype=torch.float64)
        state = tuner.advance(state, noisy)
        assert float(tuner.probabilities(state).sum()) == pytest.approx(1.0)
        assert all(bool(tensor.isfinite().all()) for tensor in state.values())
        tuner.draw(state, server_round=number, device=0, seed=0)


@pytest.mark.parametrize("counts", [[1.0, -2.0, -1.0], [0.5, -0.5, 0.0]])
def test_counts_that_noise_turned_around_turn_no_step_around(counts: list[float]) -> None:
    tuner = make(3)
    state = tuner.advance(tuner.start(), torch.tensor([[0.9, 0.0, -0.4], counts], dtype=torch.float64))
    better, untried, worse = tuner.probabilities(state).tolist()
    assert better > untried > worse


def test_draws_of_devices_and_of_rounds_follow_the_distribution() -> None:
    tuner = make(4)
    state = play(tuner, [[(0, 0.5), (1, 0.25), (2, 0.0), (3, -0.5)]])
    expected = tuner.probabilities(state).tolist()
    assert min(expected) > 0.02
    assert max(expected) > 0.5
    draws = {
        "devices": [tuner.draw(state, server_round=1, device=device, seed=0) for device in range(3000)],
        "rounds": [tuner.draw(state, server_round=number, device=5, seed=0) for number in range(1, 3001)],
        "seeds": [tuner.draw(state, server_round=1, device=5, seed=seed) for seed in range(3000)],
    }
    for drawn in draws.values():
        counts = Counter(each["learning_rate"] for each in drawn)
        statistic = sum(
            (counts[rate] - 3000 * share) ** 2 / (3000 * share) for rate, share in zip(RATES[:4], expected, strict=True)
        )
        # χ² with 3 degrees of freedom is above 21.1 once in 10 000 times.
        assert statistic < 21.1


def test_what_two_devices_draw_is_independent() -> None:
    tuner = make(2)
    pairs = Counter(
        tuple(tuner.draw(tuner.start(), server_round=n, device=d, seed=1)["learning_rate"] for d in (1, 2))
        for n in range(2000)
    )
    # Each of four pairs is binomial(2000, 1/4): standard deviation 19.4; five of them.
    assert len(pairs) == 4
    assert all(abs(count - 500) < 97 for count in pairs.values())


def test_no_two_contributions_of_a_device_differ_by_more_than_two() -> None:
    tuner = make(3)
    gains = [-1.0, -0.5, 0.0, 0.5, 1.0]
    every = [tuner.feedback(candidate, gain) for candidate in tuner.candidates for gain in gains]
    assert max(float((one - other).norm()) for one, other in itertools.combinations(every, 2)) == 2.0
    # A device without an improvement to tell of adds nothing; that is how one that is not there looks.
    assert max(float(each.norm()) for each in every) == tuner.sensitivity == math.sqrt(2)


def test_a_contribution_is_one_hot_rounded_and_bounded() -> None:
    tuner = make(3)
    assert tuner.feedback({"learning_rate": RATES[1]}, 0.3).tolist() == [[0, 77 / 256, 0], [0, 1, 0]]
    assert tuner.feedback({"learning_rate": RATES[2]}, -7.0).tolist() == [[0, 0, -1], [0, 0, 1]]


@pytest.mark.parametrize("gain", [math.nan, math.inf])
def test_an_improvement_that_is_none_is_refused(gain: float) -> None:
    with pytest.raises(InputError, match="an improvement must be finite"):
        make().feedback({"learning_rate": RATES[0]}, gain)


def test_what_was_not_drawn_is_refused() -> None:
    for drawn in ({"learning_rate": 0.7}, {}, {"learning_rate": RATES[0], "steps": 8.0}):
        with pytest.raises(InputError, match="none of the candidates"):
            make().feedback(drawn, 0.5)


@pytest.mark.parametrize("summed", [torch.zeros(2, 4), torch.zeros(3), torch.full((2, 3), math.nan)])
def test_a_sum_that_is_none_is_refused(summed: Tensor) -> None:
    with pytest.raises(InputError, match="is no finite tensor"):
        make().advance(make().start(), summed)


RATE = {"learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"candidates": (RATE,)}, "there are 1 candidates"),
        ({"candidates": (RATE, {"learning_rte": 1e-2})}, "did you mean 'learning_rate'"),
        ({"candidates": (RATE, {"learning_rate": 7.0})}, "learning_rate must be a number from 1e-07 to 1"),
        ({"candidates": (RATE, {"dropout": 0.1})}, "candidates 0 and 1 are of different hyperparameters"),
        ({"candidates": (RATE, {"learning_rate": 1e-2}, dict(RATE))}, "candidate 2 is there twice"),
        ({"candidates": ({}, {})}, "candidate 1 is there twice"),
        ({"schedule": "eager"}, "no schedule 'eager'"),
        ({"step_size": 0.0}, "step_size must be finite and > 0"),
        ({"discount": 1.5}, r"discount must be in \[0, 1\], got 1.5"),
        ({"exploration": 0.0}, "exploration must be from 1e-06 to 1, got 0.0"),
        ({"exploration": math.nan}, "exploration must be"),
    ],
)
def test_a_tuner_that_cannot_be_is_refused(changes: dict[str, object], words: str) -> None:
    usual: dict[str, object] = {"candidates": (RATE, {"learning_rate": 1e-2})}
    with pytest.raises(ConfigError, match=words):
        FedExHPO(**usual | changes)  # type: ignore[arg-type]


def test_a_step_size_of_ones_own_takes_the_place_of_the_papers() -> None:
    pair = make(2).candidates
    small, large = (FedExHPO(candidates=pair, step_size=size, schedule="constant") for size in (0.1, 0.2))
    moved = [play(tuner, [[(0, 0.5)]])["log_weights"] for tuner in (small, large)]
    # One device at p = ½ and improvement ½: ∇ = −1, so that z₁ − z₂ is the step size itself.
    assert [float(z[0] - z[1]) for z in moved] == pytest.approx([0.1, 0.2])
