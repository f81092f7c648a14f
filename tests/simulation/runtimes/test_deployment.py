"""The deployment runtime: what it refuses, that an error is told, and that nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from florilegium.errors import ConfigError, StorageError
from simulation.runtimes.deployment import run_deployment
from simulation.runtimes.processes import RunFailedError
from tests.simulation.runtimes.fleet import record_fleet, write_config


def test_a_run_that_cannot_be_is_refused_before_anything_starts(tmp_path: Path, tiny_model_folder: Path) -> None:
    directory = tmp_path / "run"
    with pytest.raises(StorageError, match="make the fleet first"):
        run_deployment(tmp_path / "nowhere", 1, run_config={}, directory=directory)
    fleet = record_fleet(tmp_path / "fleet", tiny_model_folder)
    with pytest.raises(ConfigError, match="devices must be >= 1, got 0"):
        run_deployment(fleet, 0, run_config={}, directory=directory)
    assert not directory.exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_server_s_error_is_told_and_nothing_is_left(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    config = write_config(tmp_path, tiny_model_folder, rounds=0)
    fleet = record_fleet(tmp_path / "fleet", tiny_model_folder)
    with pytest.raises(RunFailedError, match="rounds = 0 is refused"):
        run_deployment(fleet, 1, run_config={"config": str(config)}, directory=tmp_path / "run")
    assert not list((tmp_path / "temporary").iterdir())
