"""Recorded windows: the file's rules, and a plain reading of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florilegium.errors import InputError
from simulation.fleet.availability import Trace
from simulation.fleet.recorded import Recorded, read_recorded

HEADER = "device,start_seconds,end_seconds\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_windows_are_read_by_device_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "b,50,60\na,10,20\n\nb,0,5.5\nb,55,70\nb,70,71\n")
    recorded = read_recorded(path)
    assert list(recorded) == ["b", "a"]
    # 50–60, 55–70 and 70–71 overlap or touch: one window.
    assert recorded["b"] == Recorded(starts=(0.0, 50.0), ends=(5.5, 71.0))
    assert recorded["a"] == Recorded(starts=(10.0,), ends=(20.0,))


@pytest.mark.parametrize(
    ("lines", "line", "rule"),
    [
        ("device,start,end\n", 1, "the first line must be device,start_seconds,end_seconds"),
        ("", 1, "the first line must be device,start_seconds,end_seconds"),
        (HEADER + "a,0,1\na,1\n", 3, "there must be 3 fields, got 2"),
        (HEADER + "a,0,1,\n", 2, "there must be 3 fields, got 4"),
        (HEADER + " ,0,1\n", 2, "device must not be empty"),
        (HEADER + "a,0,1\nb,2,2\n", 3, "end_seconds must be > start_seconds = 2, got 2"),
        (HEADER + "a,-1,2\n", 2, "start_seconds must be a finite number >= 0, got '-1'"),
        (HEADER + "a,0,inf\n", 2, "end_seconds must be a finite number >= 0, got 'inf'"),
        (HEADER + "a,0,nan\n", 2, "end_seconds must be a finite number >= 0, got 'nan'"),
        (HEADER + "a,noon,2\n", 2, "start_seconds must be a finite number >= 0, got 'noon'"),
        (HEADER + 'a,0,"1\n', 2, "not CSV"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_rule(tmp_path: Path, lines: str, line: int, rule: str) -> None:
    with pytest.raises(InputError) as caught:
        read_recorded(write(tmp_path, lines))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'trace.csv'}, line {line}: {rule}")
    assert "\n" not in message


def test_a_file_that_holds_nothing_or_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trace\.csv has no window"):
        read_recorded(write(tmp_path, HEADER))
    with pytest.raises(InputError, match=r"absent\.csv cannot be read"):
        read_recorded(tmp_path / "absent.csv")
    (tmp_path / "trace.csv").write_bytes(HEADER.encode() + b"\xff,0,1\n")
    with pytest.raises(InputError, match=r"trace\.csv cannot be read"):
        read_recorded(tmp_path / "trace.csv")


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))),
    st.integers(0, 90),
)
def test_a_device_is_online_when_one_of_its_lines_says_so(windows: list[tuple[int, int]], moment: int) -> None:
    trace = Trace(source=Recorded.of(windows))
    assert trace.is_online(moment) == any(first <= moment < last for first, last in windows)
    online = {second for first, last in windows for second in range(first, last)}
    seconds = [second for first, last in trace.intervals(0, 100) for second in range(int(first), int(last))]
    assert seconds == sorted(online)
