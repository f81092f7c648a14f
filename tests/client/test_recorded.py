"""Recorded devices: rows with the rounds in which they are there, bounds and ledgers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import client.recorded
from client.adapters import SHARED, AdapterConfig
from client.bounds import LocalBounds
from client.dialogue import Example
from client.recorded import FleetSettings, Lesson, RecordedFleet
from florilegium.errors import ConfigError, InputError, StorageError
from privacy.device_level import DeviceLevel

PRIVACY = DeviceLevel(clip_norm=1.0, noise_multiplier=1.0, delta=1e-5, max_rounds=3, cohort=2)


def row(name: str, source: str | None = None) -> Example:
    return Example(question=f"{name}?", response=f"{name}.", source_id=source or name, example_id=name)


def lesson(name: str, since: int = 1, until: int | None = None) -> Lesson:
    return Lesson(example=row(name), since=since, until=until)


def names(rows: list[Example]) -> list[str]:
    return [each.example_id for each in rows]


@pytest.fixture
def fleet(tmp_path: Path, tiny_model_folder: Path) -> Iterator[RecordedFleet]:
    settings = FleetSettings(
        model=str(tiny_model_folder),
        adapter=AdapterConfig(rank=2, alpha=4.0, top_layers=1, dropout=0.1),
        bounds=LocalBounds.parse({"steps": [1, 5]}),
        max_releases=2,
    )
    yield RecordedFleet.create(tmp_path / "fleet", settings)
    client.recorded.release()


def test_rows_come_and_go(fleet: RecordedFleet) -> None:
    fleet.record(7, [lesson("a"), lesson("b", since=2), lesson("c", until=2), lesson("d", 2, 2)], [lesson("h", 3)])
    assert [names(fleet.examples(7, number)) for number in (1, 2, 3)] == [["a", "c"], ["a", "b", "c", "d"], ["a", "b"]]
    assert [names(fleet.holdout(7, number)) for number in (2, 3)] == [[], ["h"]]
    assert fleet.examples(7, 1) == [row("a"), row("c")]


def test_recording_again_replaces_all(fleet: RecordedFleet) -> None:
    fleet.record(0, [lesson("a")], [lesson("h")])
    fleet.record(0, [lesson("b")])
    assert (names(fleet.examples(0, 1)), fleet.holdout(0, 1)) == (["b"], [])


@given(st.integers(-2, 5), st.integers(-2, 5) | st.none())
def test_a_lesson_is_there_between_its_rounds(since: int, until: int | None) -> None:
    if since < 1 or (until is not None and until < since):
        with pytest.raises(InputError, match="count rounds from 1"):
            lesson("a", since, until)
        return
    there = [number for number in range(1, 8) if lesson("a", since, until).is_there(number)]
    assert there == list(range(since, 1 + (7 if until is None else until)))


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "1",
        '{"question": "q", "response": "r", "source_id": "s", "example_id": "e"}',
        '{"question": "q", "response": "r", "source_id": "s", "example_id": "e", "since": "x"}',
        '{"question": "q", "response": "r", "source_id": "s", "example_id": "e", "since": 3, "until": 2}',
        '{"question": "q", "response": "r", "source_id": "s", "example_id": "e", "since": 1, "more": 2}',
    ],
)
def test_a_damaged_line_is_named_and_not_quoted(line: str, fleet: RecordedFleet) -> None:
    fleet.record(0, [lesson("secret")])
    path = fleet.folder / "devices" / "000000" / "lessons.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match="line 2 is no lesson") as caught:
        fleet.examples(0, 1)
    assert "secret" not in str(caught.value)


def test_so_many_synthesized_rows_of_each_dialogue_are_used(fleet: RecordedFleet) -> None:
    rows = [row("a"), row("a1", "a"), row("b1", "b"), row("a2", "a"), row("b"), row("a3", "a")]
    fleet.record(0, [Lesson(example=each) for each in rows])
    assert names(fleet.examples(0, 1, synthesis_count=0)) == ["a", "b"]
    assert names(fleet.examples(0, 1, synthesis_count=2)) == ["a", "a1", "b1", "a2", "b"]
    assert fleet.examples(0, 1, synthesis_count=9) == fleet.examples(0, 1) == rows


def test_settings_survive_the_folder(fleet: RecordedFleet) -> None:
    found = RecordedFleet(fleet.folder).settings
    assert found == fleet.settings
    assert found.bounds.steps == (1, 5)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be two numbers"):
        FleetSettings.parse({"bounds": {"steps": [5, 1]}})
    with pytest.raises(ConfigError, match="max_releases = -1 is refused"):
        FleetSettings.parse({"max_releases": -1})


def test_a_private_plan_is_charged_to_the_device_s_own_ledger(fleet: RecordedFleet, tmp_path: Path) -> None:
    fleet.record(0, [lesson("a")])
    free = RecordedFleet.create(tmp_path / "free", fleet.settings.model_copy(update={"max_releases": None}))
    free.record(0, [lesson("a")])
    assert free.participant(0)._ledger is None
    open_plan = fleet.participant(0)._ledger
    assert open_plan is not None, "what its owner allows holds under any plan"
    assert open_plan.max_rounds == 2
    ledger = fleet.participant(0, privacy=PRIVACY)._ledger
    assert ledger is not None
    assert ledger.path == fleet.folder / "devices" / "000000" / "ledger"
    assert ledger.max_rounds == 2, "the device's own budget is less than the plan's"
    ledger.charge("r", {})
    settings = fleet.settings.model_copy(update={"max_releases": None})
    unlimited = RecordedFleet.create(fleet.folder, settings).participant(0, privacy=PRIVACY)._ledger
    assert unlimited is not None
    assert (unlimited.max_rounds, unlimited.spent) == (3, 1), "the plan's, and what is spent stays so"


def test_a_branch_has_neither_memory_nor_ledger(fleet: RecordedFleet, tmp_path: Path) -> None:
    fleet.record(0, [lesson("a")], [lesson("h")])
    ledger = fleet.participant(0, privacy=PRIVACY)._ledger
    assert ledger is not None
    ledger.charge("r", {})
    (fleet.folder / "devices" / "000000" / "memory").write_bytes(b"x")
    branch = fleet.branch(tmp_path / "branch")
    assert names(branch.examples(0, 1)) == ["a"]
    assert names(branch.holdout(0, 1)) == ["h"]
    own = branch.participant(0, privacy=PRIVACY)._ledger
    assert own is not None
    assert own.spent == 0
    own.charge("r", {})
    assert (own.spent, ledger.spent) == (1, 1)
    assert branch.participant(0)._memory.read() == {}


def test_a_device_may_be_asked_for_another_dropout(fleet: RecordedFleet) -> None:
    assert fleet.participant(0)._model.config(SHARED).dropout == 0.1
    assert fleet.participant(0, dropout=0.4)._model.config(SHARED).dropout == 0.4
    assert fleet.participant(0)._model.config(SHARED).dropout == 0.1


def test_no_fleet_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"holds no fleet\.toml"):
        RecordedFleet(tmp_path)
