"""Read JSON lines as checked records; a bad line is named by its number, its field and the rule it broke.

Files are UTF-8 with one object per line; blank lines are passed over, and a line of more than `MAX_LINE_BYTES` is never
held whole. Text is kept as it is written, in whatever script, with three exceptions: halves of surrogate pairs (which
no encoding can write) become U+FFFD, surrounding white space goes, and so does what is beyond the longest ideal answer
that a device takes.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias, TypeVar

from client.annotation import LONGEST_IDEAL_BYTES
from florilegium.errors import InputError

__all__ = ["MAX_LINE_BYTES", "FieldError", "Record", "field", "read_records", "text_of", "user_of"]

MAX_LINE_BYTES: Final = 4 * 2**20
_SHOWN_PROBLEMS: Final = 5
_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")
Record: TypeAlias = Mapping[str, object]
_Parsed = TypeVar("_Parsed")
_log = logging.getLogger(__name__)


class FieldError(ValueError):
    """Report a rule that a record breaks; the reader adds where."""


def text_of(value: object, name: str) -> str:
    """Return a text that is fit for a dialogue.

    Raises:
        FieldError: it is not a text, or has no visible character.
    """
    if not isinstance(value, str):
        raise FieldError(f"field {name} must be a text, got {type(value).__name__}")
    # Cut within a character, its first bytes go as well.
    text = value.strip().encode()[:LONGEST_IDEAL_BYTES].decode(errors="ignore").rstrip()
    if not text:
        raise FieldError(f"field {name} must have a visible character")
    return text


def user_of(record: Record) -> str:
    """Return whose a record is by its `user_id`, a text or a whole number; nothing where it has none."""
    if "user_id" not in record:
        return ""
    user = record["user_id"]
    return str(user) if isinstance(user, int) and not isinstance(user, bool) else text_of(user, "user_id")


def field(record: Record, name: str) -> object:
    """Return a field's value.

    Raises:
        FieldError: the record has no such field.
    """
    if name not in record:
        raise FieldError(f"field {name} is missing")
    return record[name]


def _writable(value: object) -> object:
    """Replace halves of surrogate pairs, which JSON can spell, wherever they are."""
    if isinstance(value, str):
        return _HALF_PAIR.sub("\ufffd", value)
    if isinstance(value, list):
        return [_writable(item) for item in value]
    if isinstance(value, dict):
        return {name: _writable(item) for name, item in value.items()}
    return value


def _decode(line: bytes) -> Record:
    if len(line) > MAX_LINE_BYTES:
        raise FieldError(f"the line must have at most {MAX_LINE_BYTES} bytes")
    try:
        record = _writable(json.loads(line.decode()))
    except UnicodeDecodeError:
        raise FieldError("the line must be UTF-8") from None
    except (ValueError, RecursionError):
        raise FieldError("the line must be JSON") from None
    if not isinstance(record, dict):
        raise FieldError(f"the line must be a JSON object, got {type(record).__name__}")
    return record


def _bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; of one that is too long, enough to be refused."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_bounded_lines(file), start=1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if content.strip():
                    yield number, content
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path") from error


def read_records(path: Path, parse: Callable[[Record], _Parsed], *, skip_malformed: bool = False) -> list[_Parsed]:
    """Parse every line of a file.

    Args:
        path: a JSON lines file.
        parse: turns a record into a value, or raises `FieldError`.
        skip_malformed: pass over bad lines, and log how many there were, instead of raising.

    Raises:
        InputError: lines are bad (the first few are named), the file cannot be read, or nothing is in it.
    """
    parsed: list[_Parsed] = []
    problems: list[str] = []
    lines = 0
    for number, line in _numbered(path):
        lines += 1
        try:
            parsed.append(parse(_decode(line)))
        except FieldError as problem:
            problems.append(f"line {number}: {problem}")
    if problems and not skip_malformed:
        raise InputError(_summary(path, problems, lines), "mend the lines, or leave them out with --skip-malformed")
    if problems:
        _log.warning("%s: passed over %d malformed lines of %d", path.name, len(problems), lines)
    if not parsed:
        raise InputError(f"{path} has no usable line", "give a JSON lines file with one object per line")
    return parsed


def _summary(path: Path, problems: list[str], lines: int) -> str:
    shown = "; ".join(problems[:_SHOWN_PROBLEMS])
    more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
    return f"{path} has {len(problems)} malformed lines of {lines}: {shown}{more}"
