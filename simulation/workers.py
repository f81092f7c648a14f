"""Play tasks in worker processes and stream their results back.

Every worker has one pipe to the parent and no other door: when the parent dies, the pipe breaks and the worker ends.
Workers compute on one thread each, and form sessions of their own: Ctrl-C is the parent's to answer. On Linux they are
forked from a process that has imported their modules and done nothing else (Python's own default from 3.14 on), so they
start at once and share that memory. What CUDA has started must not be forked: with it, and elsewhere, they are spawned.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Final, Generic, TypeVar

from florilegium.errors import FlorilegiumError

__all__ = ["Crew", "stream", "warm_up"]

Task = TypeVar("Task")
Result = TypeVar("Result")
_PATIENCE_SECONDS: Final = 10
_MODULES: Final = ("client.app", "simulation.play", "simulation.runtimes.crew", "simulation.sharing.play")


@dataclass(frozen=True, slots=True)
class _Part(Generic[Result]):
    result: Result


@dataclass(frozen=True, slots=True)
class _End:
    error: FlorilegiumError | None = None


def warm_up(*modules: str) -> None:
    """Import modules for all workers to come, beside what this process does; the first call in a process counts.

    A crew does so when it is made; a program that knows that it will make one does it before its own imports.

    Args:
        modules: their names; without any, all that this project's tasks need.
    """
    if sys.platform == "linux":
        multiprocessing.set_forkserver_preload(["simulation.forked", *(modules or _MODULES)])
        resource_tracker.ensure_running()  # else that is started next, and unblocks what is blocked here
        with _one_thread(), _deaf_to_interrupts():
            forkserver.ensure_running()


@functools.cache
def _context() -> ForkServerContext | SpawnContext:
    import torch  # which takes its time: by now something else has imported it

    if sys.platform == "linux" and not torch.cuda.is_available():
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


def stream(
    play: Callable[[Task], Iterator[Result]], tasks: Sequence[Task], *, workers: int
) -> Generator[Result, None, None]:
    """Yield the results of all tasks as they come.

    Args:
        play: yields the results of one task; a module-level function, since workers import it.
        tasks: what to play, in the order to start it.
        workers: processes; with 1, this process does the work itself.

    Raises:
        FlorilegiumError: what a task raised, or a worker that died.
    """
    if workers == 1:
        for task in tasks:
            yield from play(task)
        return
    waiting = deque(tasks)
    with closing(Crew(play, workers=min(workers, len(tasks)))) as crew:
        while waiting or crew.is_busy:
            while waiting and crew.has_room:
                crew.send(waiting.popleft())
            yield from crew.results()


class Crew(Generic[Task, Result]):
    """Workers that wait for tasks.

    Args:
        play: yields the results of one task; a module-level function, since workers import it.
        workers: processes.
        imports: modules that tasks need beside that of `play`.
    """

    def __init__(self, play: Callable[[Task], Iterator[Result]], *, workers: int, imports: Sequence[str] = ()) -> None:
        if isinstance(_context(), ForkServerContext):
            warm_up(play.__module__, *imports)
        self._free = [_Worker(play) for _ in range(workers)]
        self._busy: dict[Connection, _Worker[Task, Result]] = {}

    @property
    def has_room(self) -> bool:
        """Whether a worker is free."""
        return bool(self._free)

    @property
    def is_busy(self) -> bool:
        """Whether a task is under way."""
        return bool(self._busy)

    def send(self, task: Task) -> None:
        """Let a free worker begin a task."""
        worker = self._free.pop()
        self._busy[worker.pipe] = worker
        worker.send(task)

    def results(self, seconds: float | None = None) -> Iterator[Result]:
        """Yield what has come by the time that anything has, or that so many seconds are over.

        Raises:
            FlorilegiumError: what a task raised, or a worker that died.
        """
        for pipe in wait(list(self._busy), seconds):
            assert isinstance(pipe, Connection)
            message = self._busy[pipe].receive()
            if isinstance(message, _Part):
                yield message.result
            elif message.error:
                raise message.error
            else:
                self._free.append(self._busy.pop(pipe))

    def close(self) -> None:
        """End all workers, those at work too."""
        for worker in self._free:
            worker.dismiss(idle=True)
        for worker in self._busy.values():
            worker.dismiss(idle=False)
        for worker in [*self._free, *self._busy.values()]:
            worker.stop()


class _Worker(Generic[Task, Result]):
    def __init__(self, play: Callable[[Task], Iterator[Result]]) -> None:
        context = _context()
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, play), daemon=True)
        with _one_thread():
            self._process.start()
        theirs.close()

    def send(self, task: Task) -> None:
        with self._alive():
            self.pipe.send(task)

    def receive(self) -> _Part[Result] | _End:
        with self._alive():
            message = self.pipe.recv()
        assert isinstance(message, _Part | _End)
        return message

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Turn a pipe that breaks, or ends within a message, into the news that the worker died."""
        try:
            yield
        except (EOFError, OSError):
            self._process.join(timeout=5)
            raise FlorilegiumError(
                f"a worker process ended with exit code {self._process.exitcode}",
                "-9 mostly means that memory ran out: use fewer workers; the same command goes on from here",
            ) from None

    def dismiss(self, *, idle: bool) -> None:
        """Let an idle worker end by itself, and tell a busy one to end."""
        self.pipe.close()
        if not idle:
            self._process.terminate()

    def stop(self) -> None:
        """Wait until the worker has cleaned up behind itself."""
        self._process.join(timeout=_PATIENCE_SECONDS)
        self._process.kill()
        self._process.join()


class _one_thread:  # noqa: N801 (a context manager reads like a function)
    """Let processes that start inside begin with one thread for arithmetic: set before their libraries load."""

    _NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._NAMES}
        os.environ.update(dict.fromkeys(self._NAMES, "1"))

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let a process that starts inside never see Ctrl-C, nor those that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, play: Callable[[Task], Iterator[Result]]) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # an orderly end: temporary folders are removed
    try:
        while True:
            task = pipe.recv()
            pipe.send(_play(pipe, play, task))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone


def _play(pipe: Connection, play: Callable[[Task], Iterator[Result]], task: Task) -> _End:
    try:
        for result in play(task):
            pipe.send(_Part(result))
    except FlorilegiumError as error:
        return _End(error)
    except BrokenPipeError:
        raise
    except Exception as error:
        # The message of an unforeseen error may quote a text; its kind and place do not.
        places = "".join(traceback.format_tb(error.__traceback__))
        return _End(FlorilegiumError(f"a worker failed with {type(error).__name__} at\n{places}", "please report this"))
    return _End()
