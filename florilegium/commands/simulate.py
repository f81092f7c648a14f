"""`florilegium simulate`: one way of sharing on a fleet with hardware, days and faults, on a simulated clock."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from florilegium.commands.compare import run, warm_up_workers, world_users
from florilegium.commands.output import AsJson
from florilegium.errors import ConfigError
from florilegium.settings import read_toml

if TYPE_CHECKING:
    from simulation.sharing.config import SharingConfig

__all__ = ["simulate"]

_STRATEGY = "dual+fedit"
_DEVICES = 64
_COHORT = 10
_ROUNDS = 20
_MEASURED = 16


def simulate(
    strategy: Annotated[
        str | None, typer.Argument(help=f"A rule of sharing, or a personal way on it; {_STRATEGY} by default.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings; options override it.")] = None,
    devices: Annotated[int | None, typer.Option(help=f"Devices of the fleet; {_DEVICES} by default.", min=2)] = None,
    cohort: Annotated[
        int | None, typer.Option(help=f"Replies that a round wants; {_COHORT} by default.", min=1)
    ] = None,
    rounds: Annotated[int | None, typer.Option(help=f"How many; {_ROUNDS} by default.", min=1)] = None,
    runtime: Annotated[str | None, typer.Option(help="inprocess, or without the clock: ray, deployment.")] = None,
    measured: Annotated[int | None, typer.Option(help=f"Devices to measure; {_MEASURED} by default.", min=1)] = None,
    dropout: Annotated[float | None, typer.Option(help="Probability that a device takes a task and is gone.")] = None,
    stragglers: Annotated[float | None, typer.Option(help="Probability that its training is slowed.")] = None,
    deadline: Annotated[float | None, typer.Option(help="How long a round waits, in hours.", min=0.001)] = None,
    turns: Annotated[int, typer.Option(help="Dialogues of each user of the built-in world.", min=1)] = 160,
    heldout: Annotated[int, typer.Option(help="Held-out questions of each user.", min=1)] = 20,
    model: Annotated[str | None, typer.Option(help='"seedling", a Hub name or a local path.')] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; one for each core by default.", min=1)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; by default runs/… by its content. An unfinished run goes on.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a fleet that shares in one way: who is online when, what fails, how long it takes, what it costs.

    Devices are prepared when they are first asked, so that a fleet of thousands costs what its cohorts cost.

    Example: florilegium simulate dual+fedit --devices 200 --rounds 30 --dropout 0.3 --stragglers 0.1 --deadline 12
    """
    warm_up_workers(workers)
    given: dict[str, object] = {
        "arms": None if strategy is None else ("none", strategy),
        "cohort": cohort, "rounds": rounds, "measured": measured, "model": model, "runtime": runtime,
        "workers": workers,
        "deadline_seconds": None if deadline is None else 3600 * deadline,
    }  # fmt: skip
    settings, active = _settings(config, devices, given, {"dropout": dropout, "stragglers": stragglers})
    draw = world_users((settings.seed,), active + settings.unseen, turns, heldout)
    run(draw, settings, out, prefix="fleet-", as_json=as_json)


def _settings(
    path: Path | None, devices: int | None, given: dict[str, object], faults: dict[str, float | None]
) -> tuple[SharingConfig, int]:
    """Return the settings of the run, and how many devices its fleet has."""
    from simulation.fleet.config import FleetConfig
    from simulation.sharing.config import SharingConfig

    values: dict[str, object] = {"arms": ("none", _STRATEGY), "rounds": _ROUNDS}
    values |= read_toml(path) if path else {}
    values |= {name: value for name, value in given.items() if value is not None}
    values.setdefault("evaluate_every", values["rounds"])
    source = "options" if path is None else f"{path} and options"
    faulty = {name: value for name, value in faults.items() if value is not None}
    if values.get("runtime", "inprocess") != "inprocess":
        if faulty:
            raise ConfigError(
                f"--{next(iter(faulty))} is of the simulated clock, and runtime {values['runtime']} has none",
                "leave it out, or choose the runtime inprocess",
            )
        active = devices or _DEVICES
        return SharingConfig.parse({"cohort": min(_COHORT, active)} | values, source=source), active
    hardware = {"devices": _DEVICES} | _table(values, "fleet") | ({} if devices is None else {"devices": devices})
    if own := _table(hardware, "faults") | faulty:
        hardware["faults"] = own
    active = FleetConfig.parse(hardware, source=f"{source}: fleet").devices
    values = {"cohort": min(_COHORT, active)} | values | {"fleet": hardware}
    settings = SharingConfig.parse(values, source=source)
    if "measured" not in values and not any(arm.learns and not arm.shares for arm in settings.find_arms()):
        settings = SharingConfig.parse(values | {"measured": _MEASURED}, source=source)
    return settings, active


def _table(values: Mapping[str, object], name: str) -> dict[str, object]:
    found = values.get(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{name} = {found!r} is no table", f"write it as [{name}]")
    return found
