"""The ledger never forgets a charge: not by a crash, a torn write, a full disk, a replay, or a race."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florilegium.errors import ConfigError, InputError, StorageError
from privacy.ledger import Charge, Ledger, PrivacyBudgetError, RoundChargedError

ROOT = Path(__file__).resolve().parents[2]
GAUSSIAN = {"clip_norm": 0.5, "noise_multiplier": 1.2, "delta": 1e-5}


def make_ledger(directory: Path, max_rounds: int = 100) -> Ledger:
    return Ledger(path=directory / "ledger.jsonl", max_rounds=max_rounds)


def rounds_of(ledger: Ledger) -> list[str | None]:
    return [charge.round_id for charge in ledger.charges()]


def test_a_charge_is_in_the_ledger_with_its_numbers(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path, max_rounds=3)
    assert (ledger.charges(), ledger.spent, ledger.remaining) == ((), 0, 3)
    made = ledger.charge("run-7:1", GAUSSIAN)
    assert made == Charge(round_id="run-7:1", mechanism=GAUSSIAN)
    ledger.charge("run-7:2", {})
    reopened = make_ledger(tmp_path, max_rounds=3)
    assert reopened.charges() == (made, Charge(round_id="run-7:2", mechanism={}))
    assert (reopened.spent, reopened.remaining) == (2, 1)


def test_a_line_is_one_json_object(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    ledger.charge("1", GAUSSIAN)
    lines = ledger.path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"round": "1", "mechanism": GAUSSIAN}]


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    ledger.charge("1", {})
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600


def test_over_budget_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path, max_rounds=2)
    ledger.charge("1", {})
    ledger.charge("2", {})
    before = ledger.path.read_bytes()
    for _ in range(2):
        with pytest.raises(PrivacyBudgetError, match="2 of 2 releases are spent"):
            ledger.charge("3", {})
    assert ledger.path.read_bytes() == before
    with pytest.raises(PrivacyBudgetError):
        make_ledger(tmp_path, max_rounds=1).charge("3", {})
    assert make_ledger(tmp_path, max_rounds=1).remaining == 0
    make_ledger(tmp_path, max_rounds=3).charge("3", {})


def test_nothing_may_be_charged_to_an_empty_budget(tmp_path: Path) -> None:
    with pytest.raises(PrivacyBudgetError, match="0 of 0"):
        make_ledger(tmp_path, max_rounds=0).charge("1", {})
    with pytest.raises(ConfigError, match="max_rounds must be >= 0, got -1"):
        make_ledger(tmp_path, max_rounds=-1)


def test_a_replayed_round_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path, max_rounds=2)
    ledger.charge("1", GAUSSIAN)
    ledger.charge("2", GAUSSIAN)
    before = ledger.path.read_bytes()
    for round_id in ("1", "2"):
        with pytest.raises(RoundChargedError, match=f"round '{round_id}' was charged before"):
            make_ledger(tmp_path, max_rounds=2).charge(round_id, {"noise_multiplier": 9.0})
    assert ledger.path.read_bytes() == before


@given(st.lists(st.integers(0, 6), max_size=30), st.integers(0, 5))
def test_the_ledger_is_a_set_of_rounds_that_stops_growing(
    tmp_path_factory: pytest.TempPathFactory, requests: list[int], budget: int
) -> None:
    """Naive reference: a list in memory."""
    ledger = make_ledger(tmp_path_factory.mktemp("ledger"), max_rounds=budget)
    expected: list[str] = []
    for request in requests:
        with suppress(RoundChargedError, PrivacyBudgetError):
            ledger.charge(f"r{request}", {})
        if f"r{request}" not in expected and len(expected) < budget:
            expected.append(f"r{request}")
        assert rounds_of(ledger) == expected


def test_a_cut_at_any_byte_of_the_last_line_lowers_nothing(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path, max_rounds=4)
    ledger.charge("1", GAUSSIAN)
    ledger.charge("2", GAUSSIAN)
    start = len(ledger.path.read_bytes())
    ledger.charge("3", GAUSSIAN)
    whole = ledger.path.read_bytes()
    for cut in range(start, len(whole) + 1):
        ledger.path.write_bytes(whole[:cut])
        assert rounds_of(ledger)[:2] == ["1", "2"], "complete lines are never lost"
        assert ledger.spent == (2 if cut == start else 3), "of a torn line, one byte counts as a charge"
        ledger.charge("4", GAUSSIAN)
        torn = [] if cut == start else ["3"] if cut >= len(whole) - 1 else [None]
        assert rounds_of(ledger) == ["1", "2", *torn, "4"]
        for charge in ledger.charges():
            assert charge.mechanism == ({} if charge.round_id is None else GAUSSIAN)
        if torn:
            with pytest.raises(PrivacyBudgetError):
                ledger.charge("5", GAUSSIAN)


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00" * 40,
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"7",
        b'"x"',
        b"{}",
        b"[" * 5000,
        b'{"round": 3, "mechanism": {}}',
        b'{"round": "x", "mechanism": []}',
        b'{"round": "x", "mechanism": {"z": NaN}}',
        b'{"round": "x", "mechanism": {"z": "1"}}',
        b'{"round": "x", "mechanism": {"z": 1' + b"0" * 400 + b"}}",
    ],
)
def test_a_damaged_line_is_a_charge(tmp_path: Path, damage: bytes) -> None:
    ledger = make_ledger(tmp_path, max_rounds=3)
    ledger.charge("1", {})
    ledger.path.write_bytes(damage + b"\n" + ledger.path.read_bytes())
    assert rounds_of(ledger) == [None, "1"]
    ledger.charge("2", {})
    with pytest.raises(PrivacyBudgetError):
        ledger.charge("3", {})


def test_the_line_is_on_the_disk_and_the_folder_too_before_a_charge_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = make_ledger(tmp_path)
    synced: list[tuple[str, int]] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append(("folder" if is_folder else "file", ledger.path.stat().st_size))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    ledger.charge("1", GAUSSIAN)
    size = ledger.path.stat().st_size
    assert synced == [("folder", 0), ("file", size)], "a file with a line in it has a durable name"
    ledger.charge("2", GAUSSIAN)
    assert synced[2:] == [("file", ledger.path.stat().st_size)]


def break_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)


def break_write(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    room = iter([5])

    def refuse(descriptor: int, data: bytes) -> int:
        for part in room:
            return real(descriptor, data[:part])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", refuse)


@pytest.mark.parametrize("fault", [break_fsync, break_write])
@pytest.mark.parametrize("tail", [b"", b'{"mech'], ids=["whole", "torn"])
def test_a_disk_that_refuses_means_no_release_and_no_charge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None], tail: bytes
) -> None:
    ledger = make_ledger(tmp_path)
    ledger.charge("1", GAUSSIAN)
    ledger.path.write_bytes(ledger.path.read_bytes() + tail)
    before = ledger.path.read_bytes()
    released: list[str] = []
    with monkeypatch.context() as patch:
        fault(patch)
        with pytest.raises(StorageError, match=r"ledger\.jsonl cannot be used: .*nothing was released"):
            released.append(str(ledger.charge("2", GAUSSIAN)))
    assert not released
    assert ledger.path.read_bytes() == before
    ledger.charge("2", GAUSSIAN)
    assert rounds_of(ledger) == ["1", *([None] if tail else []), "2"]


def test_a_piece_that_cannot_be_taken_back_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = make_ledger(tmp_path)

    def refuse(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        break_write(patch)
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(StorageError):
            ledger.charge("1", GAUSSIAN)
    assert rounds_of(ledger) == [None]


def test_short_writes_make_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    ledger = make_ledger(tmp_path)
    made = ledger.charge("1", GAUSSIAN)
    assert ledger.charges() == (made,)


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be used"):
        make_ledger(tmp_path / "gone").charge("1", {})
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(StorageError):
        make_ledger(tmp_path).charges()


def test_threads_that_race_never_exceed_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = make_ledger(tmp_path, max_rounds=20)
    real = os.write

    def write_late(descriptor: int, data: bytes) -> int:
        time.sleep(0.002)  # between the look at the budget and the charge
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write_late)

    def attempt(number: int) -> bool:
        with suppress(PrivacyBudgetError, RoundChargedError):
            ledger.charge(f"r{number % 40}", {})
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(attempt, range(80)))
    assert granted == ledger.spent == 20
    assert len(set(rounds_of(ledger))) == 20


LOOP = """
import sys
from pathlib import Path
from privacy.ledger import Ledger
ledger, first = Ledger(path=Path(sys.argv[1]), max_rounds=10**9), int(sys.argv[2])
for number in range(first, first + 10**6):
    ledger.charge(f"r{number}", {"noise_multiplier": 1.0})
    sys.stdout.write(f"r{number}\\n")
    sys.stdout.flush()
