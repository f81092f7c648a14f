"""Recorded availability: real devices' windows, read from a CSV file.

    device,start_seconds,end_seconds
    a17,0,5400

One window a line, in any order; a device may have many, and windows of one device may overlap. Seconds count from the
start of the simulation. After its last window a device stays offline: a recording is not repeated.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from florilegium.errors import InputError
from simulation.fleet.availability import Interval

__all__ = ["Recorded", "read_recorded"]

_HEADER: Final = ["device", "start_seconds", "end_seconds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One device's recorded windows, disjoint and sorted.

    Attributes:
        starts: their beginnings, seconds.
        ends: their ends.
    """

    starts: tuple[float, ...]
    ends: tuple[float, ...]

    @classmethod
    def of(cls, windows: Iterable[Interval]) -> Self:
        """Sort windows and unite those that overlap or touch."""
        starts: list[float] = []
        ends: list[float] = []
        for first, last in sorted(windows):
            if ends and first <= ends[-1]:
                ends[-1] = max(ends[-1], last)
            else:
                starts.append(first)
                ends.append(last)
        return cls(starts=tuple(starts), ends=tuple(ends))

    def windows(self, start: float, end: float) -> Iterator[Interval]:
        """Yield the windows from the first that ends after `start` to the last that begins by `end`."""
        for position in range(bisect_right(self.ends, start), len(self.starts)):
            if self.starts[position] > end:
                return
            yield self.starts[position], self.ends[position]


def read_recorded(path: Path) -> dict[str, Recorded]:
    """Read a file of windows.

    Returns:
        For each device, in order of first appearance, its windows.

    Raises:
        InputError: the file cannot be read, or a line breaks a rule; the message names file, line and rule.
    """
    windows: defaultdict[str, list[Interval]] = defaultdict(list)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file, strict=True)
            _require(next(lines, None) == _HEADER, path, 1, f"the first line must be {','.join(_HEADER)}")
            for fields in lines:
                if fields:
                    device, window = _parse(fields, path, lines.line_num)
                    windows[device].append(window)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", "name a readable CSV file in UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}, line {lines.line_num}: not CSV: {error}", "mend that line") from None
    if not windows:
        raise InputError(f"{path} has no window", "give at least one line after the header")
    return {device: Recorded.of(each) for device, each in windows.items()}


def _parse(fields: list[str], path: Path, line: int) -> tuple[str, Interval]:
    _require(len(fields) == len(_HEADER), path, line, f"there must be {len(_HEADER)} fields, got {len(fields)}")
    device = fields[0].strip()
    _require(bool(device), path, line, "device must not be empty")
    first, last = (_seconds(fields[position], _HEADER[position], path, line) for position in (1, 2))
    _require(first < last, path, line, f"end_seconds must be > start_seconds = {first:g}, got {last:g}")
    return device, (first, last)


def _seconds(text: str, name: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    _require(0 <= value < math.inf, path, line, f"{name} must be a finite number >= 0, got {text!r}")
    return value


def _require(holds: bool, path: Path, line: int, rule: str) -> None:
    if not holds:
        raise InputError(f"{path}, line {line}: {rule}", "mend that line")
