"""Tell what a file is from its records' fields, and read it as users."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Final

from florilegium.errors import ConfigError
from simulation.readers.assembly import Assembly, Exchange, assemble
from simulation.readers.dialogues import Split, parse_dialogue, parse_personas
from simulation.readers.records import FieldError, Record, read_records
from simulation.readers.rows import parse_row
from simulation.users import UserData

__all__ = ["read_users"]

_ROW: Final = {"user_id", "question", "response", "preferred"}


def _parser(split: Split, pseudo_users: int) -> Callable[[Record], list[Exchange]]:
    personas, dialogue, row = parse_personas(split), parse_dialogue(pseudo_users), parse_row(pseudo_users)

    def parse(record: Record) -> list[Exchange]:
        if {"persona1", "persona2", "turns"} <= record.keys():
            return personas(record)
        if {"turns", "messages"} & record.keys():
            return dialogue(record)
        if _ROW & record.keys():
            return [row(record)]
        raise FieldError("the line must have the fields question and response, or turns, or messages")

    return parse


def read_users(
    path: Path | str,
    *,
    assembly: Assembly | None = None,
    split: Split = "evaluate",
    pseudo_users: int = 20,
    skip_malformed: bool = False,
) -> list[UserData]:
    """Read any of the known file formats, told apart by the records' fields.

    Args:
        path: a JSON lines file.
        assembly: how users are put together; by default a fifth of each is held out.
        split: of personas, which half of the users; "evaluate" never trained the built-in model.
        pseudo_users: how many users share what has no owner.
        skip_malformed: pass over bad lines, and log how many there were.

    Returns:
        The users, ordered by first appearance.

    Raises:
        InputError: a line is malformed, or nobody has enough turns.
        ConfigError: the split is unknown, or `pseudo_users` is not positive.
    """
    if split not in ("train", "evaluate", "all"):
        raise ConfigError(f"split must be train, evaluate or all, got {split!r}")
    if pseudo_users < 1:
        raise ConfigError(f"pseudo_users must be at least 1, got {pseudo_users}")
    records = read_records(Path(path), _parser(split, pseudo_users), skip_malformed=skip_malformed)
    return assemble(chain.from_iterable(records), assembly or Assembly())
