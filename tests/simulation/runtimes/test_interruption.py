"""A run of many processes that is interrupted, or whose caller is killed, leaves none of them behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulation.runtimes.fleet import processes_in, record_fleet

ROOT = Path(__file__).resolve().parents[3]

RUN = """
import sys
from pathlib import Path
from simulation.runtimes.deployment import run_deployment
from simulation.runtimes.ray import run_ray

if __name__ == "__main__":
    run = {"deployment": run_deployment, "ray": run_ray}[sys.argv[1]]
    run(Path(sys.argv[2]), 1, run_config={}, directory=Path(sys.argv[3]))
"""


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize(
    ("runtime", "worker"), [("ray", "ray::"), ("ray", "ray::ClientAppActor"), ("deployment", "flwr-serverapp")]
)
def test_no_process_is_left(
    runtime: str, worker: str, number: signal.Signals, tmp_path: Path, tiny_model_folder: Path
) -> None:
    (tmp_path / "temporary").mkdir()
    (tmp_path / "run.py").write_text(RUN)
    fleet = record_fleet(tmp_path / "fleet", tiny_model_folder)
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "run.py"), runtime, str(fleet), str(tmp_path / "run")]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL) as run:
        wait_until(
            lambda: run.poll() is not None or any(worker in title for title in processes_in(tmp_path).values()),
            seconds=600,
        )
        assert run.poll() is None
        assert len(processes_in(tmp_path)) > 3
        run.send_signal(number)
        run.wait(timeout=120)
    wait_until(lambda: not processes_in(tmp_path), seconds=60)  # Flower's look for their parents now and then
    if number == signal.SIGINT:
        assert not list((tmp_path / "temporary").iterdir())
