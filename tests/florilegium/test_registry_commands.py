"""`florilegium registry`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from florilegium.cli import app
from server.registry import Registry
from strategies.rule import Loaded
from tests.strategies.rules.fleet import adapter

RUNNER = CliRunner()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A registry of three rounds."""
    registry = Registry(tmp_path / "server" / "registry")
    for number in (1, 2, 3):
        registry.save(
            Loaded(adapter=adapter(3, number, blank=False)),
            scale=2.0,
            metrics={"round": number, "taken": 8.0, "failed": 0.0, "improvement": number / 8, "uplink_bytes": 12345.0},
        )
    return registry.directory


def run(*arguments: str | Path) -> str:
    result = RUNNER.invoke(app, ["registry", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_shows_rounds_and_what_is_served(directory: Path) -> None:
    heading, *lines = [line for line in run("list", directory).splitlines() if any(map(str.isalnum, line))]
    for word in ("version", "served", "round", "taken", "improvement", "uplink"):
        assert word in heading
    assert "failed" not in heading, "it is zero everywhere"
    *rows, state = [line for line in lines if any(map(str.isdigit, line))]
    assert len(rows) == 3
    assert ["yes" in row for row in rows] == [False, False, True]
    assert all("12,345" in row for row in rows)
    assert "0.375" in rows[2]
    assert state == "version 3 is served, until the next version comes"


def test_list_for_programs(directory: Path) -> None:
    listed = json.loads(run("list", directory, "--json"))
    assert (listed["served"], listed["pinned"]) == (3, False)
    assert [version["version"] for version in listed["versions"]] == [1, 2, 3]
    newest = listed["versions"][-1]
    assert newest["metrics"]["improvement"] == 0.375
    assert (Path(newest["path"]) / "shared" / "adapter_model.safetensors").is_file()


def test_promote_and_roll_back_move_what_is_served(directory: Path) -> None:
    registry = Registry(directory)
    stays = "is served, until the newest version is promoted"
    assert f"version 1 {stays}" in run("promote", directory, "1")
    assert (registry.current, registry.is_pinned) == (1, True)
    assert f"version 3 {stays}" in run("roll-back", directory)
    assert "yes" in next(line for line in run("list", directory).splitlines() if " 3 " in line)
    assert json.loads(run("promote", directory, "3", "--json")) == {"served": 3, "pinned": False}
    for served in (2, None):
        assert json.loads(run("roll-back", directory, "--json")) == {"served": served, "pinned": True}
        assert registry.current == served
    assert f"the bare base model {stays}" in run("list", directory)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["list", "nowhere"], 3, "nowhere is no registry"),
        (["promote", "nowhere", "1"], 3, "nowhere is no registry"),
        (["roll-back", "nowhere"], 3, "nowhere is no registry"),
        (["promote", "DIR", "9"], 5, "no adapter version 9; it holds [1, 2, 3]"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    arguments: list[str], code: int, message: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory.parent)
    result = RUNNER.invoke(app, ["registry", *(str(directory) if each == "DIR" else each for each in arguments)])
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
    assert message in result.stderr
    assert not Path("nowhere").exists()
    assert Registry(directory).current == 3


def test_nothing_to_roll_back_is_said(directory: Path) -> None:
    for _ in range(3):
        run("roll-back", directory)
    result = RUNNER.invoke(app, ["registry", "roll-back", str(directory)])
    assert result.exit_code == 5
    assert "serves no version; there is nothing to roll back" in result.stderr


def test_a_damaged_pointer_is_named(directory: Path) -> None:
    (directory / "current.json").write_text("{")
    result = RUNNER.invoke(app, ["registry", "list", str(directory)])
    assert (result.exit_code, result.stderr.count("\n")) == (5, 1)
    assert "current.json cannot be read" in result.stderr


@pytest.mark.parametrize("command", ["list", "promote", "roll-back"])
def test_help_has_an_example(command: str) -> None:
    assert f"Example: florilegium registry {command} runs/" in " ".join(run(command, "--help").split())
