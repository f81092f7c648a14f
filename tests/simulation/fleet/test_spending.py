"""Sums of a journal, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulation.fleet.journal import FleetJournal, FleetRecord
from simulation.fleet.spending import spending, summarize
from simulation.fleet.tasks import Usage


def record(number: int, attempt: int, ended_at: float, joules: dict[int, float], wasted: float) -> FleetRecord:
    return FleetRecord(
        fleet=1,
        round=number,
        attempt=attempt,
        exchange=0,
        started_at=ended_at - 5.0,
        ended_at=ended_at,
        asked=len(joules),
        heard=1,
        used=Usage(bytes_up=10, bytes_down=20, energy_joules=sum(joules.values())),
        wasted=Usage(bytes_up=1, bytes_down=2, energy_joules=wasted),
        device_joules=joules,
        busy={},
    )


RECORDS = [
    record(1, 1, 60.0, {0: 100.0, 1: 50.0}, wasted=50.0),
    # Round 2 was tried twice: the 90 J of the first time are lost, whoever was heard.
    record(2, 1, 100.0, {0: 30.0, 2: 60.0}, wasted=0.0),
    record(2, 2, 160.0, {1: 120.0}, wasted=20.0),
]


def test_rounds_by_hand() -> None:
    one, two = spending(RECORDS)
    assert (one.round, one.fleet_seconds, one.wasted_share) == (1, 60.0, 50 / 150)
    assert (two.round, two.fleet_seconds, two.wasted_share) == (2, 100.0, 110 / 210)
    assert two.used == Usage(bytes_up=20, bytes_down=40, energy_joules=210.0)
    assert two.wasted == Usage(bytes_up=11, bytes_down=22, energy_joules=110.0)
    assert two.device_joules == {0: 30.0, 1: 120.0, 2: 60.0}


def test_a_run_by_hand(tmp_path: Path) -> None:
    journal = FleetJournal(tmp_path / "fleet.jsonl", fleet=1)
    for each in RECORDS:
        journal.append(each)
    summary = summarize(tmp_path / "fleet.jsonl")
    assert (summary.rounds, summary.fleet_seconds) == (2, 160.0)
    assert (summary.bytes_up, summary.bytes_down) == (30, 60)
    # 3,600 J are a watt-hour; of 360 J 50 + 90 + 20 were in vain.
    assert summary.energy_wh == {0: 130 / 3600, 1: 170 / 3600, 2: 60 / 3600}
    assert summary.mean_energy_wh == pytest.approx(120 / 3600)
    assert summary.wasted_share == pytest.approx(160 / 360)


def test_tasks_of_asynchronous_rounds_are_no_attempts() -> None:
    (only,) = spending([record(1, 0, 10.0, {0: 5.0}, wasted=0.0), record(1, 0, 20.0, {1: 5.0}, wasted=5.0)])
    assert only.wasted_share == 0.5


def test_an_empty_journal_is_a_run_of_nothing(tmp_path: Path) -> None:
    FleetJournal(tmp_path / "fleet.jsonl", fleet=1)
    summary = summarize(tmp_path / "fleet.jsonl")
    assert (summary.rounds, summary.fleet_seconds, summary.wasted_share, summary.mean_energy_wh) == (0, 0.0, 0.0, 0.0)
