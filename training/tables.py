"""Read the tables that this project's own training text is made from.

A table is a text file in `tables/`: lines beginning with "#" are comments, "[name]" begins a section.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "tables"


def read_table(name: str) -> dict[str, list[str]]:
    """Return the lines of each section of a table; lines before the first section are in section ""."""
    sections: dict[str, list[str]] = {"": []}
    current = sections[""]
    for line in (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line.startswith("[") and line.endswith("]"):
            current = sections.setdefault(line[1:-1], [])
        else:
            current.append(line)
    return sections


def read_words(name: str) -> dict[str, list[str]]:
    """Return the words of each section of a table."""
    return {section: " ".join(lines).split() for section, lines in read_table(name).items()}
