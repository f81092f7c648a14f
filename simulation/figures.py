"""Figures as inline SVG, drawn by matplotlib and coloured by the page's CSS.

Colours are CSS variables of `report.css`: matplotlib is given their light values, which are replaced by the variables'
names in its output, so that a figure follows the reader's theme.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "COLOURED_PARTS",
    "Point",
    "Series",
    "Whisker",
    "costs",
    "curves",
    "shares",
    "slopes",
    "user_bars",
    "whiskers",
]

_COLOURS: Final = {
    "ink": "#1d2430", "quiet": "#667085", "rule": "#e4e2da", "card": "#ffffff", "accent": "#1f6f8b",
    "other": "#c9ccd1", "gain": "#2a7f62", "loss": "#b4483b", "open": "#9a7b1e",
    "p1": "#d98e3f", "p2": "#6a9a4b", "p3": "#b4596f", "p4": "#6d6aa8", "p5": "#a3835c", "p6": "#4fa3a5",
    "p7": "#a9adb5",
}  # fmt: skip
_PARTS: Final = ("accent", "p1", "p2", "p3", "p4", "p5", "p6", "p7")
COLOURED_PARTS: Final = len(_PARTS)
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "florilegium",  # equal figures are equal files
    "text.parse_math": False,
    "font.size": 9,
    "text.color": _COLOURS["ink"],
    "axes.edgecolor": _COLOURS["rule"],
    "axes.labelcolor": _COLOURS["quiet"],
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _COLOURS["rule"],
    "xtick.color": _COLOURS["quiet"],
    "ytick.color": _COLOURS["quiet"],
    "ytick.labelcolor": _COLOURS["ink"],
}
_SVG: Final = re.compile(r'<svg[^>]*(viewBox="[^"]*")[^>]*>(.*</svg>)', re.DOTALL)
_WIDTH_INCHES: Final = 10.0
_PANELS_A_ROW: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """A mean with its interval, and the mean of the worst-off where it is known.

    Attributes:
        mean: over users.
        low: lower end of the interval.
        high: upper end.
        worst: mean over the worst-off users.
        stands_out: whether it is drawn in another colour.
    """

    mean: float
    low: float
    high: float
    worst: float | None = None
    stands_out: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """A curve: x and y values, and the interval of each y."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True, slots=True)
class Point:
    """A mean with its interval, against what it cost."""

    cost: float
    mean: float
    low: float
    high: float


