"""Laws of what a device makes of what it is asked."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.bounds import LocalBounds, clamp, require_proportion
from florilegium.errors import ConfigError, InputError
from privacy.egress import ErrorCode, code_of
from server.config import CoordinationConfig
from strategies.hyperparameters import HYPERPARAMETERS

NAMES = st.sampled_from(sorted(HYPERPARAMETERS))
ANYTHING = st.one_of(st.floats(0, 20), st.floats(allow_nan=False, allow_infinity=False), st.integers())


@st.composite
def ranges(draw: st.DrawFn, name: str) -> tuple[float, float]:
    limits = HYPERPARAMETERS[name]
    values = (
        st.integers(int(limits.lower), int(limits.upper))
        if limits.kind == "int"
        else st.floats(limits.lower, limits.upper)
    )
    one, other = draw(values), draw(values)
    return min(one, other), max(one, other)


@st.composite
def bounds(draw: st.DrawFn) -> LocalBounds:
    return LocalBounds.parse({name: draw(ranges(name)) for name in HYPERPARAMETERS})


def test_a_device_has_bounds_for_all_that_it_can_be_asked() -> None:
    assert list(LocalBounds.model_fields) == list(HYPERPARAMETERS)


@settings(max_examples=50, deadline=None)
@given(bounds(), st.dictionaries(NAMES, ANYTHING))
def test_what_is_done_is_within_bounds_and_the_middle_of_lower_asked_and_upper(
    own: LocalBounds, asked: dict[str, float]
) -> None:
    done = clamp(asked, own)
    assert list(done) == list(asked)
    for name, value in done.items():
        lower, upper = own.of(name)
        assert lower <= value <= upper
        assert type(value) is float, "what travels on is a plain float"
        naive = sorted([lower, asked[name], upper])[1]
        assert value == (round(naive) if HYPERPARAMETERS[name].kind == "int" else naive)


@settings(max_examples=30, deadline=None)
@given(bounds(), st.dictionaries(NAMES, ANYTHING))
def test_what_is_done_may_be_asked_again(own: LocalBounds, asked: dict[str, float]) -> None:
    done = clamp(asked, own)
    assert clamp(done, own) == done


@settings(max_examples=50, deadline=None)
@given(bounds(), NAMES, ANYTHING, ANYTHING)
def test_who_asks_for_more_gets_no_less(own: LocalBounds, name: str, one: float, other: float) -> None:
    less, more = sorted([one, other])
    assert clamp({name: less}, own)[name] <= clamp({name: more}, own)[name]


def test_the_usual_bounds_let_pass_what_a_server_asks_by_default() -> None:
    config = CoordinationConfig()
    asked = {"steps": config.local_steps, "learning_rate": config.learning_rate, "batch_size": config.batch_size}
    assert clamp(asked, LocalBounds()) == asked
    defaults = {name: known.default for name, known in HYPERPARAMETERS.items()}
    assert clamp(defaults, LocalBounds()) == defaults


def test_a_greedy_server_gets_what_the_device_is_willing_to_do() -> None:
    asked = {"steps": 1e30, "learning_rate": -5.0, "batch_size": 10**400, "dropout": 2.0}
    assert clamp(asked, LocalBounds()) == {"steps": 256, "learning_rate": 1e-6, "batch_size": 64, "dropout": 0.5}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "8", None, [8.0]])
def test_what_is_no_finite_number_is_refused(value: object) -> None:
    for name in HYPERPARAMETERS:
        with pytest.raises(InputError, match=f"the {name} asked for is no finite number") as caught:
            clamp({name: cast(float, value)}, LocalBounds())
        assert code_of(caught.value) is ErrorCode.BAD_REQUEST


def test_an_unknown_name_is_refused_and_not_repeated() -> None:
    asked = {"steps": 8.0, "the user said hello": 1.0, "epochs": 2.0}
    with pytest.raises(InputError, match="2 of the hyperparameters asked for are unknown; known: steps, ") as caught:
        clamp(asked, LocalBounds())
    assert "hello" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"steps": [9, 3]}, r"steps = \[9, 3\] is refused: must be two numbers from 1 to 10000, the lower one first"),
        ({"steps": [0, 3]}, "steps = .* from 1 to 10000"),
        ({"batch_size": [1, 10**6]}, "batch_size = .* from 1 to 1024"),
        ({"learning_rate": [math.nan, 0.1]}, "learning_rate = .* is refused"),
        ({"learning_rate": [1e-3, math.inf]}, "learning_rate = .* is refused"),
        ({"rank": [1.5, 8]}, "rank.* is refused"),
        ({"dropout": [0.1]}, r"dropout\.1 is missing"),
        ({"learning_rat": [1e-3, 1e-2]}, "unknown key 'learning_rat'; did you mean 'learning_rate'"),
    ],
)
def test_bounds_that_cannot_be_are_refused(setting: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LocalBounds.parse(setting)


def test_a_reply_out_of_proportion_to_the_adapter_is_refused() -> None:
    adapter = {"A": torch.zeros(2, 5), "B": torch.zeros(5, 2)}
    require_proportion(64 * 80, adapter)
    with pytest.raises(InputError, match="would have 5124 bytes, at most 5120 may leave") as caught:
        require_proportion(64 * 80 + 4, adapter)
    assert code_of(caught.value) is ErrorCode.BAD_REQUEST


def test_whole_numbers_are_rounded_within_their_bounds() -> None:
    own = LocalBounds.parse({"steps": [2, 9]})
    asked = [1.4, 2.4, 2.6, 8.6, 9.4]
    assert [clamp({"steps": value}, own)["steps"] for value in asked] == [2, 2, 3, 9, 9]
    assert clamp({"dropout": 0.26}, own) == {"dropout": 0.26}


def test_bounds_of_one_value_leave_no_choice() -> None:
    own = LocalBounds.parse({"steps": [4, 4], "learning_rate": [1e-3, 1e-3]})
    assert clamp({"steps": 100, "learning_rate": 0.0}, own) == {"steps": 4, "learning_rate": 1e-3}
