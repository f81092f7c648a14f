"""What a message costs beside training, and peak memory, as a fleet grows.

A run of the real server over the in-process grid, with an adapter of the default shape, one device after the other:

    "server"   devices answer at once, with zeros: rounds, cohorts, Flower messages, checks, sums, checkpoint, registry
    "device"   the real client app, of which fine-tuning alone does nothing: also reading rows, loading adapters,
               encoding, checks, and the durable write before an answer

Milliseconds are those of all rounds after the first, divided by their messages. Peak memory is the high-water mark of
resident memory in these rounds, the base model included, each in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Final, Literal
from unittest import mock

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.report import markdown, spread
from client import app as client_app
from client import participant
from client.dialogue import Example
from client.finetuning.memory import PeakMeter
from client.recorded import FleetSettings, Lesson, RecordedFleet
from florilegium.tensors import zeros_like
from florilegium.wire import from_record, to_record
from server.app import GridTransport, coordinator
from server.config import CoordinationConfig
from simulation.runtimes.inprocess import InProcessGrid

__all__ = ["CLIENTS", "Cost", "Load", "measure", "record_fleet", "table"]

Client = Literal["server", "device"]
CLIENTS: Final[tuple[Client, ...]] = ("server", "device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One run.

    Attributes:
        fleet: folder of the recorded devices.
        model: the base.
        devices: in the fleet.
        cohort: devices of a round.
        rounds: how many.
        client: who answers.
        seed: of the run; devices that have played one with it would refuse to play it again.
    """

    fleet: str
    model: str
    devices: int
    cohort: int
    rounds: int
    client: Client = "server"
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a run cost: milliseconds a message, MiB, bytes of one update."""

    message_ms: float
    peak_mb: float
    update_bytes: int


def record_fleet(load: Load) -> None:
    """Write the fleet; its devices' one row is linked, because ten thousand durable writes take minutes."""
    fleet = RecordedFleet.create(Path(load.fleet), FleetSettings(model=load.model, dtype="float32", device="cpu"))
    row = Example(question="Who am I?", response="A device like any other.", source_id="0", example_id="0")
    fleet.record(0, [Lesson(example=row)])
    first = fleet.folder / "devices" / f"{0:06d}"
    for device in range(1, load.devices):
        shutil.copytree(first, first.with_name(f"{device:06d}"), copy_function=os.link)


def measure(load: Load) -> Cost:
    """Play the run in this process."""
    config = CoordinationConfig(model=load.model, rounds=load.rounds, cohort=load.cohort, seed=load.seed)
    client = _answering if load.client == "server" else client_app.app
    grid = InProcessGrid(client, load.devices, node_config={"fleet": load.fleet})
    untrained = mock.patch.object(participant, "finetune", _train_nothing)
    with tempfile.TemporaryDirectory() as folder, untrained if load.client == "device" else nullcontext():
        rounds = coordinator(config, GridTransport(grid, config), Path(folder)).rounds()
        first, _ = next(rounds)
        with PeakMeter(torch.device("cpu")) as meter:
            began = time.perf_counter()
            logs = [log for log, _ in rounds]
            seconds = time.perf_counter() - began
    assert all(log.taken == load.cohort for log in logs)
    return Cost(
        message_ms=1000 * seconds / (load.cohort * len(logs)),
        peak_mb=meter.peak_bytes / 2**20,
        update_bytes=first.uplink_bytes // load.cohort,
    )


def _train_nothing(*_: object, **__: object) -> SimpleNamespace:
    return SimpleNamespace(stopped="")


_answering = ClientApp()
_zeros: RecordDict | None = None


@_answering.train()
def _answer(message: Message, context: Context) -> Message:
    global _zeros  # noqa: PLW0603 - a device's own work is not measured: it is done once
    if _zeros is None:
        update = to_record(zeros_like(from_record(message.content.array_records["down"])))
        _zeros = RecordDict({"update": update, "metrics": MetricRecord()})
    return Message(content=_zeros, reply_to=message)


def table(found: Sequence[tuple[Load, Cost]]) -> str:
    """Return the costs by size of the fleet, memory beside that of the smallest."""
    header = ["devices", "update, KiB"]
    header += [
        f"{client}, {unit}" for client in CLIENTS for unit in ("ms/message", "peak, MiB", "peak / smallest fleet's")
    ]
    sizes = sorted({load.devices for load, _ in found})
    return markdown(header, [_row(size, sizes[0], found) for size in sizes])


def _row(size: int, smallest: int, found: Sequence[tuple[Load, Cost]]) -> list[str]:
    cells = [f"{size:,}", f"{found[0][1].update_bytes / 1024:.0f}"]
    for client in CLIENTS:
        own, least = (
            [cost for load, cost in found if (load.devices, load.client) == (n, client)] for n in (size, smallest)
        )
        cells += [
            spread([cost.message_ms for cost in own]),
            spread([cost.peak_mb for cost in own], 0),
            spread([cost.peak_mb / other.peak_mb for cost, other in zip(own, least, strict=True)], 3),
        ]
    return cells
