"""Figures are well-formed, follow the page's theme, and show what they are given."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from simulation.figures import COLOURED_PARTS, Series, Whisker, curves, shares, user_bars, whiskers

WHISKER = Whisker(mean=0.5, low=0.4, high=0.6, worst=0.1)
SERIES = Series([0, 10], [0.0, 1.0], [0.0, 0.5], [0.0, 1.5])
NAMES = ("plain", "a < b & c", "5 $ and 6 $", "")

Draw = Callable[[str], str]
FIGURES = pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda name: whiskers({name: WHISKER}, title=name, reference=0.2), id="whiskers"),
        pytest.param(lambda name: curves({name: SERIES, "b": SERIES}, title=name, x_label="turns"), id="curves"),
        pytest.param(lambda name: user_bars({name: [-0.1, 0.0, 0.2]}, title=name), id="user_bars"),
        pytest.param(lambda name: shares({name: {"x": 1}}, ["x"], title=name), id="shares"),
    ],
)


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("xlink:href", "href"))


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in parse(svg).iter("text")]


@FIGURES
@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_well_formed_and_has_a_name(draw: Draw, name: str) -> None:
    root = parse(draw(name))
    assert root.get("aria-label") == root.findtext("title") == name
    assert name in texts(draw(name)) or not name


@FIGURES
def test_equal_figures_are_equal_files(draw: Draw) -> None:
    assert draw("plain") == draw("plain")


@FIGURES
def test_every_colour_is_the_page_s(draw: Draw) -> None:
    assert not re.search(r"(fill|stroke): *#(?!0{6}|f{6})", draw("plain"))
    assert "var(--" in draw("plain")


def test_whiskers_write_their_means() -> None:
    found = texts(whiskers({"a": WHISKER, "b": Whisker(mean=-0.25, low=-1, high=0)}, title="t", reference=None))
    assert "0.500" in found
    assert "-0.250" in found or "−0.250" in found


def test_losses_have_a_colour_of_their_own_and_are_counted() -> None:
    svg = user_bars({"a": [-0.2, -0.1, 0.0, 0.3]}, title="t")
    assert svg.count("fill: var(--loss)") == 2
    assert svg.count("fill: var(--gain)") == 1
    assert "2 of 4 worse off" in texts(svg)


def test_many_panels_take_several_rows() -> None:
    svg = curves({f"arm {number}": SERIES for number in range(9)}, title="t", x_label="turns")
    assert [name for name in texts(svg) if name.startswith("arm")] == [f"arm {number}" for number in range(9)]


def test_shares_name_their_parts_in_order() -> None:
    order = [f"kind{index}" for index in range(COLOURED_PARTS)]
    found = texts(shares({"a": dict.fromkeys(order, 1), "b": {}}, order, title="t"))
    assert [name for name in found if name.startswith("kind")] == order
