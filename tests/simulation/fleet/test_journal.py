"""The journal: exact, cut where a server's checkpoint is, and whole after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from florilegium.errors import ConfigError, StorageError
from simulation.fleet.journal import FleetJournal, FleetRecord, read_journal
from simulation.fleet.tasks import Usage

FINITE = st.floats(0, 1e12)
usages = st.builds(Usage, bytes_up=st.integers(0, 2**50), bytes_down=st.integers(0, 2**50), energy_joules=FINITE)
records = st.builds(
    FleetRecord,
    fleet=st.just(7),
    round=st.integers(1, 9),
    attempt=st.integers(0, 3),
    exchange=st.integers(0, 1),
    started_at=FINITE,
    ended_at=FINITE,
    asked=st.integers(0, 99),
    heard=st.integers(0, 99),
    used=usages,
    wasted=usages,
    device_joules=st.dictionaries(st.integers(0, 99), FINITE, max_size=4),
    busy=st.dictionaries(st.integers(0, 99), FINITE, max_size=4),
)


def record(number: int) -> FleetRecord:
    return FleetRecord(
        fleet=7,
        round=number,
        attempt=1,
        exchange=0,
        started_at=10.0 * number,
        ended_at=10.0 * number + 1 / 3,
        asked=2,
        heard=1,
        used=Usage(bytes_up=number, energy_joules=0.1),
        wasted=Usage(),
        device_joules={3: 0.1},
        busy={3: 10.0 * number + 9},
    )


def filled(path: Path, rounds: list[int]) -> FleetJournal:
    journal = FleetJournal(path, fleet=7)
    for number in rounds:
        journal.append(record(number))
    return journal


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(records, max_size=4))
def test_what_is_written_is_read_to_the_bit(tmp_path: Path, records: list[FleetRecord]) -> None:
    path = tmp_path / "fleet.jsonl"
    path.unlink(missing_ok=True)
    journal = FleetJournal(path, fleet=7)
    for each in records:
        journal.append(each)
    assert list(read_journal(path)) == records
    assert FleetJournal(path, fleet=7).last == (records[-1] if records else None)


def test_a_kill_while_writing_leaves_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    filled(path, [1, 2])
    whole = path.read_bytes()
    first = len(whole.splitlines(keepends=True)[0])
    for length in [*range(0, len(whole), 17), first - 1, first, first + 1, len(whole) - 1]:
        path.write_bytes(whole[:length])
        journal = FleetJournal(path, fleet=7)
        assert journal.last == (None if length < first else record(1))
        journal.append(record(2))
        assert list(read_journal(path)) == ([record(2)] if length < first else [record(1), record(2)])


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_later_rounds_are_dropped(after: int, tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    journal = filled(path, [1, 1, 2, 3, 3])
    journal.cut(after)
    kept = [number for number in (1, 1, 2, 3, 3) if number <= after]
    assert [each.round for each in read_journal(path)] == kept
    assert journal.last == (record(after) if after else None)


def test_a_journal_behind_the_server_is_refused(tmp_path: Path) -> None:
    journal = filled(tmp_path / "fleet.jsonl", [1, 2])
    with pytest.raises(StorageError, match="ends with round 2, the server's checkpoint with round 4"):
        journal.cut(4)
    with pytest.raises(StorageError, match="ends with round 0, the server's checkpoint with round 1"):
        FleetJournal(tmp_path / "new.jsonl", fleet=7).cut(1)


def test_another_fleet_s_journal_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    filled(path, [1, 2])
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="a fleet with other settings"):
        FleetJournal(path, fleet=8)
    assert path.read_bytes() == before


def test_damage_is_named_with_its_line_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    filled(path, [1, 2, 3])
    damaged = path.read_bytes().replace(b'"round":2', b'"round":x')
    path.write_bytes(damaged)
    with pytest.raises(StorageError, match=r"line 2 of .*fleet\.jsonl is damaged"):
        FleetJournal(path, fleet=7)
    assert path.read_bytes() == damaged
    with pytest.raises(StorageError, match=r"none\.jsonl cannot be read"):
        list(read_journal(tmp_path / "none.jsonl"))


def test_it_is_for_its_owner_only_and_holds_numbers_alone(tmp_path: Path) -> None:
    path = tmp_path / "made" / "fleet.jsonl"
    filled(path, [1])
    assert path.stat().st_mode & 0o777 == 0o600
    names = set(FleetRecord.model_fields) | {"bytes_up", "bytes_down", "energy_joules"}
    text = path.read_text(encoding="utf-8")
    assert {word for word in text.split('"')[1::2] if not word.isdigit()} == names
