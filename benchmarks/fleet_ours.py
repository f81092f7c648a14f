"""The workload as this project plays it: the real server, grid and client app on a recorded fleet.

In it is all that a coordinated run does: rows are read from each device's file and tokenized, tensors travel as Flower
messages, both sides check what the plan declares, a device's memory is replaced durably before it answers, and so is
the server's checkpoint after each round.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

from benchmarks.fleet_workload import ADAPTER, Played, Workload, token_rows, word
from client.app import app
from client.dialogue import Example
from client.finetuning import FineTuneConfig
from client.recorded import FleetSettings, Lesson, RecordedFleet
from server.app import GridTransport, coordinator
from server.config import CoordinationConfig
from simulation.runtimes.crew import CrewGrid
from simulation.runtimes.inprocess import InProcessGrid

__all__ = ["lessons", "play", "play_on_all_cores"]


def play(workload: Workload) -> Played:
    """Train the fleet in one process."""
    return _play(workload, workers=1)


def play_on_all_cores(workload: Workload) -> Played:
    """Train the fleet with a process for each core beside the server's."""
    return _play(workload, workers=os.cpu_count() or 1)


def _play(workload: Workload, *, workers: int) -> Played:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _record(workload, folder / "fleet")
        config = CoordinationConfig(
            model=workload.model,
            adapter=ADAPTER,
            rounds=workload.rounds,
            cohort=workload.cohort,
            local_steps=-(-workload.rows // workload.batch),
            learning_rate=workload.learning_rate,
            batch_size=workload.batch,
        )
        marks, shared = [time.perf_counter()], {}
        with _transport(workload, config, folder / "fleet", workers) as transport:
            for _, progress in coordinator(config, transport, folder / "run").rounds():
                marks.append(time.perf_counter())
                shared = progress.shared.state
        return [end - start for start, end in pairwise(marks)], shared


@contextmanager
def _transport(workload: Workload, config: CoordinationConfig, fleet: Path, workers: int) -> Iterator[GridTransport]:
    told = {"fleet": str(fleet)}
    if workers == 1:
        yield GridTransport(InProcessGrid(app, workload.devices, node_config=told), config)
        return
    with closing(CrewGrid(workload.devices, workers=workers, node_config=told)) as crew:
        yield GridTransport(crew, config, pause=crew.pause)


def _record(workload: Workload, folder: Path) -> None:
    sgd = FineTuneConfig(optimizer="sgd", clip_norm=math.inf, dtype="float32")
    settings = FleetSettings(model=workload.model, dtype="float32", device="cpu", adapter=ADAPTER, finetuning=sgd)
    fleet = RecordedFleet.create(folder, settings)
    for device in range(workload.devices):
        fleet.record(device, lessons(workload, device))


def lessons(workload: Workload, device: int) -> Iterator[Lesson]:
    """Yield a device's rows as text, which the tokenizer ends itself."""
    for number, ids in enumerate(token_rows(workload, device)):
        name = f"{device:06d}-{number:06d}"
        words = [word(token) for token in ids[:-1]]
        yield Lesson(example=Example(question=words[0], response=" ".join(words[1:]), source_id=name, example_id=name))
