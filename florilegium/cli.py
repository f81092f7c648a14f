"""The command line: `florilegium --help` lists what it does.

Exit codes: 0 done, 2 a setting is wrong or a part is not installed, 3 an input cannot be used, 4 the model, 5 storage,
6 memory, 7 privacy, 8 too few devices, 130 stopped by the user. `docs/commands.md` is generated from this program's own
help.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import click
import typer
from typer.core import TyperGroup

import florilegium
from florilegium.commands import compare, device, registry, simulate, world
from florilegium.commands.output import print_error
from florilegium.errors import ConfigError, FlorilegiumError, MemoryBudgetError, StorageError

__all__ = ["app", "main"]

_OWN = frozenset({"client", "florilegium", "privacy", "server", "simulation", "strategies"})
_POSIX = frozenset({"fcntl", "resource"})


class _Program(TyperGroup):
    """The root command: what goes wrong below it is said in one line."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader of our output went away (`| head`): that is no mistake of anyone.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on from here", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            known = _explain(error, ctx.invoked_subcommand)
            if known is None:
                raise
            print_error(str(known))
            raise typer.Exit(known.exit_code) from None
        return result


def _explain(error: Exception, command: str | None) -> FlorilegiumError | None:
    """Say what a user can do about an error; None if it is no one's but the program's."""
    if isinstance(error, FlorilegiumError):
        return error
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        if module in _POSIX:
            return ConfigError("this system is not supported", "use Linux or macOS; on Windows, WSL")
        extra = {"device": "device", "registry": "server"}.get(command or "", "simulation")
        remedy = f"in a clone of the project: pip install '.[{extra}]'"
        return None if module in _OWN else ConfigError(f"the library {module!r} is not installed", remedy)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return StorageError(f"{where}{error.strerror or type(error).__name__}", "check the file and the disk")
    # torch has errors of its own, and is not imported for them
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error):
        return MemoryBudgetError("the memory is full", "close other programs, use a smaller model or shorter texts")
    return None


app = typer.Typer(
    name="florilegium",
    cls=_Program,
    help="Personalize a language model on every device of a fleet, from a tiny private buffer.\n\n"
    "Example: florilegium demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(device.app, name="device")
app.add_typer(registry.app, name="registry")
app.command("demo")(compare.demo)
app.command("compare")(compare.compare)
app.command("simulate")(simulate.simulate)
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
    """Run the command line."""
    app()
