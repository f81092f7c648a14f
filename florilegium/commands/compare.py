"""`florilegium compare` and `florilegium demo`: arms side by side, with intervals and a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.console import Group, RenderableType
from rich.live import Live

from florilegium.commands.output import AsJson, console, progress_bar
from florilegium.errors import ConfigError, InputError

if TYPE_CHECKING:
    from simulation.compare import CompareConfig, Progress
    from simulation.summary import Summary
    from simulation.users import UserData

__all__ = ["compare", "demo", "report"]

# Sized for two slow cores: without AVX-512 they take about six minutes when nothing else runs.
DEMO_SEEDS = (0, 1, 2)
DEMO_USERS = 3
DEMO_TURNS = 160
DEMO_HELDOUT = 20
DEMO_ARMS = ("none", "retrieval", "local-random", "local-paper", "local-improved-nosynth", "local-improved")


class _Draw(NamedTuple):
    """The users of each seed, and how they were made."""

    users: Mapping[int, Sequence[UserData]]
    source: Mapping[str, object]


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory; by default runs/demo-… by its content. An unfinished run goes on."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare ways to personalize the built-in model on the built-in world; minutes on two cores.

    Example: florilegium demo
    """
    from simulation.compare import CompareConfig

    draw = _world(DEMO_SEEDS, DEMO_USERS, DEMO_TURNS, DEMO_HELDOUT)
    _run(draw, CompareConfig(arms=DEMO_ARMS), out, prefix="demo-", as_json=as_json)


def compare(
    data: Annotated[
        Path | None, typer.Argument(help="JSON lines of users or dialogues; the built-in world when left out.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings; options override it.")] = None,
    model: Annotated[str | None, typer.Option(help='"seedling", a Hub name or a local path.')] = None,
    arms: Annotated[str | None, typer.Option(help="Names of arms, separated by commas; 'all' for every one.")] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.", min=1)] = 3,
    users: Annotated[int, typer.Option(help="Users for each seed; from a file, at most.", min=1)] = 6,
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
    from simulation.arms import ARMS
    from simulation.compare import CompareConfig

    base = CompareConfig.load(config) if config else CompareConfig()
    chosen: dict[str, object] = {"model": model, "workers": workers}
    if arms is not None:
        chosen["arms"] = tuple(ARMS) if arms == "all" else tuple(name.strip() for name in arms.split(","))
    given = {name: value for name, value in chosen.items() if value is not None}
    settings = CompareConfig.parse({**base.model_dump(), **given}, source="options")
    numbers = range(settings.seed, settings.seed + seeds)
    draw = (
        _world(numbers, users, turns, heldout)
        if data is None
        else _file(
            data,
            numbers,
            users=users,
            min_turns=min_turns,
            min_heldout=min_heldout,
            skip_malformed=skip_malformed,
            seed=settings.seed,
        )
    )
    _run(draw, settings, out, as_json=as_json)


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


def _world(seeds: Sequence[int], users: int, turns: int, heldout: int) -> _Draw:
    from simulation.world import WorldConfig, generate_users

    world = WorldConfig(turns=turns, heldout=heldout)
    return _Draw(
        {seed: generate_users(seed, users, world) for seed in seeds},
        {"world": {"users": users, "turns": turns, "heldout": heldout}},
    )


def _file(
    path: Path, seeds: Sequence[int], *, users: int, min_turns: int, min_heldout: int, skip_malformed: bool, seed: int
) -> _Draw:
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
    return _Draw(dealt, {"file": {"name": path.name, **choice}})


def _run(draw: _Draw, config: CompareConfig, out: Path | None, *, prefix: str = "", as_json: bool) -> None:
    from simulation.compare import run_compare, run_name
    from simulation.report import comparison_table

    directory = out or Path("runs") / f"{prefix}{run_name(draw.users, config)}"
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file", "name a directory for the run")
    typer.echo(f"The run directory: {directory}", err=True)
    bar = progress_bar()
    task = bar.add_task("comparing", total=None)

    def follow(progress: Progress) -> None:
        bar.update(task, completed=progress.done, total=progress.total)
        parts: list[RenderableType] = [bar] if progress.summary is None else [comparison_table(progress.summary), bar]
        if bar.console.is_terminal:
            live.update(Group(*parts))
        elif progress.done and progress.done % max(1, progress.total // 20) == 0:
            bar.console.print(f"{progress.done} of {progress.total} done")

    with Live(bar, console=bar.console, transient=True) as live:
        summary = run_compare(draw.users, config, directory, source=draw.source, progress=None if as_json else follow)
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
