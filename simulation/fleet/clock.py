"""The clock: how long a round of a fleet takes, who is heard in it, and what it spends; no second of it is waited for.

    a synchronous round ends when `enough` replies are in, or all that were asked for, or at the deadline
    (over-selection and the abandoned round: Bonawitz et al. 2019, arXiv 1902.01046, section 2)

Who is not heard works in vain: a late device finishes, since nobody tells it to stop, and all it spent is wasted. In
asynchronous rounds (FedBuff, arXiv 2106.06639) tasks overlap, and a queue says whose reply is next.

With a deadline, the server waits for a device that dropped out until then, because silence tells it nothing. Without
one it would wait for ever: the round then ends when the last device has replied or stopped.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from florilegium.errors import ConfigError
from simulation.fleet.availability import HORIZON_SECONDS, Trace
from simulation.fleet.tasks import Task, TaskRun, Usage, run_task, total_usage

__all__ = ["ArrivalQueue", "RoundOutcome", "RoundRules", "play_round", "wait_until_online"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRules:
    """When a synchronous round ends, and when it counts.

    Attributes:
        deadline_seconds: how long the server waits at most; infinite for as long as it takes.
        enough: replies with which the round ends at once; None for all.
        minimum: replies without which it is abandoned.

    Raises:
        ConfigError: a value is out of its range, or `minimum` is more than `enough`.
    """

    deadline_seconds: float = math.inf
    enough: int | None = None
    minimum: int = 1

    def __post_init__(self) -> None:
        if not self.deadline_seconds > 0:
            raise ConfigError(f"deadline_seconds must be > 0, got {self.deadline_seconds}", "inf is no deadline")
        if self.enough is not None and self.enough < 1:
            raise ConfigError(f"enough must be >= 1, got {self.enough}", "None waits for all replies")
        most = math.inf if self.enough is None else self.enough
        if not 1 <= self.minimum <= most:
            raise ConfigError(f"minimum must be >= 1 and <= enough, got {self.minimum}", "1 takes what comes")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOutcome:
    """What came of a synchronous round.

    Attributes:
        started_at: when the tasks were given out, seconds.
        ended_at: when the server went on.
        replies: those heard, by arrival.
        missed: those late or lost, by device.
        succeeded: whether there were as many replies as the rules ask for at least.
    """

    started_at: float
    ended_at: float
    replies: tuple[TaskRun, ...]
    missed: tuple[TaskRun, ...]
    succeeded: bool

    @property
    def arrived(self) -> tuple[int, ...]:
        """The devices heard, by arrival."""
        return tuple(run.device for run in self.replies)

    @property
    def duration_seconds(self) -> float:
        """How long the round took."""
        return self.ended_at - self.started_at

    @property
    def used(self) -> Usage:
        """What all devices spent, those in vain as well."""
        return total_usage(run.usage for run in self.replies + self.missed)

    @property
    def wasted(self) -> Usage:
        """What was spent on replies that nobody heard; all of it if the round was abandoned."""
        return total_usage(run.usage for run in self.missed) if self.succeeded else self.used


def play_round(tasks: Iterable[Task], *, start: float, rules: RoundRules | None = None) -> RoundOutcome:
    """Give out tasks at `start` and see who is heard.

    Args:
        tasks: of different devices.
        start: seconds.
        rules: when the round ends; by default when all have answered.

    Raises:
        ConfigError: there is no task, a device has two, or `start` is not finite.
    """
    rules = rules or RoundRules()
    runs = [run_task(task, start) for task in tasks]
    if not runs or len({run.device for run in runs}) < len(runs):
        raise ConfigError("a round needs one task each of at least one device", "select devices without replacement")
    wanted = len(runs) if rules.enough is None else min(rules.enough, len(runs))
    deadline = start + rules.deadline_seconds
    in_time = sorted((run for run in runs if run.arrived and run.arrives_at <= deadline), key=_by_arrival)
    replies = tuple(in_time[:wanted])
    heard = {run.device for run in replies}
    return RoundOutcome(
        started_at=start,
        ended_at=_end(runs, replies, wanted, deadline),
        replies=replies,
        missed=tuple(sorted((run for run in runs if run.device not in heard), key=lambda run: run.device)),
        succeeded=len(replies) >= rules.minimum,
    )


def wait_until_online(traces: Sequence[Trace], needed: int, start: float) -> float:
    """Return the earliest time >= `start` at which `needed` devices are online at once.

    Returns:
        Seconds; infinite if that is more than a year off.
    """
    if needed <= 0:
        return start
    intervals = [trace.intervals(start, start + HORIZON_SECONDS) for trace in traces]
    firsts = ((next(each, None), position) for position, each in enumerate(intervals))
    coming = [(first, position) for first, position in firsts if first is not None]
    heapq.heapify(coming)
    online: list[float] = []
    while coming:
        (begins, ends), position = coming[0]
        while online and online[0] <= begins:
            heapq.heappop(online)
        heapq.heappush(online, ends)
        if len(online) >= needed:
            return begins
        following = next(intervals[position], None)
        if following is None:
            heapq.heappop(coming)
        else:
            heapq.heapreplace(coming, (following, position))
    return math.inf


class ArrivalQueue:
    """The tasks under way in asynchronous rounds, by when they end.

    Attributes:
        now: when the last one ended, seconds; nothing may be given out before.
    """

    def __init__(self, start: float = 0.0) -> None:
        self.now = start
        self._heap: list[tuple[float, int, TaskRun]] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_at(self) -> float:
        """When the next task ends, seconds; infinite if none is under way."""
        return self._heap[0][0] if self._heap else math.inf

    def send(self, task: Task, at: float) -> TaskRun:
        """Give out a task.

        Raises:
            ConfigError: `at` is in the past, or not finite.
        """
        if at < self.now:
            raise ConfigError(f"at must be >= {self.now}, the time of the last arrival, got {at}")
        run = run_task(task, at)
        # Of tasks that end together, the one of the lower device index goes first.
        heapq.heappush(self._heap, (run.stops_at, run.device, run))
        return run

    def pop(self) -> TaskRun:
        """Go on to the end of the next task: its reply, or, where that never arrives, its device's loss.

        Raises:
            ConfigError: no task is under way.
        """
        if not self._heap:
            raise ConfigError("no task is under way", "send one before the next arrival")
        self.now, _, run = heapq.heappop(self._heap)
        return run


def _by_arrival(run: TaskRun) -> tuple[float, int]:
    return run.arrives_at, run.device


def _end(runs: Sequence[TaskRun], replies: Sequence[TaskRun], wanted: int, deadline: float) -> float:
    if len(replies) == wanted:
        return replies[-1].arrives_at
    return deadline if deadline < math.inf else max(run.stops_at for run in runs)
