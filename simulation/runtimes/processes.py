"""Child processes that end when their block does: after success, an error or Ctrl-C, and when their parent is killed.

Each leads a session of its own, so that Ctrl-C reaches the parent alone, which then ends them in order. Should the
parent be killed, Linux ends them; Flower's own children watch for the death of theirs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import psutil  # type: ignore[import-untyped]

from client.durable import make_directory, storage_errors
from florilegium.errors import FlorilegiumError

__all__ = ["Processes", "RunFailedError", "end_with_parent", "quiet_environment"]

_PATIENCE_SECONDS: Final = 10.0  # Flower's servers say goodbye to each other before they end
_POLL_SECONDS: Final = 0.01
_SET_DEATH_SIGNAL: Final = 1
_PRCTL: Final = getattr(ctypes.CDLL(None), "prctl", None)  # Linux has it


class RunFailedError(FlorilegiumError):
    """Report a run in other processes that did not come to its end."""

    exit_code = 8


def quiet_environment(*, threads: int = 1, **more: str) -> dict[str, str]:
    """Return this process's environment with all that libraries would send, look up or install switched off.

    Args:
        threads: for arithmetic, where OMP_NUM_THREADS does not say: many processes share one machine.
        more: variables to add.
    """
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": path,
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        **more,
    }


class Processes:
    """A block's child processes.

    Args:
        logs: a folder; what a process writes goes to `name.log` in it.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, logs: Path) -> None:
        with storage_errors(logs):
            make_directory(logs)
        self._logs = logs
        self._running: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a process that stays."""
        with self.log(name).open("w") as log:
            self._running[name] = _spawn(command, environment, log.fileno())

    def lines(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
        """Run a process to its end, and yield what it writes line by line.

        Raises:
            RunFailedError: it ended with an error, and its last line of words is the message; or a process that should
                stay has ended, which is why.
        """
        last = ""
        process = self._running[name] = _spawn(command, environment, subprocess.PIPE)
        assert process.stdout is not None
        with self.log(name).open("w") as log, process.stdout:
            for line in process.stdout:
                log.write(line)
                log.flush()
                last = line.strip(" │\n") if any(map(str.isalpha, line)) else last  # Flower frames what it says
                yield line.rstrip("\n")
        process.wait()
        del self._running[name]
        _kill_session(process)
        if process.returncode != 0:
            self.check()
            said = last or f"exit code {process.returncode}"
            raise RunFailedError(f"{name} failed: {said}", f"more is in {self.log(name)}")

    def check(self) -> None:
        """Look whether all are there that should stay.

        Raises:
            RunFailedError: one has ended.
        """
        for name, process in self._running.items():
            if process.poll() is not None:
                raise RunFailedError(
                    f"{name} ended with exit code {process.returncode}", f"its log {self.log(name)} says why"
                )

    def log(self, name: str) -> Path:
        """Return the file of what a process writes."""
        return self._logs / f"{name}.log"

    def stop(self) -> None:
        """End all processes and their families, also those that moved to sessions of their own."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        processes = list(self._running.values())
        families = [relative for process in processes for relative in _family(process)]
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            _kill_session(process)
        for relative in families:
            with suppress(psutil.NoSuchProcess):
                relative.kill()
        while any(map(_lives, families)):  # a folder that they write to may be removed next
            time.sleep(_POLL_SECONDS)
        self._running.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def _spawn(command: Sequence[str], environment: Mapping[str, str], output: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - one call into the C library takes no lock
    )


def end_with_parent() -> None:
    """Let this process be told to end when its parent has ended, on Linux."""
    if _PRCTL is not None:
        _PRCTL(_SET_DEATH_SIGNAL, signal.SIGTERM)


def _family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return what a process has started, and what that has."""
    try:
        return list(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # not every container's first process buries the dead
    except psutil.NoSuchProcess:
        return False


def _kill_session(process: subprocess.Popen[str]) -> None:
    """Kill a process and its children, if any are left."""
    with suppress(ProcessLookupError, PermissionError):  # all are gone; macOS calls zombies forbidden
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
