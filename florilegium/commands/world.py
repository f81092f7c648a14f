"""`florilegium world`: write simulated users to a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.durable import storage_errors
from florilegium.commands.output import console

if TYPE_CHECKING:
    from simulation.users import UserData

__all__ = ["world"]


def world(
    file: Annotated[Path, typer.Argument(help="JSON lines to write: user_id, question, preferred, kind, part.")],
    users: Annotated[int, typer.Option(help="How many users.", min=1)] = 8,
    turns: Annotated[int, typer.Option(help="Dialogues in each user's stream.", min=1)] = 600,
    seed: Annotated[int, typer.Option(help="Another seed, another world.", min=0)] = 0,
) -> None:
    """Write users of the built-in world to a file, to look at or to use elsewhere.

    Example: florilegium world users.jsonl --users 20 --seed 3
    """
    from simulation.world import WorldConfig, generate_users

    drawn = generate_users(seed, users, WorldConfig(turns=turns))
    with storage_errors(file), file.open("w", encoding="utf-8") as out:
        for user in drawn:
            for row in _rows(user):
                out.write(json.dumps({"user_id": user.user_id, **row}, ensure_ascii=False) + "\n")
    console.print(f"{users} users written to {file}")


def _rows(user: UserData) -> Iterator[dict[str, str]]:
    for turn in user.stream:
        yield {"part": "stream", "question": turn.question, "preferred": turn.preferred, "kind": turn.kind}
    for example in user.heldout:
        kind = user.heldout_kinds[example.example_id]
        yield {"part": "heldout", "question": example.question, "preferred": example.response, "kind": kind}
