"""Figures as inline SVG: fluid in width (coordinates in percent), coloured by the page's CSS, no script.

A mark's exact numbers are its `<title>`, which browsers show on hovering and screen readers read aloud.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

__all__ = ["Range", "Series", "axis_row", "bars", "curve", "labels", "shares", "whisker"]

_CURVE_HEIGHT: Final = 132
_BAR_HEIGHT: Final = 110
_ROW_HEIGHT: Final = 26
_MARGIN: Final = 0.06


@dataclass(frozen=True, slots=True)
class Range:
    """The stretch of values that an axis shows."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float]) -> Range:
        """Return the range of `values` with a little room on both sides."""
        low, high = min(values), max(values)
        room = (high - low or abs(high) or 1.0) * _MARGIN
        return cls(low - room, high + room)

    def percent(self, value: float) -> float:
        """Return where a value lies, from 0 (low) to 100 (high), held within the figure."""
        return min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low)))

    def ticks(self, wanted: int = 4) -> list[float]:
        """Return about `wanted` round values inside the range.

        >>> Range(0.02, 0.51).ticks()
        [0.2, 0.4]
        """
        rough = (self.high - self.low) / wanted
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class Series:
    """A curve: x and y values, and the interval of each y."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def whisker(
    *,
    mean: float,
    low: float,
    high: float,
    axis: Range,
    title: str,
    reference: float | None,
    worst: float | None = None,
) -> str:
    """Draw a mean as a dot, its interval as a bar, and a value for the worst-off as a hollow dot, on one row."""
    parts = [_vertical(axis.percent(tick), "grid") for tick in axis.ticks()]
    if reference is not None:
        parts.append(_vertical(axis.percent(reference), "reference"))
    parts.append(f'<line class="interval" x1="{_p(axis, low)}" x2="{_p(axis, high)}" y1="50%" y2="50%"/>')
    if worst is not None:
        parts.append(f'<circle class="worst" cx="{_p(axis, worst)}" cy="50%" r="3.5"/>')
    parts.append(f'<circle class="dot" cx="{_p(axis, mean)}" cy="50%" r="5"/>')
    return _svg(parts, _ROW_HEIGHT, title, "whisker")


def axis_row(axis: Range) -> str:
    """Draw the numbers of an axis that rows of `whisker` share."""
    ticks = [f'<text x="{_p(axis, tick)}" y="12" text-anchor="middle">{_short(tick)}</text>' for tick in axis.ticks()]
    return _svg(ticks, 16, "axis", "axis")


def curve(series: Series, others: Sequence[Series], *, y: Range, title: str) -> str:
    """Draw one series with its band over the others in the background."""
    x = Range(min(series.x), max(series.x) or 1.0)
    inner = [f'<polyline class="other" points="{_points(each.x, each.y, x, y)}"/>' for each in others]
    band = f"{_points(series.x, series.high, x, y)} {_points(series.x[::-1], series.low[::-1], x, y)}"
    inner += [f'<polygon class="band" points="{band}"/>']
    inner += [f'<polyline class="line" points="{_points(series.x, series.y, x, y)}"/>']
    stretched = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" overflow="visible">{"".join(inner)}</svg>'
    grid = [_horizontal(100 - y.percent(tick), "grid") for tick in y.ticks(3)]
    dots = [
        f'<circle class="dot" cx="{_p(x, a)}" cy="{100 - y.percent(b):.2f}%" r="3"/>'
        for a, b in zip(series.x, series.y, strict=True)
    ]
    return _svg([*grid, stretched, *dots], _CURVE_HEIGHT, title, "curve")


def bars(values: Sequence[float], *, y: Range, higher_is_better: bool, title: str) -> str:
    """Draw one bar per user from zero, in the order given; losses in another colour."""
    zero, width = 100 - y.percent(0.0), 100 / len(values)
    parts = []
    for index, value in enumerate(values):
        end = 100 - y.percent(value)
        tone = "same" if value == 0 else "gain" if (value > 0) == higher_is_better else "loss"
        # An exact zero (the gate kept the base model) still shows, as a thin mark on the line.
        height = max(abs(end - zero), 1.0)
        parts.append(
            f'<rect class="{tone}" x="{(index + 0.12) * width:.2f}%" width="{0.76 * width:.2f}%" '
            f'y="{min(end, zero):.2f}%" height="{height:.2f}%"/>'
        )
    grid = [_horizontal(100 - y.percent(tick), "grid") for tick in y.ticks(3)]
    return _svg([*grid, *parts, _horizontal(zero, "reference")], _BAR_HEIGHT, title, "bars")


def shares(counts: Mapping[str, int], order: Sequence[str], *, title: str) -> str:
    """Draw counts as parts of one full-width bar; part k of `order` has the class `part-k`."""
    total, start, parts = sum(counts.values()) or 1, 0.0, []
    for index, name in enumerate(order):
        width = 100 * counts.get(name, 0) / total
        if width:
            label = f"{name}: {counts[name]} ({width:.0f} %)"
            parts.append(
                f'<rect class="part-{index}" x="{start:.2f}%" width="{width:.2f}%" height="100%">'
                f"<title>{escape(label)}</title></rect>"
            )
        start += width
    return _svg(parts, 20, title, "shares")


def labels(y: Range, height: int = _CURVE_HEIGHT) -> str:
    """Draw the numbers of a vertical axis, for the column left of a figure."""
    texts = [
        f'<text x="100%" dx="-5" y="{100 - y.percent(tick):.2f}%" dy="3.5" text-anchor="end">{_short(tick)}</text>'
        for tick in y.ticks(3)
    ]
    return _svg(texts, height, "axis", "labels")


def _svg(parts: Sequence[str], height: int, title: str, kind: str) -> str:
    name = escape(title)
    return (
        f'<svg class="{kind}" width="100%" height="{height}" role="img" aria-label="{name}">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )


def _p(axis: Range, value: float) -> str:
    return f"{axis.percent(value):.2f}%"


def _points(xs: Sequence[float], ys: Sequence[float], x: Range, y: Range) -> str:
    return " ".join(f"{x.percent(a):.2f},{100 - y.percent(b):.2f}" for a, b in zip(xs, ys, strict=True))


def _vertical(percent: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{percent:.2f}%" x2="{percent:.2f}%" y1="0" y2="100%"/>'


def _horizontal(percent: float, kind: str) -> str:
    return f'<line class="{kind}" y1="{percent:.2f}%" y2="{percent:.2f}%" x1="0" x2="100%"/>'


def _short(value: float) -> str:
    return f"{value:g}".replace("-", "−")
