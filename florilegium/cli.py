"""The command line: `florilegium --help` lists what it does.

Exit codes: 0 done, 2 a setting is wrong, 3 an input cannot be used, 4 the model, 5 storage, 6 memory, 130 stopped by
the user. `docs/commands.md` is generated from this program's own help.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

import florilegium
from florilegium.commands import compare, device, world
from florilegium.errors import FlorilegiumError

__all__ = ["app", "main"]

app = typer.Typer(
    name="florilegium",
    help="Personalize a language model on every device of a fleet, from a tiny private buffer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(device.app, name="device")
app.command("demo")(compare.demo)
app.command("compare")(compare.compare)
app.command("report")(compare.report)
app.command("world")(world.world)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"florilegium {florilegium.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    # Tokenizers' own threads quarrel with worker processes, and the progress bars of loading are noise here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main() -> None:
    """Run the command line; print a user's mistake as one line instead of a traceback."""
    errors = Console(stderr=True, highlight=False)
    try:
        app()
    except FlorilegiumError as error:
        errors.print("[bold red]error:[/]", str(error).replace("[", r"\["), soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on from here")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): that is no mistake of anyone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
