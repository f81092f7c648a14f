"""Runs that are stopped early: Optuna's rule against one written out by hand, and what holds whatever the rule."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Literal

import optuna
import pytest

from florilegium.errors import ConfigError, InputError
from server.hyperparameters.halving import Halving, Run
from strategies.hyperparameters import require_values

Score = Callable[[Mapping[str, float], int], float]
RANGES: dict[str, tuple[float, float]] = {"learning_rate": (1e-4, 1e-1), "steps": (1, 32), "dropout": (0.0, 0.5)}


def near_a_hundredth(values: Mapping[str, float], server_round: int) -> float:
    return 0.01 * server_round - abs(math.log(values["learning_rate"] / 1e-2))


def search(halving: Halving, score: Score, count: int, runs: tuple[Run, ...] = ()) -> tuple[Run, ...]:
    while len(runs) < count:
        runs = (*runs, Run(values=halving.ask(runs)))
        while halving.goes_on(runs):
            *before, last = runs
            runs = (*before, replace(last, scores=(*last.scores, score(last.values, len(last.scores) + 1))))
    return runs


def naive_rounds(halving: Halving, scored: list[list[float]]) -> list[int]:
    """How many rounds each run plays, if `scored` is what it would tell after each of them."""
    rungs: dict[int, list[float]] = {}
    played = []
    for scores in scored:
        rung, at = 0, 0
        for at, score in enumerate(scores, start=1):
            if at < halving.first_rounds * halving.reduction**rung:
                continue
            rivals = rungs.setdefault(rung, [])
            rivals.append(score)
            rung += 1
            if score not in sorted(rivals, reverse=True)[: max(1, len(rivals) // halving.reduction)]:
                break
        played.append(at)
    return played


@pytest.mark.parametrize(("first_rounds", "reduction", "rounds"), [(1, 3, 9), (2, 2, 8), (1, 4, 4), (3, 2, 10)])
def test_runs_are_stopped_as_the_rule_says(first_rounds: int, reduction: int, rounds: int) -> None:
    halving = Halving(ranges=RANGES, rounds=rounds, first_rounds=first_rounds, reduction=reduction)

    def wiggling(values: Mapping[str, float], server_round: int) -> float:
        return near_a_hundredth(values, server_round) + math.sin(9 * server_round * values["dropout"])

    runs = search(halving, wiggling, 14)
    scored = [[wiggling(run.values, number) for number in range(1, rounds + 1)] for run in runs]
    assert [len(run.scores) for run in runs] == naive_rounds(halving, scored)
    assert len({len(run.scores) for run in runs}) > 1, "some were stopped and some were not"


def test_a_search_spends_less_and_finds_the_best_of_what_it_asked() -> None:
    halving = Halving(ranges=RANGES, rounds=9)
    runs = search(halving, near_a_hundredth, 15)
    assert sum(len(run.scores) for run in runs) < 15 * 9 * 0.7
    best = max(runs, key=lambda run: near_a_hundredth(run.values, 9))
    assert halving.best(runs) == best, "where the order never changes, halving never loses the best"


def test_the_first_run_plays_to_its_end() -> None:
    (run,) = search(Halving(ranges=RANGES, rounds=5), lambda values, number: -number, 1)
    assert len(run.scores) == 5


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_run_that_broke_is_stopped_at_once(broken: float) -> None:
    halving = Halving(ranges=RANGES, rounds=9, first_rounds=9)
    runs = search(halving, lambda values, number: broken if number == 2 else 1.0, 3)
    assert [len(run.scores) for run in runs] == [2, 2, 2]
    with pytest.raises(InputError, match="no run to judge"):
        halving.best(runs)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_that_was_stopped_ends_the_same(sampler: Literal["random", "tpe"]) -> None:
    halving = Halving(ranges=RANGES, rounds=3, sampler=sampler, seed=4)
    whole = search(halving, near_a_hundredth, 13)
    for cut in (1, 12):
        written = json.dumps([asdict(run) for run in search(halving, near_a_hundredth, cut)])
        again = tuple(Run(values=each["values"], scores=tuple(each["scores"])) for each in json.loads(written))
        assert search(halving, near_a_hundredth, 13, again) == whole


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_what_is_asked_is_in_its_range_and_not_twice_the_same(sampler: Literal["random", "tpe"]) -> None:
    halving = Halving(ranges=RANGES, rounds=2, sampler=sampler)
    runs = search(halving, near_a_hundredth, 14)
    for run in runs:
        assert list(run.values) == list(RANGES)
        require_values(run.values)
        assert all(RANGES[name][0] <= value <= RANGES[name][1] for name, value in run.values.items())
    assert len({run.values["learning_rate"] for run in runs}) == 14
    other = replace(halving, seed=1)
    assert other.ask([]) != halving.ask([])


def test_random_draws_are_even_on_the_scale_of_each_hyperparameter() -> None:
    drawn = [Halving(ranges=RANGES, rounds=2, seed=seed).ask([]) for seed in range(200)]
    # Each half holds a binomial(200, ½) share: standard deviation 7.1; five of them.
    assert abs(sum(each["learning_rate"] < 10**-2.5 for each in drawn) - 100) < 36
    assert abs(sum(each["dropout"] < 0.25 for each in drawn) - 100) < 36


def test_tpe_comes_back_to_what_did_well() -> None:
    """After 30 runs a draw lies nearer the best learning rate than a random one: mean |ln| over 12 seeds."""
    known = search(Halving(ranges=RANGES, rounds=1, seed=9), near_a_hundredth, 30)
    means = {}
    for sampler in ("random", "tpe"):
        far = [
            -near_a_hundredth(Halving(ranges=RANGES, rounds=1, sampler=sampler, seed=seed).ask(known), 0)
            for seed in range(12)
        ]
        means[sampler] = sum(far) / len(far)
    assert means["tpe"] < 0.7 * means["random"]


def test_optuna_is_as_loud_afterwards_as_before() -> None:
    before = optuna.logging.get_verbosity()
    Halving(ranges=RANGES, rounds=2).ask([])
    with pytest.raises(InputError):
        Halving(ranges=RANGES, rounds=2).goes_on([])
    assert optuna.logging.get_verbosity() == before


def test_without_optuna_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"optuna is not installed.*pip install"):
        Halving(ranges=RANGES, rounds=2).ask([])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ranges": {}}, "ranges is empty"),
        ({"ranges": {"learning_rte": (1e-4, 1e-1)}}, "did you mean 'learning_rate'"),
        ({"ranges": {"steps": (0, 8)}}, "steps must be a whole number from 1"),
        ({"ranges": {"steps": (8, 8)}}, "steps ranges from 8 to 8"),
        ({"first_rounds": 0}, "first_rounds must be from 1 to the 9 rounds"),
        ({"first_rounds": 10}, "first_rounds must be from 1 to the 9 rounds"),
        ({"reduction": 1}, "reduction must be >= 2, got 1"),
        ({"sampler": "grid"}, "no sampler 'grid'"),
    ],
)
def test_a_search_that_cannot_be_is_refused(changes: dict[str, object], words: str) -> None:
    usual: dict[str, object] = {"ranges": RANGES, "rounds": 9}
    with pytest.raises(ConfigError, match=words):
        Halving(**usual | changes)  # type: ignore[arg-type]
