"""Workers stream all results, and end with their parent, on errors and on death."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from florilegium.errors import FlorilegiumError, ModelError
from simulation.workers import stream

ROOT = Path(__file__).parents[2]
IMPORTS = """
import os, signal, sys, time
from florilegium.errors import ModelError
from simulation.workers import stream
"""


def _count(task: int) -> Iterator[tuple[int, int]]:
    for part in range(task):
        yield task, part


def test_one_worker_is_this_process_and_keeps_the_order() -> None:
    assert list(stream(_count, [2, 0, 1], workers=1)) == [(2, 0), (2, 1), (1, 0)]


def _script(body: str) -> str:
    # Spawned workers import the module that defines the function, so it has to be a real file's.
    return f"{IMPORTS}{body}"


def _run(tmp_path: Path, body: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "script.py"
    path.write_text(_script(body))
    return subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_several_workers_give_every_result_once(tmp_path: Path) -> None:
    done = _run(
        tmp_path,
        """
def play(task):
    for part in range(task):
        yield task, part, os.environ["OMP_NUM_THREADS"]

if __name__ == "__main__":
    print(sorted(stream(play, [3, 1, 2, 0], workers=2)), os.environ.get("OMP_NUM_THREADS"))
""",
    )
    assert done.stdout.strip() == str(sorted((t, p, "1") for t in (3, 1, 2) for p in range(t))) + " " + str(
        os.environ.get("OMP_NUM_THREADS")
    )


def test_an_error_of_a_task_is_raised_in_the_parent(tmp_path: Path) -> None:
    done = _run(
        tmp_path,
        """
def play(task):
    yield task
    raise ModelError("the model is gone", "bring it back")

if __name__ == "__main__":
    try:
        for part in stream(play, [1, 2], workers=2):
            pass
    except ModelError as error:
        print(error)
""",
    )
    assert done.stdout.strip() == "the model is gone; bring it back"


def test_an_unforeseen_error_is_reported_without_its_message(tmp_path: Path) -> None:
    done = _run(
        tmp_path,
        """
def play(task):
    raise ValueError("SECRET-CANARY")
    yield

if __name__ == "__main__":
    list(stream(play, [1, 2], workers=2))
""",
    )
    assert "ValueError" in done.stderr
    assert "in play" in done.stderr
    assert "CANARY" not in done.stdout + done.stderr.replace('raise ValueError("SECRET-CANARY")', "")


def test_a_worker_that_dies_is_reported(tmp_path: Path) -> None:
    done = _run(
        tmp_path,
        """
def play(task):
    yield task
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    list(stream(play, [1, 2], workers=2))
""",
    )
    assert "ended with exit code -9" in done.stderr


def test_a_worker_that_dies_before_it_reads_its_task_is_reported(tmp_path: Path) -> None:
    done = _run(
        tmp_path,
        """
if __name__ != "__main__":
    os._exit(3)

def play(task):
    yield len(task)

if __name__ == "__main__":
    list(stream(play, [b"more than a pipe holds" * 10**6] * 2, workers=2))
""",
    )
    assert "FlorilegiumError: a worker process ended with exit code 3" in done.stderr
    assert "BrokenPipeError" not in done.stderr


def test_workers_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(
        _script(
            """
def play(task):
    while True:
        time.sleep(0.05)
        yield os.getpid()

if __name__ == "__main__":
    for pid in stream(play, [1, 2], workers=2):
        print(pid, flush=True)
"""
        )
    )
    parent = subprocess.Popen(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pids: set[int] = set()
    while len(pids) < 2:
        pids.add(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def test_ctrl_c_ends_workers_and_they_clean_up(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(
        IMPORTS
        + f"""
import signal
import tempfile

def play(task):
    with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}, prefix="private-"):
        yield task
        time.sleep(600)

if __name__ == "__main__":
    # A shell's background jobs begin with Ctrl-C ignored, and so would this one under them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for task in stream(play, [1, 2], workers=2):
            print(task, flush=True)
    except KeyboardInterrupt:
        print("stopped")
"""
    )
    parent = subprocess.Popen(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert {parent.stdout.readline(), parent.stdout.readline()} == {"1\n", "2\n"}
    assert len(list(tmp_path.glob("private-*"))) == 2
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to the whole group
    rest, errors = parent.communicate(timeout=120)
    assert (rest, errors, parent.returncode) == ("stopped\n", "", 0)
    assert not list(tmp_path.glob("private-*"))


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are spawned")


@linux
def test_workers_are_forked_from_a_process_that_has_imported_for_them(tmp_path: Path) -> None:
    (tmp_path / "slow_library.py").write_text("import os\nPID = os.getpid()\n")
    done = _run(
        tmp_path,
        """
from simulation.workers import warm_up

def play(task):
    import slow_library
    yield slow_library.PID == os.getppid() != task, signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])

if __name__ == "__main__":
    warm_up("slow_library")
    print(*stream(play, [os.getpid()] * 2, workers=2), signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
""",
    )
    assert done.stdout.strip() == "(True, True) (True, True) False", done.stderr


@linux
def test_a_process_that_imports_for_workers_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "slow_library.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    done = _run(
        tmp_path,
        """
from simulation.workers import warm_up

if __name__ == "__main__":
    warm_up("slow_library")
    time.sleep(2)
""",
    )  # the pipe that is read to its end is that process's as well
    assert (done.stdout, done.returncode) == ("begun\n", 0)


def test_where_there_is_cuda_workers_are_spawned(tmp_path: Path) -> None:
    done = _run(
        tmp_path,
        """
import torch

def play(task):
    yield os.getppid() == task

if __name__ == "__main__":
    torch.cuda.is_available = lambda: True
    print(*stream(play, [os.getpid()] * 2, workers=2))
""",
    )
    assert done.stdout.strip() == "True True", done.stderr


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_errors_cross_the_pipe_whole() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ModelError("value", "remedy")))
    assert isinstance(error, FlorilegiumError)
    assert (str(error), error.exit_code) == ("value; remedy", 4)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_tasks_need_no_workers(workers: int) -> None:
    assert list(stream(_count, [], workers=workers)) == []
