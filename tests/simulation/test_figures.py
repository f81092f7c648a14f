"""Figures are well-formed, and marks lie where their numbers say."""

import itertools
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.figures import Range, Series, bars, curve, shares, whisker


def _parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_ticks_are_round_and_inside(low: float, width: float) -> None:
    axis = Range(low, low + width)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 6
    assert all(low - 1e-9 * width <= tick <= low + width * (1 + 1e-9) for tick in ticks)
    steps = {round((b - a) / width, 9) for a, b in itertools.pairwise(ticks)}
    assert len(steps) <= 1


def test_a_range_holds_its_values_with_room() -> None:
    axis = Range.around([2.0, 4.0])
    assert (axis.percent(2.0), axis.percent(4.0)) == pytest.approx((100 * 0.12 / 2.24, 100 * 2.12 / 2.24))
    assert Range.around([3.0]).percent(3.0) == pytest.approx(50)
    assert Range.around([0.0]).percent(0.0) == pytest.approx(50)


def test_a_whisker_puts_mean_and_interval_where_they_belong() -> None:
    svg = _parse(whisker(mean=5, low=2.5, high=7.5, axis=Range(0, 10), title="a < b", reference=None))
    (interval,) = [line for line in svg.iter("line") if line.get("class") == "interval"]
    (dot,) = [circle for circle in svg.iter("circle") if circle.get("class") == "dot"]
    assert (interval.get("x1"), interval.get("x2"), dot.get("cx")) == ("25.00%", "75.00%", "50.00%")
    assert svg.findtext("title") == "a < b"


def test_bars_go_up_for_gains_and_down_for_losses() -> None:
    svg = _parse(bars([-1.0, 0.0, 2.0], y=Range(-2, 2), higher_is_better=True, title="t"))
    rects = [(rect.get("class"), rect.get("y"), rect.get("height")) for rect in svg.iter("rect")]
    assert rects == [("loss", "50.00%", "25.00%"), ("same", "50.00%", "1.00%"), ("gain", "0.00%", "50.00%")]


def test_a_lower_value_is_a_gain_where_lower_is_better() -> None:
    svg = _parse(bars([-1.0, 1.0], y=Range(-2, 2), higher_is_better=False, title="t"))
    assert [rect.get("class") for rect in svg.iter("rect")] == ["gain", "loss"]


def test_shares_fill_the_bar_in_order() -> None:
    svg = _parse(shares({"b": 1, "a": 3}, ["a", "none", "b"], title="t"))
    rects = [(rect.get("class"), rect.get("x"), rect.get("width")) for rect in svg.iter("rect")]
    assert rects == [("part-0", "0.00%", "75.00%"), ("part-2", "75.00%", "25.00%")]


def test_a_curve_shows_its_band_and_the_others() -> None:
    series = Series([0, 10], [0.0, 1.0], [0.0, 0.5], [0.0, 1.5])
    svg = curve(series, [series, series], y=Range(0, 2), title="t")
    _parse(svg)
    assert svg.count('class="other"') == 2
    (band,) = re.findall(r'class="band" points="([^"]*)"', svg)
    assert band == "0.00,100.00 100.00,25.00 100.00,75.00 0.00,100.00"
