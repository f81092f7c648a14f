"""Values that move with the rounds."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florilegium.errors import ConfigError, InputError
from server.hyperparameters.schedule import Schedule
from strategies.hyperparameters import HYPERPARAMETERS, require_values

Curve = Literal["linear", "cosine", "step"]
CURVES: tuple[Curve, ...] = ("linear", "cosine", "step")


def values(schedule: Schedule, name: str, rounds: int) -> list[float]:
    return [schedule.draw({}, server_round=number, device=0, seed=0)[name] for number in range(1, rounds + 1)]


def rate(curve: Curve, first: float, last: float, rounds: int, every: int = 1) -> list[float]:
    schedule = Schedule(
        first={"learning_rate": first}, last={"learning_rate": last}, curve=curve, rounds=rounds, every=every
    )
    return values(schedule, "learning_rate", rounds + 3)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(HYPERPARAMETERS)),
    st.sampled_from(CURVES),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(2, 12),
    st.data(),
)
def test_values_go_from_first_to_last_never_back_and_stay_there(
    name: str, curve: Curve, from_share: float, to_share: float, rounds: int, data: st.DataObject
) -> None:
    known = HYPERPARAMETERS[name]
    first, last = (known.rounded(known.between(known.lower, known.upper, share)) for share in (from_share, to_share))
    every = data.draw(st.integers(1, rounds - 1))
    schedule = Schedule(first={name: first}, last={name: last}, curve=curve, rounds=rounds, every=every)
    found = values(schedule, name, rounds + 3)
    for value in found:
        require_values({name: value})
    assert found[0] == pytest.approx(first, rel=1e-12)
    assert found[rounds - 1 :] == pytest.approx([last] * 4, rel=1e-12)
    assert found == pytest.approx(sorted(found, reverse=last < first), rel=1e-12), "the way is straight"


def test_linear_by_hand() -> None:
    # Four equal parts from 0.1 down to 0.02, 0.02 each.
    assert rate("linear", 0.1, 0.02, 5) == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02, 0.02, 0.02, 0.02])


def test_cosine_by_hand() -> None:
    # ½ (1 + cos πt) at t = 0, ¼, ½, ¾, 1 is 1, (2 + √2)/4, ½, (2 − √2)/4, 0.
    high, low = (2 + math.sqrt(2)) / 4, (2 - math.sqrt(2)) / 4
    expected = [0.1 * share + 0.02 * (1 - share) for share in (1, high, 0.5, low, 0)]
    assert rate("cosine", 0.1, 0.02, 5)[:5] == pytest.approx(expected)


def test_steps_of_a_learning_rate_divide_it_by_the_same_factor() -> None:
    # Nine rounds in threes: three levels, two factors of ten.
    assert rate("step", 1e-2, 1e-4, 9, every=3) == pytest.approx([1e-2] * 3 + [1e-3] * 3 + [1e-4] * 6)
    # Eight rounds in threes: the last level is cut short.
    assert rate("step", 1e-2, 1e-4, 8, every=3) == pytest.approx([1e-2] * 3 + [1e-3] * 3 + [1e-4] * 5)


def test_steps_of_a_share_subtract_the_same_amount() -> None:
    schedule = Schedule(first={"dropout": 0.4}, last={"dropout": 0.0}, curve="step", rounds=6, every=2)
    assert values(schedule, "dropout", 6) == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.0, 0.0])


@pytest.mark.parametrize("curve", CURVES)
def test_what_has_no_last_value_is_constant(curve: Curve) -> None:
    schedule = Schedule(first={"steps": 5, "learning_rate": 1e-2}, last={"learning_rate": 1e-3}, curve=curve, rounds=4)
    assert values(schedule, "steps", 6) == [5.0] * 6
    assert len(set(values(schedule, "learning_rate", 4))) == 4


def test_whole_numbers_stay_whole() -> None:
    schedule = Schedule(first={"steps": 1}, last={"steps": 8}, curve="linear", rounds=4)
    assert values(schedule, "steps", 4) == [1, 3, 6, 8]  # 1, 3⅓, 5⅔, 8


def test_there_is_no_round_before_the_first() -> None:
    with pytest.raises(InputError, match="no round 0"):
        Schedule(first={"steps": 1}).draw({}, server_round=0, device=0, seed=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"first": {"stps": 1}}, "did you mean 'steps'"),
        ({"last": {"steps": 1.5}}, "steps must be a whole number"),
        ({"last": {"dropout": 0.1}}, "dropout has a last value and no first"),
        ({"curve": "sine"}, "no curve 'sine'"),
        ({"rounds": 1}, "rounds must be >= 2, got 1"),
        ({"every": 0}, "every must be from 1 to 4, got 0"),
        ({"every": 5}, "every must be from 1 to 4, got 5"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(changes: dict[str, object], words: str) -> None:
    usual: dict[str, object] = {"first": {"steps": 8}, "last": {"steps": 2}, "rounds": 5}
    with pytest.raises(ConfigError, match=words):
        Schedule(**usual | changes)  # type: ignore[arg-type]
