"""What commands share: where results, messages and progress go.

Nothing that is printed is read as markup or cut into lines: it may be a path, an identifier or what a user said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["AsJson", "console", "print_error", "print_json", "progress_bar"]

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON lines for programs instead of text.")]


class _Console(Console):
    """A console that leaves it to the program what a closed pipe means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


console = _Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
_errors = _Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=True)


def print_error(message: str) -> None:
    """Print what is wrong, on one line of standard error."""
    _errors.print(Text("error:", style="bold red"), message)


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on one line; numbers that are not finite are null."""
    typer.echo(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def progress_bar(*, hidden: bool = False) -> Progress:
    """Return a progress bar with the time left, on standard error, so that piped results stay clean."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=hidden,
    )
