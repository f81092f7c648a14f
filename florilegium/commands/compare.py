"""`florilegium compare` and `florilegium demo`: arms side by side, with intervals and a report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.console import Group, RenderableType
from rich.live import Live

from florilegium.commands.output import AsJson, console, progress_bar
from florilegium.errors import ConfigError, InputError
from florilegium.settings import read_toml

if TYPE_CHECKING:
    from simulation.compare import CompareConfig, Progress
    from simulation.sharing.compare import SharingProgress
    from simulation.sharing.config import SharingConfig
    from simulation.summary import Summary
    from simulation.users import UserData

__all__ = ["Draw", "compare", "demo", "report", "run", "warm_up_workers", "world_users"]

# Sized for two slow cores: each part takes a few minutes.
DEMO_TURNS = 160
DEMO_HELDOUT = 20
DEMO_SEEDS = (0, 1, 2)
DEMO_USERS = 2
DEMO_ARMS = ("none", "retrieval", "local-random", "local-paper", "local-improved-nosynth", "local-improved")
DEMO_DEVICES = 16
DEFAULT_USERS = 6
DEFAULT_DEVICES = 16


class Draw(NamedTuple):
    """The users of each seed, and how they were made."""

    users: Mapping[int, Sequence[UserData]]
    source: Mapping[str, object]


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of both runs; by default runs/demo-… by their content. An unfinished run goes on."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare ways of one device to learn, then ways of a fleet to share, on the built-in model and world.

    It takes minutes on two cores. With --json it prints two lines, one summary on each.

    Example: florilegium demo
    """
    warm_up_workers()
    from simulation.compare import CompareConfig
    from simulation.sharing.config import SharingConfig

    users = world_users(DEMO_SEEDS, DEMO_USERS, DEMO_TURNS, DEMO_HELDOUT)
    run(users, CompareConfig(arms=DEMO_ARMS), out and out / "device", prefix="demo-device-", as_json=as_json)
    fleet = world_users(DEMO_SEEDS[:1], DEMO_DEVICES, DEMO_TURNS, DEMO_HELDOUT)
    run(fleet, SharingConfig(), out and out / "fleet", prefix="demo-fleet-", as_json=as_json)


