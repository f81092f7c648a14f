"""The run directory survives kills, refuses what does not belong, and loses nothing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from florilegium.errors import ConfigError, StorageError
from simulation.records import RoundRecord
from simulation.rundir import RunConfig, RunDirectory

ROOT = Path(__file__).parents[2]
MakeRecords = Callable[..., list[RoundRecord]]
CONFIG = RunConfig(identity={"bins": 8, "code": "c"}, request={"arms": ["none"]}, data={0: {"ada": "a", "bob": "b"}})


@pytest.fixture
def pieces(make_records: MakeRecords) -> list[list[RoundRecord]]:
    records = make_records(("none", "local-random"), seeds=1, users=2)
    return [records[start : start + 3] for start in range(0, len(records), 3)]


def _open(path: Path, **changes: object) -> RunDirectory:
    return RunDirectory(path, CONFIG.model_copy(update=changes), rounds=range(3))


def _config(path: Path) -> RunConfig:
    return RunConfig.model_validate_json((path / "config.json").read_bytes())


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


def test_another_identity_is_refused_by_its_keys(tmp_path: Path) -> None:
    _open(tmp_path).close()
    with pytest.raises(ConfigError, match="differs in bins, code, extra; repeat"):
        _open(tmp_path, identity={"bins": 9, "extra": 1})
    assert _config(tmp_path) == CONFIG


def test_another_request_is_noted_and_more_users_are_added(tmp_path: Path) -> None:
    _open(tmp_path).close()
    with _open(tmp_path, request={"arms": ["retrieval"]}, data={0: {"bob": "b", "eve": "e"}, 1: {"ada": "x"}}):
        pass
    assert _config(tmp_path).request == {"arms": ["retrieval"]}
    assert _config(tmp_path).data == {0: {"ada": "a", "bob": "b", "eve": "e"}, 1: {"ada": "x"}}


def test_other_data_of_the_same_user_are_refused(tmp_path: Path) -> None:
    _open(tmp_path).close()
    with pytest.raises(ConfigError, match="other data of user 'bob' of seed 0"):
        _open(tmp_path, data={0: {"bob": "changed"}})
    assert _config(tmp_path) == CONFIG


def test_a_seed_keeps_its_fleet_and_other_seeds_are_added(tmp_path: Path) -> None:
    _open(tmp_path, fleets={0: "three"}).close()
    _open(tmp_path, fleets={1: "nine"}).close()
    assert _config(tmp_path).fleets == {0: "three", 1: "nine"}
    with pytest.raises(ConfigError, match=r"other users in the fleet of seed 1, .*name another directory"):
        _open(tmp_path, fleets={0: "three", 1: "three"})
    assert _config(tmp_path).fleets == {0: "three", 1: "nine"}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b'{"bins": 8}'])
def test_a_line_that_is_no_record_is_left_as_it_is(
    tmp_path: Path, pieces: list[list[RoundRecord]], damage: bytes
) -> None:
    with _open(tmp_path) as run:
        run.append(pieces[0])
        run.append(pieces[1])
    lines = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")
    lines[1] = damage
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(StorageError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        _open(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes().split(b"\n") == lines


def test_a_full_disk_is_an_error_of_one_line_and_lets_others_in(
    tmp_path: Path, pieces: list[list[RoundRecord]]
) -> None:
    with _open(tmp_path) as run:
        run.append(pieces[0])
    size = (tmp_path / "metrics.jsonl").stat().st_size
    (tmp_path / "piece.json").write_text(json.dumps([record.model_dump() for record in pieces[1]]))
    script = f"""
import json, pathlib, resource
from florilegium.errors import StorageError
from simulation.records import RoundRecord
from simulation.rundir import RunConfig, RunDirectory
path = pathlib.Path({str(tmp_path)!r})
piece = [RoundRecord.model_validate(each) for each in json.loads((path / "piece.json").read_text())]
config = RunConfig.model_validate_json({CONFIG.model_dump_json()!r})
run = RunDirectory(path, config, rounds=range(3))
resource.setrlimit(resource.RLIMIT_FSIZE, ({size} + 100, {size} + 100))
try:
    with run:
        run.append(piece)
except StorageError as error:
    print(error)
RunDirectory(path, config, rounds=range(3)).close()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot be written: File too large" in done.stdout
    with _open(tmp_path) as run:
        assert run.records == pieces[0]
        run.append(pieces[1])


def test_temporary_files_go_with_the_session_and_with_the_next_one(tmp_path: Path) -> None:
    with _open(tmp_path) as run:
        assert run.work.stat().st_mode & 0o777 == 0o700
        (run.work / "deep").mkdir()
        (run.work / "deep" / "text").write_text("private")
    assert not run.work.exists()
    (run.work / "deep").mkdir(parents=True)  # as a kill leaves it
    (run.work / "deep" / "text").write_text("private")
    with pytest.raises(ConfigError):
        _open(tmp_path, identity={})
    assert not run.work.exists()
    with _open(tmp_path) as run:
        assert list(run.work.iterdir()) == []


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with _open(tmp_path), pytest.raises(StorageError, match="in use by another process"):
        _open(tmp_path)
    _open(tmp_path).close()


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        _open(tmp_path / "file" / "run")


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"bins": 8}'])
def test_a_damaged_config_is_an_error_of_one_line(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "config.json").write_text(damaged)
    with pytest.raises(StorageError, match=r"config\.json is damaged or of another version; "):
        _open(tmp_path)


@pytest.mark.parametrize("damaged", ["[{", "{}", "[1]"])
def test_damaged_versions_are_an_error_of_one_line(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "versions.json").write_text(damaged)
    with _open(tmp_path) as run, pytest.raises(StorageError, match=r"versions\.json is damaged"):
        run.note_versions()


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
