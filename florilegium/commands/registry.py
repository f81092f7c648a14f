"""`florilegium registry`: the versions of a run's shared adapter, and which of them is served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from florilegium.commands.output import AsJson, console, print_json
from florilegium.errors import InputError

if TYPE_CHECKING:
    from client.adapter_store import Version
    from server.registry import Registry

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="List, promote and roll back a run's shared adapters.\n\n"
    "Example: florilegium registry list runs/server/registry",
)

# Of a round's numbers, what fits 80 columns; --json prints all.
_SHOWN: Final = ("round", "taken", "refused", "failed", "silent", "improvement", "uplink_bytes")

Directory: TypeAlias = Annotated[Path, typer.Argument(help="The folder `registry` in the server's directory.")]


def _open(directory: Path) -> Registry:
    from server.registry import Registry

    if not (directory / "versions").is_dir():
        raise InputError(f"{directory} is no registry", "name the folder 'registry' in a server's directory")
    return Registry(directory)


@app.command("list")
def list_(directory: Directory, as_json: AsJson = False) -> None:
    """List the versions with the numbers of their rounds, and say which one is served.

    Example: florilegium registry list runs/coordination/registry
    """
    registry = _open(directory)
    versions = registry.versions()
    if as_json:
        held = [{"version": each.number, "path": str(each.path), "metrics": dict(each.metrics)} for each in versions]
        print_json({**_state(registry), "versions": held})
        return
    console.print(_table(versions, registry.current))
    _print_state(registry)


@app.command()
def promote(
    directory: Directory,
    version: Annotated[int, typer.Argument(help="The number of a version.", min=1)],
    as_json: AsJson = False,
) -> None:
    """Serve a version; if it is not the newest, it stays when newer ones come.

    Example: florilegium registry promote runs/coordination/registry 12
    """
    registry = _open(directory)
    registry.promote(version)
    _print_state(registry, as_json=as_json)


@app.command()
def roll_back(directory: Directory, as_json: AsJson = False) -> None:
    """Serve the version that was served before the present one; it stays until the newest is promoted.

    Example: florilegium registry roll-back runs/coordination/registry
    """
    registry = _open(directory)
    registry.roll_back()
    _print_state(registry, as_json=as_json)


def _state(registry: Registry) -> dict[str, object]:
    return {"served": registry.current, "pinned": registry.is_pinned}


def _print_state(registry: Registry, *, as_json: bool = False) -> None:
    if as_json:
        print_json(_state(registry))
        return
    served = "the bare base model" if registry.current is None else f"version {registry.current}"
    stays = "until the newest version is promoted" if registry.is_pinned else "until the next version comes"
    console.print(f"{served} is served, {stays}")


def _table(versions: Sequence[Version], served: int | None) -> Table:
    """Return a row for each version; a number that none of them has, or that is zero for all, has no column."""
    names = [name for name in _SHOWN if any(each.metrics.get(name) for each in versions)]
    table = Table("version", "served", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for each in versions:
        numbers = [_cell(each.metrics.get(name)) for name in names]
        table.add_row(str(each.number), "yes" if each.number == served else "", *numbers)
    return table


def _cell(value: object) -> str:
    return f"{round(value, 4):,.12g}" if isinstance(value, int | float) else ""
