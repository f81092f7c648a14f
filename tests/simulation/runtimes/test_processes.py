"""Child processes end with their block, whatever ends it, and say why they failed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simulation.runtimes import processes as module
from simulation.runtimes.processes import Processes, RunFailedError, quiet_environment

# Ignores the polite signal, and has two children, one of which has moved to a session of its own.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
child, apart = subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)
print(os.getpid(), child.pid, apart.pid, flush=True)
time.sleep(600)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stubborn_process_and_its_children_end_when_the_block_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.2)
    pids: list[int] = []

    def start_and_stop() -> None:
        with Processes(tmp_path) as processes:
            processes.start("stubborn", python(STUBBORN), quiet_environment())
            wait_until(lambda: len(processes.log("stubborn").read_text().split()) == 3)
            pids.extend(map(int, processes.log("stubborn").read_text().split()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_and_stop()
    assert all(pid > 1 for pid in pids)
    assert not any(map(is_alive, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot be asked")
def test_a_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = f"""
import os, signal, sys
from pathlib import Path
from simulation.runtimes.processes import Processes, quiet_environment
processes = Processes(Path({str(tmp_path)!r}))
code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
processes.start("child", [sys.executable, "-c", code], quiet_environment())
while not processes.log("child").read_text():
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run(python(parent), check=False, timeout=60)
    pid = int((tmp_path / "child.log").read_text())
    wait_until(lambda: not is_alive(pid), seconds=5)


def test_lines_come_as_they_are_written_and_are_kept(tmp_path: Path) -> None:
    code = "import sys; print('one'); print('two', file=sys.stderr)"
    with Processes(tmp_path) as processes:
        lines = processes.lines("run", python(code), quiet_environment())
        assert list(lines) == ["one", "two"]
        assert processes.log("run").read_text() == "one\ntwo\n"
        processes.check()


def test_a_failed_run_is_named_with_its_last_line_and_its_log(tmp_path: Path) -> None:
    with (
        Processes(tmp_path) as processes,
        pytest.raises(RunFailedError, match=r"^run failed: round 3 is lost; more is in .*run\.log$") as caught,
    ):
        list(processes.lines("run", python("raise SystemExit('round 3 is lost\\n')"), quiet_environment()))
    assert caught.value.exit_code == 8


def test_frames_around_an_error_are_not_its_message(tmp_path: Path) -> None:
    code = "print('╭─ Error ─╮\\n│ no link │\\n╰─────────╯'); raise SystemExit(1)"
    with Processes(tmp_path) as processes, pytest.raises(RunFailedError, match=r"^run failed: no link; "):
        list(processes.lines("run", python(code), quiet_environment()))


def test_a_run_that_fails_for_a_server_s_death_names_the_server(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("server", python("raise SystemExit(3)"), quiet_environment())
        later = python("import time; time.sleep(2); raise SystemExit('no answer')")
        with pytest.raises(RunFailedError, match=r"^server ended with exit code 3; "):
            list(processes.lines("run", later, quiet_environment()))


def test_a_server_that_ends_is_noticed(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("server", python("raise SystemExit(3)"), quiet_environment())

        def is_noticed() -> bool:
            try:
                processes.check()
            except RunFailedError as error:
                return str(error).startswith("server ended with exit code 3; its log ")
            return False

        wait_until(is_noticed)


def test_the_environment_is_quiet_and_finds_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = quiet_environment(FLWR_HOME="there")
    assert (environment["FLWR_TELEMETRY_ENABLED"], environment["FLWR_HOME"]) == ("0", "there")
    assert environment["OMP_NUM_THREADS"] == "1"
    assert quiet_environment(threads=4)["OMP_NUM_THREADS"] == "4"
    assert any((Path(folder) / "flwr").exists() for folder in environment["PATH"].split(os.pathsep))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert quiet_environment(threads=4)["OMP_NUM_THREADS"] == "2"
