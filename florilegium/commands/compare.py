"""`florilegium compare` and `florilegium demo`: arms side by side, with intervals and a report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

DEMO_SEEDS = (0, 1, 2)
DEMO_USERS = 6
DEMO_TURNS = 240


def demo(
    out: Annotated[Path, typer.Option(help="Where the run is written; an unfinished one goes on.")] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Compare ways to personalize the built-in model on the built-in world; about ten minutes on two cores.

    Example: florilegium demo
    """
    from simulation.compare import CompareConfig

    _run(_world(DEMO_SEEDS, DEMO_USERS, DEMO_TURNS), CompareConfig(), out, as_json=as_json)


def compare(
    data: Annotated[
        Path | None, typer.Argument(help="JSON lines of users or dialogues; the built-in world when left out.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings; options override it.")] = None,
    model: Annotated[str | None, typer.Option(help='"seedling", a Hub name or a local path.')] = None,
    arms: Annotated[str | None, typer.Option(help="Names of arms, separated by commas; 'all' for every one.")] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.", min=1)] = 3,
    users: Annotated[int, typer.Option(help="Users for each seed.", min=1)] = 6,
    turns: Annotated[int, typer.Option(help="Dialogues of each user of the built-in world.", min=1)] = 240,
    min_turns: Annotated[int, typer.Option(help="From a file: leave out users with fewer turns.", min=1)] = 40,
    skip_malformed: Annotated[bool, typer.Option(help="Pass over malformed lines instead of stopping.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; one for each core by default.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; an unfinished run in it goes on.")] = None,
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
    drawn = _world(numbers, users, turns) if data is None else _file(data, numbers, users, min_turns, skip_malformed)
    _run(drawn, settings, out or Path("runs") / time.strftime("%Y%m%d-%H%M%S"), as_json=as_json)


def report(
    run: Annotated[Path, typer.Argument(help="A finished run's directory.")],
    as_json: AsJson = False,
) -> None:
    """Print a finished run's table and write its report anew.

    Example: florilegium report runs/demo
    """
    from simulation.report import render_report
    from simulation.summary import Summary

    path = run / "summary.json"
    if not path.is_file():
        raise InputError(f"{run} holds no summary.json", "name the directory of a finished run")
    summary = Summary.model_validate_json(path.read_text(encoding="utf-8"))
    (run / "report.html").write_text(render_report(summary), encoding="utf-8")
    _show(summary, run, as_json=as_json)


def _world(seeds: Sequence[int], users: int, turns: int) -> Mapping[int, Sequence[UserData]]:
    from simulation.world import WorldConfig, generate_users

    world = WorldConfig(turns=turns)
    return {seed: generate_users(seed, users, world) for seed in seeds}


def _file(
    path: Path, seeds: Sequence[int], users: int, min_turns: int, skip_malformed: bool
) -> Mapping[int, Sequence[UserData]]:
    from simulation.readers import Assembly, read_users

    if not path.is_file():
        raise InputError(f"{path} is no file", "name a file of JSON lines")
    return {
        seed: read_users(
            path,
            assembly=Assembly(min_turns=min_turns, min_heldout=4, max_users=users, seed=seed),
            skip_malformed=skip_malformed,
        )
        for seed in seeds
    }


def _run(users: Mapping[int, Sequence[UserData]], config: CompareConfig, out: Path, *, as_json: bool) -> None:
    from simulation.compare import run_compare
    from simulation.report import comparison_table

    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", "name a directory for the run")
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
        summary = run_compare(users, config, out, progress=None if as_json else follow)
    _show(summary, out, as_json=as_json)


def _show(summary: Summary, out: Path, *, as_json: bool) -> None:
    from simulation.report import comparison_table

    if as_json:
        typer.echo(summary.model_dump_json())
        return
    console.print(comparison_table(summary))
    console.print(f"The report: {(out / 'report.html').resolve()}")
