"""Measure a coordinated fleet: its time beside others', what a message costs at scale, and what travels up.

    python -m benchmarks.fleet against --repetitions 5
    python -m benchmarks.fleet scale --devices 1000 --devices 10000
    python -m benchmarks.fleet uplink
    python -m benchmarks.fleet month

`against` plays one workload (`fleet_workload`) with this project's server and client, in a bare loop, in pfl-research
and in Flower's simulation engine on Ray. Each measurement is a fresh process; the sides alternate (A B C D A B …), and
ratios are taken within a repetition. All begin with the same adapter on the same model and rows, in float32, with one
thread a process. All are one process, but for Flower and "ours on all cores", which play a device on each core. Cohorts
are each side's own draw, so the losses at the end are alike and not equal. "A round" is the mean over the rounds after
the first, which loads what is not loaded yet; "in all" is from the start of the process until the trained adapter is
there.

`scale`, `uplink` and `month`: see `fleet_scale`, `fleet_uplink` and `fleet_month`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from benchmarks.report import markdown, spread

OURS: Final = "ours"
OURS_ON_ALL_CORES: Final = "ours on all cores"
# Each side's function, and a library that this project can do without.
SIDES: Final = {
    OURS: ("benchmarks.fleet_ours", "play", None),
    OURS_ON_ALL_CORES: ("benchmarks.fleet_ours", "play_on_all_cores", None),
    "bare loop": ("benchmarks.fleet_bare", "play", None),
    "pfl": ("benchmarks.fleet_pfl", "play", "pfl"),
    "Flower on Ray": ("benchmarks.fleet_flower", "play", "ray"),
    "Flower on Ray, loading": ("benchmarks.fleet_flower", "play_loading", "ray"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one measurement gave.

    Attributes:
        seconds: of each round.
        in_all: seconds from the start of the process.
        loss_before: of the adapter that all begin with, nats a token.
        loss_after: of the adapter at the end.
    """

    seconds: Sequence[float]
    in_all: float
    loss_before: float
    loss_after: float

    @property
    def round_seconds(self) -> float:
        """Seconds of a round after the first."""
        later = self.seconds[1:] or self.seconds
        return sum(later) / len(later)


def in_fresh_process(task: str, job: Mapping[str, object]) -> dict[str, Any]:
    """Do a job in a process of its own and return what it printed last."""
    from simulation.runtimes.processes import quiet_environment

    # Ray lets its workers wait behind all others unless it is told not to.
    environment = quiet_environment(RAY_worker_niceness="0", TRANSFORMERS_VERBOSITY="error")
    command = [sys.executable, "-m", "benchmarks.fleet", task, json.dumps(dict(job)), str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        Console(stderr=True).print(done.stderr, markup=False, highlight=False)
        raise typer.Exit(1)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: Mapping[str, Sequence[Outcome]]) -> str:
    """Return what each side took, and the ratio of ours to it."""
    header = ["", "s/round", "in all, s", "loss before", "loss after"]
    header += [f"{own} / it, {what}" for own in _own(results) for what in ("a round", "in all")]
    return markdown(header, [_row(side, results) for side in results])


def _row(side: str, results: Mapping[str, Sequence[Outcome]]) -> list[str]:
    its = results[side]
    cells = [
        side,
        spread([one.round_seconds for one in its], 3),
        spread([one.in_all for one in its], 1),
        spread([one.loss_before for one in its], 4),
        spread([one.loss_after for one in its], 4),
    ]
    for own in _own(results):
        pairs = list(zip(results[own], its, strict=True))
        cells.append(spread([ours.round_seconds / theirs.round_seconds for ours, theirs in pairs]))
        cells.append(spread([ours.in_all / theirs.in_all for ours, theirs in pairs]))
    return cells


def _own(results: Mapping[str, Sequence[Outcome]]) -> list[str]:
    return [name for name in (OURS, OURS_ON_ALL_CORES) if name in results]


app = typer.Typer(help=__doc__, no_args_is_help=True, rich_markup_mode=None, add_completion=False)
Json = Annotated[bool, typer.Option("--json", help="Print every measurement as JSON.")]