"""


def test_a_killed_process_loses_no_charge_that_returned(tmp_path: Path) -> None:
    ledger, rng = make_ledger(tmp_path), random.Random(0)
    acknowledged: list[str] = []
    for life in range(12):
        command = [sys.executable, "-c", LOOP, str(ledger.path), str(life * 10**6)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            acknowledged.append(process.stdout.readline().strip())
            time.sleep(rng.random() * 0.03)
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read()
        acknowledged += rest[: rest.rfind("\n") + 1].split()
        charged = rounds_of(ledger)
        assert set(acknowledged) <= set(charged)
        assert len(charged) <= len(acknowledged) + life + 1, "at most one charge a life was not acknowledged"


@pytest.mark.parametrize("round_id", ["", "a b", "x\ny", "é", "r" * 129, "../../etc", 7, None])
def test_a_malformed_round_is_refused_unquoted_and_nothing_is_written(tmp_path: Path, round_id: str) -> None:
    ledger = make_ledger(tmp_path)
    with pytest.raises(InputError, match="round_id must be"):
        ledger.charge(round_id, {})
    assert not ledger.path.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "text", None, True, [1.0], 10**400])
def test_a_mechanism_is_finite_numbers(tmp_path: Path, value: float) -> None:
    ledger = make_ledger(tmp_path)
    with pytest.raises(InputError, match="z must be a finite number"):
        ledger.charge("1", {"z": value})
    with pytest.raises(InputError, match="malformed name"):
        ledger.charge("1", {"A dialogue!": 1.0})
    assert not ledger.path.exists()
