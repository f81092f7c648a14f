"""What commands share: where results and progress go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["AsJson", "console", "print_json", "progress_bar"]

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON lines for programs instead of text.")]

console = Console(highlight=False)


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on one line."""
    typer.echo(json.dumps(value, ensure_ascii=False))


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
