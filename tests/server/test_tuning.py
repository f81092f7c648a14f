"""Hyperparameters that are coordinated while rounds are played."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors
from privacy.noise import SeededSource
from server.asking import Asking, Tally
from server.config import CoordinationConfig
from server.hyperparameters.fedex_hpo import FedExHPO
from server.rounds import Coordinator
from server.transport import Answer, Request
from tests.server.toy import SMALL, Spoil, Toy, assert_same, coordinator, play
from tests.strategies.rules.fleet import ALPHA_PER_RANK, adapter

RATES = (1e-4, 1e-3, 1e-2)
GOOD = 1e-3
FEDEX = {"way": "fedex_hpo", "options": {"candidates": [{"learning_rate": rate, "dropout": 0.1} for rate in RATES]}}
NOISE = {"clip_norm": 1.0, "noise_multiplier": 0.5, "max_rounds": 99}
PRIVATE = {"rule": "ffa", "privacy": NOISE}


def judging(request: Request, answer: Answer) -> Answer:
    """Say how good the asked learning rate was, as a device would after its work."""
    if request.improvement_unit == 0:
        return answer
    gain = 0.25 if request.hyperparameters["learning_rate"] == GOOD else -0.25
    return replace(answer, metrics={"improvement": gain / request.improvement_unit})


def tuned(
    folder: Path, *, spoil: Spoil = judging, tuner: dict[str, object] | None = None, **settings: object
) -> tuple[Coordinator, Toy]:
    return coordinator(folder, spoil=spoil, ranks=None, tuner=tuner or FEDEX, **settings)


def best(made: Coordinator) -> dict[str, float]:
    learner = made.config.tuner.tuner()
    assert isinstance(learner, FedExHPO)
    return learner.best(made.progress().tuner)


def test_a_fleet_finds_the_candidate_that_does_it_good(tmp_path: Path) -> None:
    made, toy = tuned(tmp_path, cohort=8, rounds=12)
    logs, _ = play(made)
    assert best(made) == {"learning_rate": GOOD, "dropout": 0.1}
    asked = [request.hyperparameters["learning_rate"] for request in toy.requests]
    assert set(asked[:24]) == set(RATES), "all are tried"
    assert asked[-40:].count(GOOD) > 30, "and the good one prevails"
    assert logs[0].improvement is not None
    assert logs[-1].improvement is not None
    assert logs[-1].improvement > logs[0].improvement


def test_what_is_drawn_takes_the_place_of_what_is_usual(tmp_path: Path) -> None:
    made, toy = tuned(tmp_path, local_steps=5, learning_rate=0.5)
    play(made)
    for request in toy.requests:
        assert request.hyperparameters["steps"] == 5
        assert request.hyperparameters["learning_rate"] in RATES
        assert request.hyperparameters["dropout"] == 0.1
        assert request.improvement_unit == 1.0


def test_who_learns_nothing_asks_for_nothing(tmp_path: Path) -> None:
    fixed: dict[str, object] = {"way": "fixed", "options": {"values": {"steps": 3}}}
    made, toy = tuned(tmp_path, tuner=fixed)
    logs, progress = play(made)
    assert all(request.improvement_unit == 0 and request.hyperparameters["steps"] == 3 for request in toy.requests)
    assert not progress.tuner
    assert all(log.improvement is None for log in logs)


def test_a_schedule_is_followed(tmp_path: Path) -> None:
    schedule: dict[str, object] = {
        "way": "schedule",
        "options": {"first": {"learning_rate": 1e-2}, "last": {"learning_rate": 1e-3}, "curve": "step", "rounds": 4},
    }
    made, toy = tuned(tmp_path, tuner=schedule)
    play(made)
    asked = {request.turn.round: request.hyperparameters["learning_rate"] for request in toy.requests}
    # A step a round on a log scale: a third of the decade each.
    assert [asked[number] for number in (1, 2, 3, 4)] == pytest.approx([10 ** -(2 + k / 3) for k in range(4)])


@pytest.mark.parametrize("rule", ["fedit", "sketch", "fedsb", "fedkseed"])
def test_devices_are_asked_in_the_exchange_that_trains(rule: str, tmp_path: Path) -> None:
    made, toy = tuned(tmp_path, plan={"rule": rule}, rounds=3)
    logs, progress = play(made)
    assert made.plan.rule is not None
    for request in toy.requests:
        trains = made.plan.rule.duty(request.turn).work in ("train", "zeroth-order")
        assert (request.improvement_unit > 0) == trains
    assert (logs[0].improvement is None) == (rule == "fedsb"), "its first round trains nothing"
    assert not torch.equal(progress.tuner["log_weights"], FedExHPO(**FEDEX["options"]).start()["log_weights"])  # type: ignore[arg-type]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_that_was_stopped_ends_the_same(stop: int, tmp_path: Path) -> None:
    _, expected = play(tuned(tmp_path / "whole")[0])
    first, toy = tuned(tmp_path / "cut")
    for log, _ in first.rounds():
        if log.round == stop:
            break
    second, other = tuned(tmp_path / "cut")
    other.known = toy.known
    _, found = play(second)
    assert_same(found, expected)


def test_the_order_of_replies_changes_nothing(tmp_path: Path) -> None:
    class Shuffled(Toy):
        def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
            answers = list(super().ask(requests, seconds=seconds))
            random.Random(len(self.asked)).shuffle(answers)
            yield from answers

    plain, _ = tuned(tmp_path / "plain", cohort=6)
    shuffled, toy = tuned(tmp_path / "shuffled", cohort=6)
    shuffled._transport = Shuffled(toy.plan, toy.ranks, judging)
    one, other = play(plain)[1], play(shuffled)[1]
    assert all(torch.equal(tensor, other.tuner[key]) for key, tensor in one.tuner.items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_improvement_that_is_no_number_is_refused_and_the_round_goes_on(value: float, tmp_path: Path) -> None:
    def spoil(request: Request, answer: Answer) -> Answer:
        return replace(answer, metrics={"improvement": value}) if request.device == 0 else judging(request, answer)

    made, _ = tuned(tmp_path, spoil=spoil, cohort=8)
    logs, progress = play(made)
    assert all(dict(log.refused) == {0: "bad-metric"} and log.taken == 7 for log in logs)
    assert all(bool(tensor.isfinite().all()) for tensor in progress.tuner.values())


def test_an_exaggerated_improvement_counts_as_one(tmp_path: Path) -> None:
    def spoil(size: float) -> Spoil:
        return lambda _, answer: replace(answer, metrics={"improvement": size})

    one, other = (play(tuned(tmp_path / f"{size}", spoil=spoil(size))[0])[1] for size in (1.0, 1e30))
    assert all(torch.equal(tensor, other.tuner[key]) for key, tensor in one.tuner.items())


def test_who_says_nothing_of_it_takes_part_all_the_same(tmp_path: Path) -> None:
    made, _ = tuned(tmp_path, spoil=lambda _, answer: answer)
    logs, progress = play(made)
    assert all(log.taken == 3 and log.improvement is None for log in logs)
    start = made.config.tuner.tuner().start()
    assert all(torch.equal(tensor, start[key]) for key, tensor in progress.tuner.items())


def test_what_came_in_a_round_that_was_tried_again_is_forgotten(tmp_path: Path) -> None:
    """Two devices answer the first attempt of each round, of three that are needed."""

    class Half(Toy):
        calls = 0

        def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
            self.calls += 1
            answers = list(super().ask(requests, seconds=seconds))
            yield from answers[:2] if self.calls % 2 else answers

    made, toy = tuned(tmp_path, cohort=3, minimum_replies=3)
    half = Half(toy.plan, toy.ranks, judging)
    made._transport = half
    (log, progress), *_ = made.rounds()
    assert log.asked == 6
    merged = {request.device: request.hyperparameters["learning_rate"] for request in half.requests[3:6]}
    gains = [0.25 if rate == GOOD else -0.25 for rate in merged.values()]
    assert log.improvement == pytest.approx(sum(gains) / 3)
    learner = made.config.tuner.tuner()
    total = sum(
        (
            learner.feedback({"learning_rate": rate, "dropout": 0.1}, gain)
            for rate, gain in zip(merged.values(), gains, strict=True)
        ),
        torch.zeros(2, 3, dtype=torch.float64),
    )
    expected = learner.advance(learner.start(), total)
    assert all(torch.equal(tensor, progress.tuner[key]) for key, tensor in expected.items())


def asking(**plan: object) -> tuple[Asking, CoordinationConfig]:
    config = CoordinationConfig.parse(SMALL | {"tuner": FEDEX, "plan": plan})
    return Asking(config, adapter(3), rank=3, scale=ALPHA_PER_RANK, noise=SeededSource(7)), config


def test_under_central_privacy_the_sum_of_feedback_has_noise_of_z_times_its_sensitivity() -> None:
    """Statistical: 300 sums of 6 numbers, of which the standard deviation is known within 4 %, checked within 8 %."""
    made, _ = asking(**PRIVATE)
    progress, seen = made.start("x"), []
    tally = Tally(improvements={0: 0.5, 1: -0.5})

    def advance(_: object, summed: torch.Tensor) -> Tensors:
        seen.append(summed)
        return {}

    made.tuner = _Watched(made.tuner, advance)  # type: ignore[assignment]
    for _ in range(300):
        made.learn(progress, 1, tally)
    plain, _ = asking(rule="ffa")
    plain.tuner = _Watched(plain.tuner, advance)  # type: ignore[assignment]
    plain.learn(progress, 1, tally)
    noise = torch.stack(seen[:-1]).double() - seen[-1]
    assert float(noise.std()) == pytest.approx(0.5 * math.sqrt(2), rel=0.08)
    assert abs(float(noise.mean())) < 0.08


class _Watched:
    def __init__(self, inner: object, advance: object) -> None:
        self._inner, self.advance = inner, advance

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def test_under_privacy_no_improvement_is_told(tmp_path: Path) -> None:
    made, _ = tuned(tmp_path, plan=PRIVATE)
    logs, progress = play(made)
    assert all(log.improvement is None for log in logs)
    assert "improvement" not in progress.metrics


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"plan": {"rule": "ffa", "privacy": NOISE | {"placement": "local"}}}, "says nothing under the noise"),
        ({"plan": {"rule": "fedit", "secure_aggregation": True}}, "secure aggregation shows sums alone"),
        (
            {"tuner": {"way": "fixed", "options": {"values": {"rank": 4}}}},
            "adapters keep their shape through a run",
        ),
        ({"tuner": {"way": "fedex"}}, "must be one of fedex_hpo, fixed, schedule"),
        ({"tuner": {"way": "fixed", "options": {"values": {"step": 4}}}}, "did you mean 'steps'"),
        ({"improvement_unit": 0.0}, "improvement_unit = 0.0 is refused"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CoordinationConfig.parse({"tuner": FEDEX} | settings)


def test_another_tuner_is_another_run(tmp_path: Path) -> None:
    play(tuned(tmp_path)[0])
    with pytest.raises(ConfigError, match="other settings"):
        play(coordinator(tmp_path)[0])
