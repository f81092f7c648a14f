"""`florilegium device` as people and programs use it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from client.device import Device
from florilegium import cli
from florilegium.commands.output import console, print_json
from florilegium.errors import StorageError

ROOT = Path(__file__).resolve().parents[2]
Program = Callable[..., tuple[int, str, str]]
SMALL = ("bins=8", "holdout_share=0.0", 'policy="fifo"', 'synthesizer="none"', "max_new_tokens=4", "round_every=1000")


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """Return a function that runs `florilegium device …` and returns its exit code and output."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["florilegium", "device", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def device(tmp_path: Path, tiny_model_folder: Path, program: Program) -> str:
    """Make a device in a folder whose name looks like markup."""
    directory = str(tmp_path / ("[a]" + "long" * 30) / ":smile:")
    settings = (f'model="{tiny_model_folder}"', *SMALL)
    code, out, err = program("init", directory, *(part for each in settings for part in ("--set", each)))
    assert (code, err) == (0, "")
    assert out == f"{directory} is ready; its settings are in {directory}/device.toml\n"
    return directory


def lines(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def write(path: Path, rows: Sequence[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def log(tmp_path: Path) -> str:
    return write(tmp_path / "log.jsonl", [{"question": f"Where is {n}?", "response": "No idea."} for n in range(5)])


def typed(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """Let a user type lines, and then close the input."""

    left = iter(texts)

    def read() -> str:
        for text in left:
            return text
        raise EOFError

    monkeypatch.setattr("builtins.input", read)


def test_a_file_that_is_observed_again_is_passed_over(device: str, log: str, program: Program) -> None:
    first = program("observe", device, log, "--json")
    assert first[0] == 0
    assert [row["action"] for row in lines(first[1])] == ["keep"] * 5
    assert len({row["dialogue_id"] for row in lines(first[1])}) == 5
    assert program("observe", device, log, "--json") == first
    assert lines(program("status", device, "--json")[1])[0]["seen"] == 5


def test_ctrl_c_says_how_to_go_on(device: str, log: str, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    observe, calls = Device.observe, iter(range(9))

    def stop(*arguments: object, **named: object) -> object:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return observe(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Device, "observe", stop)
        code, _, err = program("observe", device, log)
    assert (code, err.splitlines()[-1]) == (130, "stopped; the same command goes on from here")
    assert program("observe", device, log)[0] == 0
    assert lines(program("status", device, "--json")[1])[0]["seen"] == 5


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_error(
    device: str, log: str, program: Program, monkeypatch: pytest.MonkeyPatch, as_json: list[str]
) -> None:
    program("observe", device, log)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", closed)
        patched.setattr("florilegium.commands.device.console", type(console)())  # one that ends with its process
        code, _, err = program("why", device, *as_json)
    assert (code, err) == (0, "")


def test_dialogues_are_found_and_named_by_the_beginning_of_their_identifier(
    device: str, log: str, program: Program
) -> None:
    ids = [str(row["dialogue_id"]) for row in lines(program("observe", device, log, "--json")[1])]
    shown = lines(program("show", device, "--json")[1])
    assert [row["dialogue_id"] for row in shown] == ids
    assert shown[0] == {
        "dialogue_id": ids[0],
        "part": "train",
        "domain": "unknown",
        "answered": False,
        "question": "Where is 0?",
        "response": "No idea.",
    }
    assert ids[0][:8] in program("show", device)[1]
    assert ids[0][:8] in program("why", device)[1]
    (decision,) = lines(program("why", device, ids[0][:8], "--json")[1])
    assert decision["dialogue_id"] == ids[0]
    code, _, err = program("forget", device, "")
    assert (code, err) == (3, "error: 5 dialogues match the identifier of 0 characters; give more of its characters\n")
    code, out, _ = program("forget", device, ids[0][:8])
    assert code == 0
    assert "florilegium device learn" in out
    assert lines(program("status", device, "--json")[1])[0]["round_due"] is True
    code, _, err = program("forget", device, ids[0][:8])
    assert code == 3
    assert f"no dialogue matches the identifier {ids[0][:8]}" in err


def test_what_is_asked_can_be_listed_and_answered(device: str, log: str, program: Program, tmp_path: Path) -> None:
    program("observe", device, log)
    assert program("annotate", device, "--list", "--json") == (0, "", "")
    code, out, _ = program("learn", device)
    assert code == 0
    assert "florilegium device annotate" in out
    asked = lines(program("annotate", device, "--list", "--json")[1])
    assert [row["question"] for row in asked] == [f"Where is {n}?" for n in range(5)]
    answers = [{"dialogue_id": str(row["dialogue_id"]), "verdict": "ideal", "ideal": "Here."} for row in asked]
    wrong = [answers[0], answers[1] | {"verdict": "wrong"}]
    code, _, err = program("annotate", device, write(tmp_path / "wrong.jsonl", wrong))
    assert (code, "wrong.jsonl, line 2 is no answer" in err) == (3, True)
    assert not any(row["answered"] for row in lines(program("show", device, "--json")[1])), "all lines or none"
    assert program("annotate", device, "--json")[0] == 2
    short = [answers[0] | {"dialogue_id": str(answers[0]["dialogue_id"])[:8]}, *answers[1:]]
    short.append(answers[0] | {"dialogue_id": "nowhere"})
    said = program("annotate", device, write(tmp_path / "answers.jsonl", short), "--json")
    assert (said[0], lines(said[1])) == (0, [{"stored": 5, "gone": 1}])
    assert all(row["answered"] for row in lines(program("show", device, "--json")[1]))
    (report,) = lines(program("learn", device, "--json")[1])
    assert (report["outcome"], report["originals"], report["drops"]) == ("no-holdout", 5, {})
    assert "holdout_share" in program("learn", device)[1]


def test_others_look_while_the_device_is_in_use(device: str, log: str, program: Program) -> None:
    program("observe", device, log)
    with Device.open(Path(device)):
        for command in (["status"], ["why"], ["show"], ["annotate", "--list"]):
            assert program(*command[:1], device, *command[1:])[0] == 0
        for command in (["chat"], ["rollback"], ["forget", "x"]):
            code, _, err = program(*command[:1], device, *command[1:])
            assert (code, err.count("\n")) == (5, 1)
            assert f"in use by process {os.getpid()}" in err


def test_a_chat_takes_no_command_for_a_question(device: str, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "/again", "/edit", "/edit There.", "/nonsense", "/learn")
    code, out, err = program("chat", device)
    assert code == 0
    assert "error" not in err
    assert out.count("/edit TEXT gives the answer") == 4
    assert "learning round 1" in out
    assert lines(program("status", device, "--json")[1])[0]["seen"] == 0


def test_a_chat_goes_on_after_an_error(device: str, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("the disk is full", "free some space")

    typed(monkeypatch, "Where is [it]? :smile:", "/again", "/edit", "/edit There :smile: [b].", "Where? \ud800", "")
    with monkeypatch.context() as patched:
        patched.setattr(Device, "regenerate", refuse)
        code, out, err = program("chat", device)
    assert code == 0
    assert [line.split(":")[0] for line in err.splitlines()] == ["error"] * 2
    assert "the disk is full" in err
    assert "noted" in out
    (held,) = lines(program("show", device, "--json")[1])
    assert (held["question"], held["answered"]) == ("Where is [it]? :smile:", True)
    assert "Where is [it]? :smile:" in program("show", device)[1]


def test_a_chat_says_when_a_round_is_due(
    tmp_path: Path, tiny_model_folder: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (f'model="{tiny_model_folder}"', *SMALL[:-1], "round_every=2")
    program("init", str(tmp_path / "d"), *(part for each in settings for part in ("--set", each)))
    typed(monkeypatch, "Where is my hat?", "Where is my coat?", "Where is my shoe?")
    assert program("chat", str(tmp_path / "d"))[1].count("a learning round is due: /learn starts it") == 1
    typed(monkeypatch)
    assert program("chat", str(tmp_path / "d"))[1].count("a learning round is due: /learn starts it") == 1


def test_an_answer_that_is_none_is_asked_for_again(
    device: str, program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [{"question": f"Where is {n}?", "response": response} for n, response in enumerate(("", "There.", "Here."))]
    program("observe", device, write(tmp_path / "log.jsonl", rows))
    program("learn", device)
    answers = iter(["", " ", "By the door.", "", "-"])
    monkeypatch.setattr("builtins.input", lambda: next(answers))
    code, out, err = program("annotate", device)
    assert code == 0
    assert err.count("is empty; give an ideal answer, or skip it") == 2
    assert out.count("You asked: ") == 3
    with Device.open(Path(device), read_only=True) as opened:
        said = [item.annotation for item in opened.buffer.dialogues()]
        assert [each and (each.verdict, each.ideal) for each in said] == [
            ("ideal", "By the door."),
            ("accept", None),
            ("skip", None),
        ]


def test_an_input_that_ends_leaves_the_rest_asked(
    device: str, log: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("observe", device, log)
    program("learn", device)
    typed(monkeypatch, "Here.")
    assert program("annotate", device)[0] == 0
    assert len(lines(program("annotate", device, "--list", "--json")[1])) == 4


def test_lexicons_are_copied_for_editing(tmp_path: Path, program: Program) -> None:
    assert program("init", str(tmp_path / "d"), "--with-lexicons")[0] == 0
    lexicons = sorted((tmp_path / "d" / "lexicons").glob("*.txt"))
    assert lexicons
    for path in lexicons:
        path.unlink()
    code, _, err = program("status", str(tmp_path / "d"))
    assert code == 3
    assert "holds no *.txt file" in err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "pip install '.[device]'"),
        (ModuleNotFoundError("No module named 'fcntl'", name="fcntl"), 2, "this system is not supported; use Linux"),
        (PermissionError(13, "Permission denied", "/x"), 5, "/x: Permission denied"),
        (torch.OutOfMemoryError("CUDA out of memory"), 6, "the memory is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …"), 6, "the memory is full"),
        (MemoryError(), 6, "the memory is full"),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    program: Program, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, words: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("florilegium.commands.device._open", fail)
    found, out, err = program("status", "d")
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert words in err


def test_the_simulation_has_an_extra_of_its_own() -> None:
    """In processes of their own: modules that are made anew would part from those that other tests hold."""
    probe = "import sys; sys.modules[{!r}] = None; sys.argv[1:] = ['demo']; from florilegium import cli; cli.main()"
    lacking, broken = (
        subprocess.run(
            [sys.executable, "-c", probe.format(module)], check=False, cwd=ROOT, capture_output=True, text=True
        )
        for module in ("scipy", "simulation.compare")
    )
    assert lacking.returncode == 2
    assert "'scipy' is not installed; in a clone of the project: pip install '.[simulation]'" in lacking.stderr
    # A module of our own that is missing is our mistake, and no advice on what to install.
    assert broken.returncode == 1
    assert "ModuleNotFoundError" in broken.stderr


def test_json_knows_no_numbers_that_are_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"loss": math.nan, "scores": {"nll": math.inf, "rouge1": 0.5}, "rows": (1, -math.inf)})
    assert json.loads(capsys.readouterr().out) == {
        "loss": None,
        "scores": {"nll": None, "rouge1": 0.5},
        "rows": [1, None],
    }


def test_what_is_printed_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[a]/x :smile: [/] " + "y" * 200
    console.print(text)
    assert capsys.readouterr().out == text + "\n"
