"""Read single questions with their answers: own logs by user, or public question-answer files by category.

A row with `preferred` holds both the model's answer (`response`) and the ideal one. Without it, `response` is the
ideal and the simulated device answers for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from simulation.readers.assembly import Assembly, Exchange, assemble, normalized, pseudo_user
from simulation.readers.records import Record, field, read_records, text_of
from simulation.users import UserData

__all__ = ["Columns", "exchange_of", "parse_category_row", "parse_user_row", "read_jsonl"]

_CATEGORIES = ("category", "domain", "subset")


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
    response = text_of(field(record, columns.response), columns.response)
    own = Exchange(user=user, question=question, preferred=response, unit=f"{user}\n{normalized(question)}", kind=kind)
    if columns.preferred is None or record.get(columns.preferred) is None:
        return own
    return replace(own, preferred=text_of(record[columns.preferred], columns.preferred), response=response)


def parse_user_row(record: Record) -> Exchange:
    """Parse a row with a `user_id`, which is a text or a whole number."""
    user = field(record, "user_id")
    if isinstance(user, int) and not isinstance(user, bool):
        user = str(user)
    return exchange_of(record, text_of(user, "user_id"), "row", Columns())


def parse_category_row(pseudo_users: int) -> Callable[[Record], Exchange]:
    """Return a parser of rows without a user: the category is the user, or else one of a few pseudo-users."""

    def parse(record: Record) -> Exchange:
        category = _category(record)
        exchange = exchange_of(record, category, category, Columns())
        if category:
            return exchange
        user = pseudo_user(normalized(exchange.question), pseudo_users)
        return replace(exchange, user=user, kind="row")

    return parse


def _category(record: Mapping[str, object]) -> str:
    for name in _CATEGORIES:
        value = record.get(name)
        if isinstance(value, list):
            value = "+".join(sorted(map(str, value)))
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""


def read_jsonl(path: Path | str, *, assembly: Assembly | None = None, skip_malformed: bool = False) -> list[UserData]:
    """Read JSON lines with the fields user_id, question, response and, if wanted, preferred.

    Args:
        path: the file.
        assembly: how users are put together; by default a fifth of each user's questions is held out.
        skip_malformed: pass over bad lines, and log how many there were.

    Returns:
        The users, ordered by first appearance.

    Raises:
        InputError: a line is malformed, or nobody has enough rows.
    """
    exchanges = read_records(Path(path), parse_user_row, skip_malformed=skip_malformed)
    return assemble(exchanges, assembly or Assembly())