def whiskers(rows: Mapping[str, Whisker], *, title: str, reference: float | None) -> str:
    """Draw one row per name: dot, interval, hollow dot for the worst-off; `reference` is a dashed line."""
    with _drawing(_WIDTH_INCHES / 2, 0.6 + 0.3 * len(rows)) as figure:
        axes = figure.subplots()
        for place, row in enumerate(rows.values()):
            colour = _COLOURS["open" if row.stands_out else "accent"]
            axes.hlines(place, row.low, row.high, color=colour, alpha=0.45, linewidth=4)
            axes.plot(row.mean, place, "o", color=colour)
            if row.worst is not None:
                axes.plot(row.worst, place, "o", markerfacecolor=_COLOURS["card"], markeredgecolor=colour)
            axes.annotate(f"{row.mean:.3f}", (1, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        if reference is not None:
            axes.axvline(reference, color=_COLOURS["quiet"], linestyle="--", linewidth=1)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.set_title(title)
        axes.grid(visible=False, axis="y")
        return _svg(figure, title)


def curves(series: Mapping[str, Series], *, title: str, x_label: str) -> str:
    """Draw one panel per name: its curve with its band, the others in the background."""
    with _panels(len(series)) as (figure, panels):
        for axes, (name, own) in zip(panels, series.items(), strict=True):
            for other in series.values():
                axes.plot(other.x, other.y, color=_COLOURS["other"], linewidth=0.8)
            axes.fill_between(own.x, own.low, own.high, color=_COLOURS["accent"], alpha=0.18, linewidth=0)
            axes.plot(own.x, own.y, "o-", color=_COLOURS["accent"], markersize=3)
            axes.set_title(name)
            axes.set_xlabel(x_label)
        return _svg(figure, title)


def user_bars(differences: Mapping[str, Sequence[float]], *, title: str) -> str:
    """Draw one panel per name: one bar per user from zero, in the order given, losses in another colour."""
    with _panels(len(differences)) as (figure, panels):
        for axes, (name, values) in zip(panels, differences.items(), strict=True):
            colours = [_COLOURS["gain" if value > 0 else "loss" if value < 0 else "quiet"] for value in values]
            axes.bar(range(len(values)), values, color=colours)
            axes.axhline(0, color=_COLOURS["quiet"], linewidth=1)
            axes.set_title(name)
            axes.set_xticks([])
            worse = sum(value < 0 for value in values)
            axes.set_xlabel(f"{worse} of {len(values)} worse off")
        return _svg(figure, title)


def slopes(pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, left: str, title: str) -> str:
    """Draw one panel per name: one line per user from a value under `left` to that under the name."""
    with _panels(len(pairs)) as (figure, panels):
        for axes, (name, (before, after)) in zip(panels, pairs.items(), strict=True):
            for one, other in sorted(zip(before, after, strict=True), key=lambda ends: ends[1] < ends[0]):
                colour = _COLOURS["gain" if other > one else "loss" if other < one else "quiet"]
                axes.plot((0, 1), (one, other), "o-", color=colour, alpha=0.6, linewidth=1, markersize=2.5)
            axes.set_title(name)
            axes.set_xticks((0, 1), (left, name))
            axes.set_xlim(-0.2, 1.2)
            axes.grid(visible=False, axis="x")
        return _svg(figure, title)


def costs(points: Mapping[str, Point], *, title: str, x_label: str) -> str:
    """Draw scores against costs; 0 is drawn at the left end of a logarithmic axis."""
    with _drawing(_WIDTH_INCHES, 3.4) as figure:
        axes = figure.subplots()
        axes.set_xscale("symlog", linthresh=min((each.cost for each in points.values() if each.cost), default=1.0))
        for name, point in points.items():
            axes.vlines(point.cost, point.low, point.high, color=_COLOURS["accent"], alpha=0.45, linewidth=3)
            axes.plot(point.cost, point.mean, "o", color=_COLOURS["accent"])
            axes.annotate(name, (point.cost, point.mean), xytext=(6, 4), textcoords="offset points", fontsize=8)
        axes.set_xlabel(x_label)
        axes.margins(x=0.1)
        axes.set_title(title)
        return _svg(figure, title)


def shares(rows: Mapping[str, Mapping[str, int]], order: Sequence[str], *, title: str) -> str:
    """Draw counts as parts of one full-width bar per name, in the order and colours of `order`."""
    with _drawing(_WIDTH_INCHES, 0.9 + 0.28 * len(rows)) as figure:
        axes = figure.subplots()
        totals = [sum(counts.values()) or 1 for counts in rows.values()]
        start = [0.0] * len(rows)
        for colour, kind in zip(_PARTS, order, strict=False):
            parts = [100 * counts.get(kind, 0) / total for counts, total in zip(rows.values(), totals, strict=True)]
            axes.barh(range(len(rows)), parts, left=start, color=_COLOURS[colour], label=kind, height=0.7)
            start = [left + part for left, part in zip(start, parts, strict=True)]
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of dialogues")
        axes.grid(visible=False)
        figure.legend(loc="outside upper left", ncols=len(order), frameon=False, handlelength=1, columnspacing=1)
        return _svg(figure, title)


@contextmanager
def _drawing(width: float, height: float) -> Iterator[Figure]:
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


@contextmanager
def _panels(count: int) -> Iterator[tuple[Figure, list[Axes]]]:
    rows = math.ceil(count / _PANELS_A_ROW)
    with _drawing(_WIDTH_INCHES, 1.9 * rows) as figure:
        grid = list(figure.subplots(rows, _PANELS_A_ROW, sharey=True, squeeze=False).flat)
        for spare in grid[count:]:
            spare.set_visible(False)
        yield figure, grid[:count]


def _svg(figure: Figure, title: str) -> str:
    """Return the figure as an `<svg>` element as wide as its place, with a name for those who cannot see it."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    view, inside = _SVG.search(text.getvalue()).groups()  # type: ignore[union-attr]
    for name, value in _COLOURS.items():
        inside = inside.replace(value, f"var(--{name})")
    name = escape(title)
    return f'<svg class="figure" role="img" aria-label="{name}" {view}><title>{name}</title>{inside}'
