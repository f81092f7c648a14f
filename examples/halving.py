"""Search how fast, and in what batches, a fleet's devices should learn: successive halving between runs.

    python examples/halving.py      # about three minutes on two cores

Most settings are dropped after a round or two. A run is judged by questions that its devices have not trained on; what
comes of the search is to be reported on other users than these.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from client.adapters import AdapterConfig
from client.app import app
from client.dialogue import Example
from client.evaluation import nll
from client.recorded import FleetSettings, Lesson, RecordedFleet
from florilegium import generate_users
from server.app import GridTransport, coordinator
from server.checkpoint import Progress
from server.config import CoordinationConfig
from server.hyperparameters.halving import Halving, Run
from simulation.runtimes.inprocess import InProcessGrid
from simulation.world import WorldConfig

ADAPTER = AdapterConfig()
RANGES = {"learning_rate": (1e-4, 1e-2), "batch_size": (1.0, 16.0)}


def main(*, model: str = "seedling", devices: int = 8, runs: int = 9, rounds: int = 4) -> Run:
    """Search, print each run's settings and scores, and return the best."""
    halving = Halving(ranges=RANGES, rounds=rounds, sampler="tpe")
    found: list[Run] = []
    with tempfile.TemporaryDirectory() as name:
        fleet = record(Path(name) / "fleet", model, devices)
        for number in range(runs):
            found.append(Run(values=halving.ask(found)))
            config = CoordinationConfig(
                model=model,
                adapter=ADAPTER,
                rounds=rounds,
                cohort=devices,
                learning_rate=found[-1].values["learning_rate"],
                batch_size=int(found[-1].values["batch_size"]),
            )
            grid = InProcessGrid(app, devices, node_config={"fleet": str(fleet.folder)})
            for _, progress in coordinator(config, GridTransport(grid, config), Path(name) / f"run-{number}").rounds():
                scores = (*found[-1].scores, score(fleet, config, progress))
                found[-1] = Run(values=found[-1].values, scores=scores)
                if not halving.goes_on(found):
                    break
            print(f"run {number + 1}: {describe(found[-1])}")
    return halving.best(found)


def record(folder: Path, model: str, devices: int) -> RecordedFleet:
    """Give each device a user of the built-in world, with all ideal answers and the questions to be judged by."""
    fleet = RecordedFleet.create(folder, FleetSettings(model=model, adapter=ADAPTER))
    for device, user in enumerate(generate_users(0, devices, WorldConfig(turns=40))):
        rows = [
            Example(question=turn.question, response=turn.preferred, source_id=turn.turn_id, example_id=turn.turn_id)
            for turn in user.stream
        ]
        fleet.record(device, [Lesson(example=row) for row in rows], [Lesson(example=row) for row in user.heldout])
    return fleet


def score(fleet: RecordedFleet, config: CoordinationConfig, progress: Progress) -> float:
    """Return the mean log-likelihood of a held-out token under the shared adapter, nats."""
    plan, nats, tokens = config.make_plan(), 0.0, 0
    assert plan.rule is not None
    turn = plan.turn(progress.round + 1, 0, rank=ADAPTER.rank, scale=ADAPTER.alpha / ADAPTER.rank)
    shared = plan.rule.adapter(progress.shared.state, turn)
    for device in range(config.cohort):
        with fleet.participant(device).serving(plan, shared) as base:
            lost, scored = nll(base, fleet.holdout(device, progress.round))
        nats, tokens = nats + lost, tokens + scored
    return -nats / tokens


def describe(run: Run) -> str:
    """Return what a run trained with and how it did, in one line."""
    values = ", ".join(f"{name} {value:.2g}" for name, value in run.values.items())
    return f"{values}: {' '.join(f'{score:.3f}' for score in run.scores)}"


if __name__ == "__main__":
    print("best:", describe(main()))
