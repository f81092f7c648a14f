"""What may be asked of local training, and what is said of it."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.adapters import AdapterConfig
from client.finetuning import FineTuneConfig
from client.settings import DeviceSettings
from florilegium.errors import ConfigError
from privacy.egress import Declared, check_out
from server.config import CoordinationConfig
from strategies.hyperparameters import (
    HYPERPARAMETERS,
    IMPROVEMENT,
    IMPROVEMENT_BOUNDS,
    Hyperparameter,
    hyperparameter,
    improvement,
    require_values,
)
from strategies.settings import PlanSettings

LOSSES = st.floats(-100, 100)


def test_what_reads_a_hyperparameter_takes_all_that_its_limits_allow() -> None:
    for limit in ("lower", "upper"):
        value = {name: getattr(known, limit) for name, known in HYPERPARAMETERS.items()}
        FineTuneConfig(
            learning_rate=value["learning_rate"],
            batch_size=int(value["batch_size"]),
            max_steps=int(value["steps"]),
            epochs=int(value["steps"]),
        )
        AdapterConfig(rank=int(value["rank"]), dropout=value["dropout"])
        DeviceSettings.parse({"synthesis_count": int(value["synthesis_count"])})
        PlanSettings.parse({"proximal": value["proximal"]}).plan(seed=0, cohort=1)


def test_the_defaults_are_those_of_the_settings() -> None:
    config = CoordinationConfig()
    assert {name: known.default for name, known in HYPERPARAMETERS.items()} == {
        "steps": config.local_steps,
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size,
        "rank": config.adapter.rank,
        "dropout": config.adapter.dropout,
        "proximal": config.plan.proximal,
        "synthesis_count": DeviceSettings().synthesis_count,
    }


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(HYPERPARAMETERS)), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_what_lies_between_rises_from_one_end_to_the_other(name: str, shares: list[float]) -> None:
    known = HYPERPARAMETERS[name]
    start, end = sorted(known.lower + share * (known.upper - known.lower) for share in shares[:2])
    near, far = (known.between(start, end, share) for share in sorted(shares[2:]))
    assert start <= near <= far * (1 + 1e-12) <= end * (1 + 1e-12)
    assert known.between(start, end, 0.0) == start
    assert known.between(start, end, 1.0) == pytest.approx(end, rel=1e-12)


def test_halfway_is_the_mean_that_fits_the_scale() -> None:
    assert HYPERPARAMETERS["learning_rate"].between(1e-4, 1e-2, 0.5) == pytest.approx(1e-3)
    assert HYPERPARAMETERS["dropout"].between(0.2, 0.6, 0.5) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lower": 2.0, "upper": 1.0}, "lower < upper"),
        ({"upper": math.inf}, "limits must be finite"),
        ({"lower": math.nan}, "limits must be finite"),
        ({"scale": "log", "lower": 0.0}, "a log scale needs limits > 0"),
        ({"default": 11.0}, "default = 11.0"),
        ({"kind": "int", "default": 1.5}, "default = 1.5"),
    ],
)
def test_a_hyperparameter_that_cannot_be_is_refused(changes: dict[str, object], words: str) -> None:
    usual: dict[str, object] = {"kind": "float", "scale": "linear", "lower": 1.0, "upper": 10.0, "default": 2.0}
    with pytest.raises(ConfigError, match=words):
        Hyperparameter(**usual | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rat": 1e-3}, "no hyperparameter 'learning_rat'; did you mean 'learning_rate'"),
        ({"learning_rate": math.nan}, "learning_rate must be a number from 1e-07 to 1, got nan; 0.002 is a good start"),
        ({"steps": 0}, "steps must be a whole number from 1 to 10000, got 0"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"dropout": 1.0}, "dropout must be a number from 0 to 0.9, got 1.0"),
    ],
)
def test_values_that_no_device_could_take_are_refused(values: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        require_values(values)


def test_a_hyperparameter_is_found_by_its_name() -> None:
    assert all(hyperparameter(name) is known for name, known in HYPERPARAMETERS.items())


@settings(max_examples=100, deadline=None)
@given(LOSSES, LOSSES, LOSSES, st.floats(1e-3, 1e3))
def test_an_improvement_is_bounded_lies_on_the_grid_and_follows_the_loss(
    before: float, one: float, other: float, unit: float
) -> None:
    better, worse = sorted([one, other])
    high, low = improvement(before, better, unit=unit), improvement(before, worse, unit=unit)
    assert -1 <= low <= high <= 1
    assert (high * 256).is_integer()
    assert abs(high - min(max((before - better) / unit, -1), 1)) <= 2.0**-9 + 1e-12
    assert improvement(before, before) == 0


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_device_that_broke_says_the_worst_and_one_that_was_mended_the_best(lost: float) -> None:
    assert improvement(2.0, lost) == improvement(lost, lost) == -1
    assert improvement(lost, 2.0) == 1


@pytest.mark.parametrize("unit", [0.0, -1.0, math.nan, math.inf])
def test_a_unit_that_is_none_is_refused(unit: float) -> None:
    with pytest.raises(ConfigError, match="unit must be finite and > 0"):
        improvement(1.0, 1.0, unit=unit)


def test_an_improvement_travels_as_it_is() -> None:
    declared = Declared(tensors={}, metrics={IMPROVEMENT: IMPROVEMENT_BOUNDS})
    for before, after in itertools.product([0.1, 1.0, 3.3], [0.2, 1.7, math.nan]):
        said = {IMPROVEMENT: improvement(before, after)}
        assert check_out({}, said, declared, max_bytes=1)[1] == said


def test_sums_of_improvements_are_exact_in_any_order_even_in_float32() -> None:
    drawn = [improvement(random.Random(seed).random(), random.Random(~seed).random()) for seed in range(5000)]
    total = math.fsum(drawn)
    assert float(torch.tensor(drawn, dtype=torch.float32).cumsum(0)[-1]) == total
    assert float(torch.tensor(sorted(drawn), dtype=torch.float32).cumsum(0)[-1]) == total