@app.command()
def against(
    repetitions: Annotated[int, typer.Option(help="Measurements of each side.", min=1)] = 5,
    side: Annotated[list[str] | None, typer.Option(help=f"Beside ours: {', '.join(list(SIDES)[1:])}.")] = None,
    rounds: Annotated[int, typer.Option(help="Of one measurement.", min=2)] = 10,
    devices: Annotated[int, typer.Option(help="In the fleet.", min=1)] = 64,
    cohort: Annotated[int, typer.Option(help="Devices of a round.", min=1)] = 8,
    as_json: Json = False,
) -> None:
    """One workload with this project, in a bare loop, in pfl-research and in Flower on Ray.

    Example: python -m benchmarks.fleet against --side "bare loop" --repetitions 3
    """
    from benchmarks.fleet_workload import Workload, write_model

    console = Console(stderr=True)
    wanted = [name for name in SIDES if name == OURS or side is None or name in side]
    present = [name for name in wanted if _is_there(SIDES[name][2])]
    results: dict[str, list[Outcome]] = {name: [] for name in present}
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        work = Workload(model=folder, devices=devices, cohort=cohort, rounds=rounds)
        for number in range(repetitions):
            for name in present:
                outcome = Outcome(**in_fresh_process("play", {"side": name, "work": asdict(work)}))
                results[name].append(outcome)
                note = f"repetition {number + 1}: {name}: {outcome.round_seconds:.3f} s a round"
                console.print(note, highlight=False)
    if as_json:
        typer.echo(json.dumps({name: [asdict(each) for each in found] for name, found in results.items()}, indent=1))
        return
    typer.echo(table(results))
    for name in sorted(set(wanted) - set(present)):
        typer.echo(f"\nNot measured, because it is not installed: {name}; see `{SIDES[name][0]}`.")


def _is_there(library: str | None) -> bool:
    return library is None or importlib.util.find_spec(library) is not None


@app.command()
def scale(
    devices: Annotated[list[int], typer.Option(help="In the fleet; may be given several times.")] = [1_000, 10_000],  # noqa: B006
    repetitions: Annotated[int, typer.Option(help="Measurements of each size.", min=1)] = 3,
    rounds: Annotated[int, typer.Option(help="Of one measurement.", min=2)] = 10,
    cohort: Annotated[int, typer.Option(help="Devices of a round.", min=1)] = 10,
    model: Annotated[str, typer.Option(help='"seedling", a local path or a Hub name.')] = "seedling",
    as_json: Json = False,
) -> None:
    """What a message costs beside training, and peak memory, as fleets grow."""
    from benchmarks.fleet_scale import CLIENTS, Cost, Load, record_fleet
    from benchmarks.fleet_scale import table as costs_table

    console = Console(stderr=True)
    found: list[tuple[Load, Cost]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = Load(fleet=folder, model=model, devices=max(devices), cohort=cohort, rounds=rounds)
        record_fleet(base)
        for _, count, client in product(range(repetitions), devices, CLIENTS):
            job = replace(base, devices=count, client=client, seed=len(found))
            cost = Cost(**in_fresh_process("load", asdict(job)))
            found.append((job, cost))
            console.print(f"{count:,} devices, {client}: {cost.message_ms:.2f} ms a message", highlight=False)
    pairs = [asdict(load) | asdict(cost) for load, cost in found]
    typer.echo(json.dumps(pairs, indent=1) if as_json else costs_table(found))


@app.command()
def uplink(as_json: Json = False) -> None:
    """Bytes that a device sends in a round, by rule and codec."""
    from benchmarks.fleet_uplink import measure
    from benchmarks.fleet_uplink import table as bytes_table

    found = measure()
    typer.echo(json.dumps([asdict(each) for each in found], indent=1) if as_json else bytes_table(found))


@app.command()
def month(
    devices: Annotated[list[int], typer.Option(help="In the fleet; may be given several times.")] = [1_000, 10_000],  # noqa: B006
    repetitions: Annotated[int, typer.Option(help="Measurements of each size.", min=1)] = 3,
    as_json: Json = False,
) -> None:
    """What the simulated clock takes for a month of a fleet's life, beside the devices' work."""
    from benchmarks.fleet_month import measure
    from benchmarks.fleet_month import table as months_table

    found = [measure(count) for _, count in product(range(repetitions), devices)]
    typer.echo(json.dumps([asdict(each) for each in found], indent=1) if as_json else months_table(found))


@app.command(hidden=True)
def play(job: str, began: float) -> None:
    """Play the workload as one side and print the outcome."""
    values = json.loads(job)
    if values["side"] == OURS_ON_ALL_CORES:
        from simulation.workers import warm_up

        warm_up()
    import torch

    from benchmarks.fleet_workload import Workload, begin, mean_loss

    torch.set_num_threads(1)
    work = Workload(**values["work"])
    module, function, _ = SIDES[values["side"]]
    seconds, adapter = getattr(importlib.import_module(module), function)(work)
    in_all = time.time() - began
    outcome = Outcome(
        seconds=seconds,
        in_all=in_all,
        loss_before=mean_loss(work, begin(work)),
        loss_after=mean_loss(work, adapter),
    )
    typer.echo(json.dumps(asdict(outcome)))


@app.command(hidden=True)
def load(job: str, began: float) -> None:
    """Put one load on a fleet and print its cost."""
    import torch

    from benchmarks.fleet_scale import Load, measure

    torch.set_num_threads(1)
    typer.echo(json.dumps(asdict(measure(Load(**json.loads(job))))))


if __name__ == "__main__":
    app()
