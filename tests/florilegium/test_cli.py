"""The command line as people and programs use it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from florilegium import cli
from florilegium.errors import InputError
from simulation.readers import read_users
from simulation.world import WorldConfig, generate_users

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["bins=8", "holdout_share=0.3", 'synthesizer="none"', "max_new_tokens=4", "round_every=1000"]


def run(*arguments: str, entry: str = "main") -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own, as a user does."""
    code = (
        f"import sys; sys.argv = ['florilegium', *{list(arguments)!r}]; from florilegium.cli import {entry}; {entry}()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


def invoke(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """Run the program in this process, which has torch loaded; return its exit code and output."""
    monkeypatch.setattr(sys, "argv", ["florilegium", *arguments])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def commands() -> list[tuple[str, ...]]:
    root = typer.main.get_command(cli.app)
    found: list[tuple[str, ...]] = []
    for name, command in sorted(root.commands.items()):  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += [(name, each) for each in sorted(inner)] if inner else [(name,)]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_explains_itself_with_an_example(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli.app, [*command, "--help"])
    assert result.exit_code == 0
    assert f"Example: florilegium {' '.join(command)}" in " ".join(result.output.split())


def test_the_documented_commands_are_the_program(tmp_path: Path) -> None:
    made = tmp_path / "commands.md"
    arguments = ["florilegium.cli", "utils", "docs", "--name", "florilegium", "--output", str(made)]
    subprocess.run([sys.executable, "-m", "typer", *arguments], check=True, cwd=ROOT, capture_output=True)
    assert made.read_text() == (ROOT / "docs" / "commands.md").read_text(), "run `make docs`"


def test_help_answers_without_heavy_libraries() -> None:
    result = run("--version")
    assert result.stdout.startswith("florilegium 0.")
    probe = "import florilegium.cli, sys; assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["device", "status", "nowhere"], 5, "is no device"),
        (["device", "init", "d", "--set", "bins=0"], 2, "bins = 0 is refused"),
        (["device", "init", "d", "--set", "polcy='paper'"], 2, "did you mean 'policy'"),
        (["device", "init", "d", "--set", "policy=paper"], 2, "not valid TOML"),
        (["compare", "absent.jsonl"], 3, "is no file"),
        (["compare", "--arms", "nune"], 2, "nune"),
        (
            ["compare", "--model", "./no-such-folder", "--seeds", "1", "--users", "1", "--workers", "1"],
            4,
            "no-such-folder",
        ),
        (["report", "nowhere"], 3, "holds no summary.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_with_its_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    exit_code, out, err = invoke(capsys, monkeypatch, *arguments)
    assert exit_code == code
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err


def test_a_device_from_the_command_line(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: str) -> str:
        code, out, err = invoke(capsys, monkeypatch, "device", *arguments)
        assert code == 0, err
        return out

    device, file = str(tmp_path / "d"), tmp_path / "dialogues.jsonl"
    settings = [f'model="{tiny_model_folder}"', *SMALL]
    call("init", device, *(part for setting in settings for part in ("--set", setting)))
    rows = [{"question": f"Where is {n}?", "response": "No idea.", "dialogue_id": f"d{n}"} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = [json.loads(line) for line in call("observe", device, str(file), "--json").splitlines()]
    assert [line["dialogue_id"] for line in lines] == [f"d{n}" for n in range(12)]
    assert json.loads(call("learn", device, "--json"))["outcome"] == "nothing-annotated"
    status = json.loads(call("status", device, "--json"))
    assert status["seen"] == 12
    assert status["asked"] > 0
    answers = tmp_path / "answers.jsonl"
    answers.write_text(
        "".join(json.dumps({"dialogue_id": f"d{n}", "verdict": "ideal", "ideal": "Here."}) + "\n" for n in range(12)),
        encoding="utf-8",
    )
    held = status["held"] + status["heldout"]
    assert f"{held} answers stored, {12 - held} to dialogues" in " ".join(
        call("annotate", device, str(answers)).split()
    )
    assert [json.loads(line)["dialogue_id"] for line in call("why", device, "d0", "--json").splitlines()][-1] == "d0"
    call("forget", device, "d0")
    assert "bare base" in call("rollback", device)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no JSON object"),
        ('{"question": ""}', "lacks a text 'question'"),
        ('{"question": "q", "response": 3}', "must be texts"),
    ],
)
def test_a_malformed_line_is_named_and_not_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, problem: str
) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text('{"question": "my secret"}\n' + line + "\n", encoding="utf-8")
    code, _, err = invoke(capsys, monkeypatch, "device", "observe", str(tmp_path), str(file))
    assert code == 3
    assert "line 2" in err
    assert problem in err
    assert "secret" not in err


def test_compare_counts_each_user_of_a_file_once_and_goes_on(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"user_id": f"person {user}", "question": f"Where is place {n} of {user}?", "response": f"In street {n}."}
        for user in range(6)
        for n in range(30 if user else 3)
    ]
    Path("log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["compare", "log.jsonl", "--model", str(tiny_model_folder), "--arms", "none", "--workers", "1"]
    code, _, err = invoke(capsys, monkeypatch, *arguments)
    assert code == 3
    assert "none of 6 users of log.jsonl has 40 turns and 4 held-out questions; lower --min-turns or --min-held" in err
    arguments += ["--min-turns", "10", "--min-heldout", "1", "--json"]
    code, out, err = invoke(capsys, monkeypatch, *arguments)
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["users"], summary["seeds"]) == (5, [0, 1, 2])
    assert summary["arms"]["none"]["metrics"]["rouge1"]["ci95"] is None
    assert "5 of 6 users of log.jsonl are compared; 1 have fewer than 10 turns or 1 held-out" in err
    (directory,) = Path("runs").iterdir()
    assert f"The run directory: {directory}" in err
    measured = (directory / "metrics.jsonl").read_bytes()
    assert invoke(capsys, monkeypatch, *arguments)[0] == 0
    assert [*Path("runs").iterdir()] == [directory]
    assert (directory / "metrics.jsonl").read_bytes() == measured
    assert b"person" not in measured + (directory / "config.json").read_bytes()


