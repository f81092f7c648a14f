"""Tasks: what one device's part in a round takes, in time, bytes and energy.

    work = download + training + upload,   arrives = the moment by which the device was online for `work` seconds

A device that goes offline pauses and goes on when it is back: training resumes from its checkpoint, and a transfer
from where it was cut. A device that drops out stops for good after a share of its work, and what it moved and drew
until then is spent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from florilegium.errors import ConfigError
from simulation.fleet.availability import HORIZON_SECONDS, Trace
from simulation.fleet.faults import Fault
from simulation.fleet.profile import DeviceProfile

__all__ = ["Task", "TaskCost", "TaskRun", "Usage", "run_task", "total_usage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCost:
    """What a task asks of any device.

    Attributes:
        tokens: fed to the model in training, repeats counted.
        parameters: of the frozen base.
        adapter_parameters: trained ones.
        bytes_up: sent to the server.
        bytes_down: received from it.

    Raises:
        ConfigError: one of them is negative.
    """

    tokens: int
    parameters: int
    adapter_parameters: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "parameters", "adapter_parameters", "bytes_up", "bytes_down"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One device's part in a round.

    Attributes:
        device: its index.
        profile: what it can do.
        trace: when it is online.
        cost: what is asked of it.
        fault: what goes wrong.
    """

    device: int
    profile: DeviceProfile
    trace: Trace
    cost: TaskCost
    fault: Fault = field(default_factory=Fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was spent.

    Attributes:
        bytes_up: sent by devices.
        bytes_down: received by them.
        energy_joules: drawn by them.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    energy_joules: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRun:
    """What came of a task.

    Attributes:
        device: whose it was.
        arrives_at: when its reply is at the server, seconds; infinite if it never is.
        stops_at: when the device is free again: the same, or the moment it dropped out or left.
        usage: what it spent.
    """

    device: int
    arrives_at: float
    stops_at: float
    usage: Usage

    @property
    def arrived(self) -> bool:
        """Whether the reply ever arrives."""
        return self.arrives_at < math.inf


def run_task(task: Task, start: float) -> TaskRun:
    """Let a device do a task that it is given at `start`; if it is offline then, it begins when it is back.

    Raises:
        ConfigError: `start` is not finite.
    """
    if not math.isfinite(start):
        raise ConfigError(f"start must be finite, got {start}", "end the simulation when too few devices come online")
    phases = _phases(task)
    work = math.fsum(phases)
    wanted = work if task.fault.drops_after is None else work * task.fault.drops_after
    stops_at, done = _advance(task.trace, start, wanted)
    if task.fault.drops_after is None and done is None:
        return TaskRun(device=task.device, arrives_at=stops_at, stops_at=stops_at, usage=_usage(task, phases))
    spent = _cut(phases, wanted if done is None else done)
    return TaskRun(device=task.device, arrives_at=math.inf, stops_at=stops_at, usage=_usage(task, spent))


def total_usage(usages: Iterable[Usage]) -> Usage:
    """Add up what was spent."""
    each = list(usages)
    return Usage(
        bytes_up=sum(usage.bytes_up for usage in each),
        bytes_down=sum(usage.bytes_down for usage in each),
        energy_joules=math.fsum(usage.energy_joules for usage in each),
    )


def _phases(task: Task) -> tuple[float, float, float]:
    """Return the seconds of download, training and upload."""
    profile, cost, fault = task.profile, task.cost, task.fault
    download = profile.transfer_seconds(0, cost.bytes_down) * fault.link_slowdown
    training = profile.training_seconds(cost.tokens, cost.parameters, adapter_parameters=cost.adapter_parameters)
    upload = profile.transfer_seconds(cost.bytes_up, 0) * fault.link_slowdown
    return download, training * fault.training_slowdown, upload


def _advance(trace: Trace, start: float, work: float) -> tuple[float, float | None]:
    """Return when `work` online seconds have gone by, and None; else when the last of them had, and how many did."""
    done, stops_at = 0.0, start
    for first, last in trace.intervals(start, start + HORIZON_SECONDS):
        if first + (work - done) <= last:
            return first + (work - done), None
        done, stops_at = done + (last - first), last
    return stops_at, done


def _cut(phases: tuple[float, float, float], work: float) -> tuple[float, float, float]:
    """Return how much of each phase is done after `work` seconds."""
    download = min(work, phases[0])
    training = min(work - download, phases[1])
    return download, training, min(work - download - training, phases[2])


def _usage(task: Task, spent: tuple[float, float, float]) -> Usage:
    """Return what the task spent in so many seconds of download, training and upload."""
    download, training, upload = spent
    full_download, _, full_upload = _phases(task)
    bytes_down = _share(task.cost.bytes_down, download, full_download)
    bytes_up = _share(task.cost.bytes_up, upload, full_upload)
    energy = task.profile.energy_joules(
        training_seconds=training, transfer_seconds=download + upload, transfer_bytes=bytes_up + bytes_down
    )
    return Usage(bytes_up=bytes_up, bytes_down=bytes_down, energy_joules=energy)


def _share(size: int, part: float, whole: float) -> int:
    return round(size * (part / whole)) if whole else 0
