"""The run directory survives kills, refuses what does not belong, and loses nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from florilegium.errors import ConfigError, StorageError
from simulation.records import RoundRecord
from simulation.rundir import RunDirectory

MakeRecords = Callable[..., list[RoundRecord]]
CONFIG = {"bins": 8, "arms": ("none", "local-random")}


@pytest.fixture
def pieces(make_records: MakeRecords) -> list[list[RoundRecord]]:
    records = make_records(("none", "local-random"), seeds=1, users=2)
    return [records[start : start + 3] for start in range(0, len(records), 3)]


def _open(path: Path, config: dict[str, object] | None = None) -> RunDirectory:
    return RunDirectory(path, config or dict(CONFIG), rounds=2)


def test_what_was_appended_is_there_again(tmp_path: Path, pieces: list[list[RoundRecord]]) -> None:
    with _open(tmp_path / "a" / "run") as run:
        for piece in reversed(pieces):
            run.append(piece)
        before = run.records
    with _open(tmp_path / "a" / "run") as run:
        assert run.records == before == sorted((r for piece in pieces for r in piece), key=lambda r: (*r.key, r.round))
        assert run.finished == {piece[0].key for piece in pieces}


def test_a_kill_at_any_byte_loses_at_most_the_last_piece(tmp_path: Path, pieces: list[list[RoundRecord]]) -> None:
    with _open(tmp_path) as run:
        run.append(pieces[0])
        whole = len((tmp_path / "metrics.jsonl").read_bytes())
        run.append(pieces[1])
    log = (tmp_path / "metrics.jsonl").read_bytes()
    for end in range(whole, len(log), 37):
        (tmp_path / "metrics.jsonl").write_bytes(log[:end])
        with _open(tmp_path) as run:
            # Only the final newline is not needed to know the piece.
            assert run.records == (pieces[0] if end < len(log) - 1 else pieces[0] + pieces[1])
            run.append(pieces[1])
        assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_another_config_is_refused_by_its_keys(tmp_path: Path) -> None:
    _open(tmp_path).close()
    with pytest.raises(ConfigError, match="differs in bins, extra; repeat"):
        _open(tmp_path, {**CONFIG, "bins": 9, "extra": 1})
    _open(tmp_path).close()  # and the refusal changed nothing


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with _open(tmp_path), pytest.raises(StorageError, match="in use by another process"):
        _open(tmp_path)
    _open(tmp_path).close()


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        _open(tmp_path / "file" / "run")


def test_a_damaged_config_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StorageError, match=r"config\.json is not valid JSON"):
        _open(tmp_path)


def test_every_session_notes_its_versions(tmp_path: Path) -> None:
    for workers in (1, 2):
        with _open(tmp_path) as run:
            run.note_versions(workers=workers)
    sessions = json.loads((tmp_path / "versions.json").read_text())
    assert [session["workers"] for session in sessions] == [1, 2]
    assert {"date", "python", "torch", "florilegium", "processor", "cores"} <= sessions[0].keys()


def test_sorting_gives_the_same_file_for_every_order(tmp_path: Path, pieces: list[list[RoundRecord]]) -> None:
    texts = []
    for name, order in (("a", pieces), ("b", pieces[::-1])):
        with _open(tmp_path / name) as run:
            for piece in order:
                run.append(piece)
            run.sort()
        texts.append((tmp_path / name / "metrics.jsonl").read_text())
    assert texts[0] == texts[1]
