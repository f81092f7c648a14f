"""Read single questions with their answers: own logs by user, or public question-answer files by category.

A row's `preferred` is the ideal answer and its `response`, if it has one, the model's. Without `preferred`, `response`
is the ideal and the simulated device answers for itself. A `part`, "stream" or "heldout", settles what is held out. A
`kind`, or else the category, is the label in reports if it is a short code; a text may say anything and stays here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from simulation.readers.assembly import Exchange, name_user, normalized
from simulation.readers.records import FieldError, Record, field, text_of, user_of

__all__ = ["Columns", "exchange_of", "parse_row"]

_CATEGORIES: Final = ("category", "domain", "subset")
_CODE: Final = re.compile(r"[a-z0-9_-]{1,32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The names of a row's fields.

    Attributes:
        question: what the user says.
        response: what the model answered, or the ideal answer where there is no `preferred`.
        preferred: the ideal answer; rows may lack it, and None never looks for it.
    """

    question: str = "question"
    response: str = "response"
    preferred: str | None = "preferred"


def exchange_of(record: Record, user: str, kind: str, columns: Columns) -> Exchange:
    """Make one row an exchange of a user.

    Raises:
        FieldError: a field is missing or is no text.
    """
    question = text_of(field(record, columns.question), columns.question)
    unit = f"{user}\n{normalized(question)}"
    if columns.preferred is None or record.get(columns.preferred) is None:
        ideal = text_of(field(record, columns.response), columns.response)
        return Exchange(user=user, question=question, preferred=ideal, unit=unit, kind=kind)
    ideal, given = text_of(record[columns.preferred], columns.preferred), record.get(columns.response)
    response = None if given is None else text_of(given, columns.response)
    return Exchange(user=user, question=question, preferred=ideal, unit=unit, kind=kind, response=response)


def parse_row(pseudo_users: int) -> Callable[[Record], Exchange]:
    """Return a parser of rows; without a `user_id` the category is the user, or else one of a few pseudo-users."""

    def parse(record: Record) -> Exchange:
        category = _category(record)
        exchange = exchange_of(record, user_of(record) or category, _code(record.get("kind") or category), Columns())
        user = name_user(exchange.user, exchange.unit, pseudo_users)
        return replace(exchange, user=user, held_out=_held_out(record))

    return parse


def _held_out(record: Record) -> bool | None:
    match record.get("part"):
        case None:
            return None
        case "stream" | "heldout" as part:
            return part == "heldout"
    raise FieldError("field part must be stream or heldout")


def _code(label: object) -> str:
    code = label.strip().lower() if isinstance(label, str) else ""
    return code if _CODE.fullmatch(code) else "row"


def _category(record: Record) -> str:
    for name in _CATEGORIES:
        value = record.get(name)
        if isinstance(value, list):
            value = "+".join(sorted(map(str, value)))
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""
