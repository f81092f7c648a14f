"""Weights by values, and the contract that all of them keep."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from florilegium.errors import ConfigError, InputError
from strategies.staleness import STALENESS_WEIGHTS, Constant, Hinge, Polynomial, staleness_weight


@pytest.mark.parametrize("name", STALENESS_WEIGHTS)
def test_a_fresh_update_counts_whole_and_no_staler_one_counts_more(name: str) -> None:
    weights = [STALENESS_WEIGHTS[name]()(staleness) for staleness in range(50)]
    assert weights[0] == 1.0
    assert all(0 < later <= earlier for earlier, later in pairwise(weights))


@pytest.mark.parametrize("name", STALENESS_WEIGHTS)
def test_a_negative_staleness_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="staleness must be >= 0, got -1"):
        STALENESS_WEIGHTS[name]()(-1)


def test_constant_is_one() -> None:
    assert [Constant()(staleness) for staleness in (0, 1, 1000)] == [1.0, 1.0, 1.0]


def test_polynomial_is_one_over_the_root_by_default() -> None:
    # 1/√1, 1/√2, 1/√4, 1/√9, 1/√100
    expected = [1.0, 0.7071067811865476, 0.5, 1 / 3, 0.1]
    assert [Polynomial()(staleness) for staleness in (0, 1, 3, 8, 99)] == pytest.approx(expected)
    assert Polynomial(exponent=2.0)(4) == pytest.approx(1 / 25)
    assert Polynomial(exponent=0.0)(7) == 1.0


def test_hinge_forgives_and_then_falls() -> None:
    # slope 10, grace 4: at 5, 1 / (1 + 10 · 1); at 9, 1 / (1 + 10 · 5).
    hinge = Hinge(slope=10.0, grace=4)
    assert [hinge(staleness) for staleness in (0, 4, 5, 9)] == pytest.approx([1.0, 1.0, 1 / 11, 1 / 51])
    assert Hinge(slope=1.0, grace=0)(1) == 0.5


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (Polynomial, "exponent", -0.5),
        (Polynomial, "exponent", math.inf),
        (Hinge, "slope", math.nan),
        (Hinge, "grace", -1),
    ],
)
def test_a_setting_out_of_its_range_is_refused(kind: type, setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{setting} must be finite and >= 0, got {value}"):
        kind(**{setting: value})


def test_a_weight_is_made_by_its_name_and_options() -> None:
    assert staleness_weight("hinge", {"slope": 2.0, "grace": 3}) == Hinge(slope=2.0, grace=3)
    assert staleness_weight("polynomial") == Polynomial()


@pytest.mark.parametrize("options", [{"slope": 1.0}, {"exponent": 1.0, "grace": 2}])
def test_an_option_that_a_weight_has_not_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"polynomial: unknown key '(slope|grace)'; known keys: exponent"):
        staleness_weight("polynomial", options)
