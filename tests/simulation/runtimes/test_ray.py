"""The Ray runtime: what it refuses, and that the death of a worker changes nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from client import app as client_app
from florilegium.errors import ConfigError, StorageError
from server import app as server_app
from simulation.runtimes.inprocess import run_in_process
from simulation.runtimes.processes import RunFailedError
from simulation.runtimes.ray import _first_cause, run_ray
from tests.simulation.runtimes.fleet import DEVICES, assert_alike, outcome, processes_in, record_fleet, write_config


def test_a_run_that_cannot_be_is_refused_before_anything_starts(tmp_path: Path, tiny_model_folder: Path) -> None:
    directory = tmp_path / "run"
    with pytest.raises(StorageError, match="make the fleet first"):
        run_ray(tmp_path / "nowhere", DEVICES, run_config={}, directory=directory)
    fleet = record_fleet(tmp_path / "fleet", tiny_model_folder)
    with pytest.raises(ConfigError, match="devices must be >= 1, got 0"):
        run_ray(fleet, 0, run_config={}, directory=directory)
    with pytest.raises(ConfigError, match="cpus_per_client must be > 0 and at most 2, got 4"):
        run_ray(fleet, DEVICES, run_config={}, directory=directory, cpus_per_client=4, cpus=2)
    assert not directory.exists()


@pytest.mark.parametrize(
    ("cause", "line"),
    [
        (OSError("no room\nfor sockets"), "OSError: no room for sockets"),
        (ConfigError("rounds is 0", "give at least one"), "rounds is 0; give at least one"),
    ],
)
def test_a_failure_is_named_by_what_it_began_with(cause: Exception, line: str) -> None:
    def end() -> None:
        try:
            raise RuntimeError("crashed") from cause
        except RuntimeError as crash:
            raise RuntimeError("ending") from crash

    with pytest.raises(RuntimeError, match="ending") as caught:
        end()
    assert _first_cause(caught.value) == line


class Killer(threading.Thread):
    """Kills one worker that is busy with a device, among the processes that work in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.killed = False
        self.over = False

    def run(self) -> None:
        while not self.killed and not self.over:
            for number, title in processes_in(self._folder).items():
                if title.startswith("ray::ClientAppActor.run"):  # Ray writes what a worker does into its title
                    os.kill(number, signal.SIGKILL)
                    self.killed = True
                    return
            time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_worker_s_death_in_a_round_changes_nothing(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, tiny_model_folder)
    expected = record_fleet(tmp_path / "whole", tiny_model_folder)
    run_config = {"config": str(config), "directory": str(tmp_path / "run-whole")}
    run_in_process(server_app.app, client_app.app, expected, DEVICES, run_config=run_config)

    fleet = record_fleet(tmp_path / "hurt", tiny_model_folder)
    monkeypatch.chdir(tmp_path)
    killer = Killer(tmp_path)
    killer.start()
    try:
        run_ray(fleet, DEVICES, run_config={"config": str(config)}, directory=tmp_path / "run-hurt")
    finally:
        killer.over = True
        killer.join()
    assert killer.killed
    assert_alike(outcome(fleet, tmp_path / "run-hurt"), outcome(expected, tmp_path / "run-whole"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_server_s_error_is_told(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = write_config(tmp_path, tiny_model_folder, rounds=0)
    fleet = record_fleet(tmp_path / "fleet", tiny_model_folder)
    with pytest.raises(RunFailedError, match="rounds = 0 is refused"):
        run_ray(fleet, DEVICES, run_config={"config": str(config)}, directory=tmp_path / "run")
