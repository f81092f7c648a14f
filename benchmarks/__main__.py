"""Run the benchmarks one after another and write what they found to `docs/benchmarks.md`.

python -m benchmarks                      # all; about three quarters of an hour on two cores that do nothing else
python -m benchmarks selection synthesis  # some; the others' sections stay as they are
"""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from benchmarks.report import machine

PAGE: Final = Path(__file__).parent.parent / "docs" / "benchmarks.md"
RUNS: Final = {
    "selection": "benchmarks.selection",
    "finetuning": "benchmarks.finetuning trainer",
    "trunk-cache": "benchmarks.finetuning trunk",
    "half-billion": "benchmarks.finetuning large",
    "synthesis": "benchmarks.synthesis",
    "fleet": "benchmarks.fleet against",
    "fleet-scale": "benchmarks.fleet scale",
    "fleet-uplink": "benchmarks.fleet uplink",
    "fleet-month": "benchmarks.fleet month",
}
HEAD: Final = """# Benchmarks

Written by `make bench`; each section says with which command, when, and on which machine. Ratios are of runs that
alternated on that machine; in brackets the lowest and the highest. The docstrings say what is measured and how.
"""


def sections(page: str) -> dict[str, str]:
    """Return the sections of the page by name."""
    parts = page.split("\n## ")[1:]
    return {name: text for name, _, text in (part.partition("\n") for part in parts)}


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Which: {', '.join(RUNS)}. All when left out.")] = None,
) -> None:
    """Run benchmarks and write docs/benchmarks.md.

    Example: python -m benchmarks selection
    """
    console = Console()
    for unknown in [name for name in names or () if name not in RUNS]:
        console.print(f"error: there is no benchmark {unknown!r}; there are {', '.join(RUNS)}")
        raise typer.Exit(2)
    found = sections(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    for name in names or RUNS:
        console.rule(name)
        done = subprocess.run(
            [sys.executable, "-m", *RUNS[name].split()], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise typer.Exit(done.returncode)
        console.print(done.stdout, markup=False, highlight=False, soft_wrap=True)
        when = f"{datetime.now(UTC):%Y-%m-%d}"
        found[name] = f"\n`python -m {RUNS[name]}`, {when}, {machine()}\n\n{done.stdout.strip()}\n"
        ordered = [f"\n## {each}\n{found[each]}" for each in RUNS if each in found]
        PAGE.write_text(HEAD + "".join(ordered), encoding="utf-8")
    console.print(f"Written: {PAGE}")


if __name__ == "__main__":
    typer.run(main)
