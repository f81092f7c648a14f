"""A whole fleet, server and devices, that is killed again and again ends as if nobody had touched it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulation.sharing.compare import run_sharing
from tests.simulation.sharing.test_sharing import USERS, make_config, read_records, without_seconds

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys
from pathlib import Path
from tests.simulation.sharing.test_kills import play

play(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def play(model: Path, run: Path) -> None:
    config = make_config(model, arms=("local", "fedit", "dual+fedsa"), rounds=12, evaluate_every=6)
    run_sharing({0: USERS[0]}, config, run)


def start(model: Path, run: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(model), str(run)], env=environment)


def wait_for_work(process: subprocess.Popen[bytes], run: Path) -> bool:
    """Wait until the run's folder is taken by this process; return False if the process has ended."""
    before = (run / "versions.json").read_bytes() if (run / "versions.json").exists() else b""
    while process.poll() is None:
        if (run / "versions.json").exists() and (run / "versions.json").read_bytes() != before:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_nothing(kills: int, tmp_path: Path, tiny_model_folder: Path) -> None:
    began = time.monotonic()
    play(tiny_model_folder, tmp_path / "whole")
    whole = time.monotonic() - began
    draw, killed = random.Random(kills), 0
    while killed < kills:
        process = start(tiny_model_folder, tmp_path / "cut")
        if not wait_for_work(process, tmp_path / "cut"):
            assert process.returncode == 0, "it ended before all kills: it was faster this time"
            break
        time.sleep(draw.uniform(0, 2 * whole / (kills + 1)))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed >= kills // 2
    play(tiny_model_folder, tmp_path / "cut")
    assert without_seconds(tmp_path / "cut") == without_seconds(tmp_path / "whole")
    assert {record.round for record in read_records(tmp_path / "cut")} == {0, 6, 12}