def test_the_demo_has_a_directory_of_its_own(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(users: object, config: object, run_directory: Path, **_: object) -> None:
        raise InputError(f"asked to write {run_directory}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLORILEGIUM_SEEDLING", str(tiny_model_folder))
    monkeypatch.setattr("simulation.compare.run_compare", refuse)
    _, _, err = invoke(capsys, monkeypatch, "demo", "--json")
    assert re.search(r"asked to write runs/demo-device-[0-9a-f]{12}\n", err)


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"schema_version": 1}', "\xff"])
def test_a_summary_that_is_none_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "summary.json").write_bytes(content.encode("latin-1"))
    code, _, err = invoke(capsys, monkeypatch, "report", str(tmp_path))
    assert (code, err.count("\n")) == (3, 1)
    assert "summary.json is damaged or of another version" in err


def test_a_report_that_cannot_be_written_is_an_error_of_one_line(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--model", str(tiny_model_folder), "--arms", "none", "--seeds", "1", "--users", "1", "--turns", "4"]
    assert invoke(capsys, monkeypatch, "compare", *run, "--workers", "1", "--out", str(tmp_path / "run"))[0] == 0
    code, out, _ = invoke(capsys, monkeypatch, "report", str(tmp_path / "run"))
    assert code == 0
    assert "none" in out
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "report.html").mkdir()
    code, _, err = invoke(capsys, monkeypatch, "report", str(tmp_path / "run"))
    assert (code, err.count("\n")) == (5, 1)
    assert "report.html cannot be written" in err


def test_world_writes_a_file_that_compare_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "users.jsonl"
    code, _, err = invoke(capsys, monkeypatch, "world", str(file), "--users", "3", "--turns", "90", "--seed", "5")
    assert code == 0, err
    made = generate_users(5, 3, WorldConfig(turns=90))
    for read, user in zip(read_users(file), made, strict=True):
        assert [(turn.question, turn.preferred, turn.kind) for turn in read.stream] == [
            (turn.question, turn.preferred, turn.kind) for turn in user.stream
        ]
        assert [(example.question, example.response) for example in read.heldout] == [
            (example.question, example.response) for example in user.heldout
        ]
        assert list(read.heldout_kinds.values()) == list(user.heldout_kinds.values())
        assert all(turn.response is None for turn in read.stream)


def test_world_says_in_one_line_that_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = invoke(capsys, monkeypatch, "world", str(tmp_path / "nodir" / "x.jsonl"), "--turns", "5")
    assert code == 5
    assert "x.jsonl cannot be written: No such file or directory" in " ".join(err.split())
    assert "Traceback" not in err