def compare(
    data: Annotated[
        Path | None, typer.Argument(help="JSON lines of users or dialogues; the built-in world when left out.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings; options override it.")] = None,
    model: Annotated[str | None, typer.Option(help='"seedling", a Hub name or a local path.')] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Names of arms, separated by commas: ways of one device to learn ('all' for every one), or ways of a "
            "fleet to share ('strategies' for every one, dual+fedit and the like)."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.", min=1)] = 3,
    users: Annotated[
        int | None, typer.Option(help="Users for each seed; from a file, at most. By default 6, of a fleet 16.", min=1)
    ] = None,
    unseen: Annotated[
        int | None, typer.Option(help="Of a fleet: further users for each seed whose devices take no part.", min=0)
    ] = None,
    turns: Annotated[int, typer.Option(help="Dialogues of each user of the built-in world.", min=1)] = 240,
    heldout: Annotated[int, typer.Option(help="Held-out questions of each user of the built-in world.", min=1)] = 40,
    min_turns: Annotated[int, typer.Option(help="From a file: leave out users with fewer turns.", min=1)] = 40,
    min_heldout: Annotated[
        int, typer.Option(help="From a file: leave out users with fewer held-out questions.", min=1)
    ] = 4,
    skip_malformed: Annotated[bool, typer.Option(help="Pass over malformed lines instead of stopping.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; one for each core by default.", min=1)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run directory; by default runs/… by its content. An unfinished run goes on; any can be given more "
            "arms, seeds or users."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare arms at equal budgets of annotations and training rows; write a run directory with a report.

    Example: florilegium compare dialogues.jsonl --arms none,local-improved,local-random --seeds 3
    """
    warm_up_workers(workers)
    from simulation.compare import CompareConfig

    settings = _settings(config, arms, {"model": model, "workers": workers, "unseen": unseen})
    numbers = range(settings.seed, settings.seed + seeds)
    most = (
        users or DEFAULT_USERS if isinstance(settings, CompareConfig) else (users or DEFAULT_DEVICES) + settings.unseen
    )
    draw = (
        world_users(numbers, most, turns, heldout)
        if data is None
        else _file(
            data,
            numbers,
            users=most,
            min_turns=min_turns,
            min_heldout=min_heldout,
            skip_malformed=skip_malformed,
            seed=settings.seed,
        )
    )
    run(draw, settings, out, as_json=as_json)


def report(
    run: Annotated[Path, typer.Argument(help="A finished run's directory.")],
    as_json: AsJson = False,
) -> None:
    """Print a finished run's table and write its report anew.

    Example: florilegium report runs/my-run
    """
    from pydantic import ValidationError

    from client.durable import replace_file, storage_errors
    from simulation.report import render_report
    from simulation.summary import Summary

    path = run / "summary.json"
    if not path.is_file():
        raise InputError(f"{run} holds no summary.json", "name the directory of a finished run")
    try:
        summary = Summary.model_validate_json(path.read_bytes())
    except ValidationError:
        raise InputError(f"{path} is damaged or of another version", "repeat its run to sum it up anew") from None
    with storage_errors(run / "report.html"):
        replace_file(run / "report.html", render_report(summary).encode())
    _show(summary, run, as_json=as_json)


def _settings(path: Path | None, arms: str | None, given: Mapping[str, object]) -> CompareConfig | SharingConfig:
    """Return the settings of the comparison that the arms belong to; options override the file."""
    from simulation.arms import ARMS, pick
    from simulation.compare import CompareConfig
    from simulation.sharing.arms import EVERY_SHARING_ARM, SHARING_ARMS
    from simulation.sharing.config import SharingConfig

    values = read_toml(path) if path else {}
    values |= {name: value for name, value in given.items() if value is not None}
    if arms is not None:
        every = {"all": tuple(ARMS), "strategies": EVERY_SHARING_ARM}
        listed = tuple(name.strip() for name in arms.split(","))
        if len(listed) > 1 and (whole := [name for name in listed if name in every]):
            raise ConfigError(f"{whole[0]!r} stands for a whole list of arms", "give it alone, or name the arms")
        values["arms"] = every.get(arms, listed)
    plans = values.get("plans")
    own = list(plans) if isinstance(plans, dict) else []
    of_fleets = {*SHARING_ARMS, *own}
    named = [str(name) for name in _listed(values.get("arms"))]
    pick(named, dict.fromkeys([*ARMS, *of_fleets]), known=", ".join(dict.fromkeys([*ARMS, *EVERY_SHARING_ARM, *own])))
    alone, sharing = ([name for name in named if name not in others] for others in (of_fleets, ARMS))
    if alone and sharing:
        raise ConfigError(
            f"{alone[0]} is a way of one device to learn, {sharing[0]} one of a fleet to share",
            "compare each kind in a run of its own",
        )
    if not sharing and given.get("unseen") is not None:
        raise ConfigError("--unseen is of fleets", "leave it out, or name ways of sharing in --arms")
    source = "options" if path is None else f"{path} and options"
    return (SharingConfig if sharing else CompareConfig).parse(values, source=source)


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def warm_up_workers(workers: int | None = None) -> None:
    """Let workers import while this process does, if there will be any."""
    if (workers or os.cpu_count() or 1) > 1:
        from simulation.workers import warm_up

        warm_up()


def world_users(seeds: Sequence[int], users: int, turns: int, heldout: int) -> Draw:
    """Return users of the built-in world."""
    from simulation.world import WorldConfig, generate_users

    world = WorldConfig(turns=turns, heldout=heldout)
    return Draw(
        {seed: generate_users(seed, users, world) for seed in seeds},
        {"world": {"users": users, "turns": turns, "heldout": heldout}},
    )


def _file(
    path: Path, seeds: Sequence[int], *, users: int, min_turns: int, min_heldout: int, skip_malformed: bool, seed: int
) -> Draw:
    from simulation.compare import deal_users
    from simulation.readers import Assembly, read_users

    if not path.is_file():
        raise InputError(f"{path} is no file", "name a file of JSON lines")
    everyone = read_users(path, assembly=Assembly(min_turns=0), skip_malformed=skip_malformed)
    enough = [user for user in everyone if len(user.stream) >= min_turns and len(user.heldout) >= min_heldout]
    if not enough:
        raise InputError(
            f"none of {len(everyone)} users of {path} has {min_turns} turns and {min_heldout} held-out questions",
            "lower --min-turns or --min-heldout",
        )
    dealt = deal_users(enough, seeds, most=users, seed=seed)
    compared, short = sum(map(len, dealt.values())), len(everyone) - len(enough)
    typer.echo(
        f"{compared} of {len(everyone)} users of {path} are compared; {short} have fewer than {min_turns} turns or "
        f"{min_heldout} held-out questions.",
        err=True,
    )
    choice = {"users": users, "min_turns": min_turns, "min_heldout": min_heldout, "skip_malformed": skip_malformed}
    return Draw(dealt, {"file": {"name": path.name, **choice}})


def run(
    draw: Draw, config: CompareConfig | SharingConfig, out: Path | None, *, prefix: str = "", as_json: bool
) -> None:
    """Run a comparison, show how far it is, and print its table."""
    from simulation.compare import CompareConfig, run_compare
    from simulation.identity import run_name
    from simulation.report import comparison_table

    directory = out or Path("runs") / f"{prefix}{run_name(draw.users, config)}"
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file", "name a directory for the run")
    typer.echo(f"The run directory: {directory}", err=True)
    bar = progress_bar()
    task = bar.add_task("comparing", total=None)

    def follow(progress: Progress | SharingProgress) -> None:
        bar.update(task, completed=progress.done, total=progress.total, description=progress.doing)
        parts: list[RenderableType] = [bar] if progress.summary is None else [comparison_table(progress.summary), bar]
        if bar.console.is_terminal:
            live.update(Group(*parts))
        elif progress.done and progress.done % max(1, progress.total // 20) == 0:
            bar.console.print(f"{progress.done} of {progress.total} done")

    with Live(bar, console=bar.console, transient=True) as live:
        shown = None if as_json else follow
        if isinstance(config, CompareConfig):
            summary = run_compare(draw.users, config, directory, source=draw.source, progress=shown)
        else:
            from simulation.sharing.compare import run_sharing

            summary = run_sharing(draw.users, config, directory, source=draw.source, progress=shown)
    _show(summary, directory, as_json=as_json)


def _show(summary: Summary, out: Path, *, as_json: bool) -> None:
    from simulation.report import comparison_table, findings_table

    if as_json:
        typer.echo(summary.model_dump_json())
        return
    console.print(comparison_table(summary))
    if summary.contrasts:
        console.print(findings_table(summary))
    console.print(f"The report: {(out / 'report.html').resolve()}")
