"""`florilegium simulate`, and `florilegium compare` with ways of sharing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from florilegium.cli import app
from florilegium.commands.simulate import _settings

RUNNER = CliRunner()
SMALL = ["--turns", "30", "--heldout", "4"]


@pytest.fixture
def settings(tmp_path: Path, tiny_model_folder: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(
        f'model = "{tiny_model_folder}"\nstages = 1\nrounds = 2\nlocal_steps = 1\nrank = 2\nmax_new_tokens = 4\n'
        "annotations_per_stage = 2\nholdout_share = 0.3\nbootstrap_draws = 100\nworkers = 1\n"
    )
    return path


def test_simulate_says_what_a_fleet_took(settings: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(
        app,
        ["simulate", "fedit", "--config", str(settings), "--devices", "5", "--cohort", "2", "--measured", "2",
         "--dropout", "0.2", *SMALL, "--out", str(tmp_path / "run"), "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert list(summary["arms"]) == ["none", "fedit"]
    budget = summary["arms"]["fedit"]["budget"]
    assert budget["fleet_hours"] > 0
    assert budget["uplink_bytes"] > 0
    assert "hours of the fleet" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(("options", "devices"), [([], 7), (["--devices", "5"], 5)])
def test_a_file_says_how_many_devices_unless_an_option_does(options: list[str], devices: int, tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text("[fleet]\ndevices = 7\n")
    given = int(options[1]) if options else None
    settings, active = _settings(path, given, {}, {"dropout": 0.2, "stragglers": None})
    assert (active, settings.cohort, settings.measured) == (devices, devices, 16)
    assert settings.fleet is not None
    assert (settings.fleet.devices, settings.fleet.faults.dropout) == (devices, 0.2)


def test_who_learns_alone_is_measured_everywhere() -> None:
    settings, active = _settings(None, 3, {"arms": ("none", "local")}, {})
    assert (active, settings.measured) == (3, None)


def test_compare_takes_ways_of_sharing(settings: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(
        app,
        ["compare", "--config", str(settings), "--arms", "none,local,ffa", "--users", "2", "--seeds", "1",
         "--unseen", "1",
         *SMALL, "--out", str(tmp_path / "run")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "ROUGE-1 − local" in result.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["users"] == 2
    assert summary["unseen"]["users"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "fedti"], "did you mean 'fedit'"),
        (["simulate", "--runtime", "rya"], "runtime"),
        (["simulate", "trust", "--runtime", "ray"], "names of its own"),
        (["simulate", "--runtime", "ray", "--dropout", "0.3"], "--dropout is of the simulated clock"),
        (["compare", "--arms", "none,local-improved", "--unseen", "2"], "--unseen is of fleets"),
        (["compare", "--arms", "all,none"], "'all' stands for a whole list of arms"),
        (["compare", "--arms", "local-improved,fedit"], "compare each kind in a run of its own"),
        (["compare", "--arms", "none,local-improvd"], "did you mean 'local-improved'"),
        (["compare", "--arms", "none,dual+fedti"], "did you mean 'dual+fedit'"),
        (["compare", "--arms", "fedit", "--config", "nowhere.toml"], "cannot be read"),
    ],
)
def test_a_mistake_is_said_in_one_line(arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
