"""Find the text that a reply holds in brackets."""

from __future__ import annotations

from typing import Final

__all__ = ["bracketed"]

# Models that write Chinese or Japanese answer with brackets of their own.
_BRACKETS: Final = str.maketrans("［］【】", "[][]")


def bracketed(reply: str) -> str | None:
    """Return the text in the first brackets of `reply`, on one line, or None where no bracket opens and closes.

    Whatever stands before or after is ignored; brackets around brackets are peeled; brackets inside the text stay.

    >>> bracketed("Sure: [[When does  it open?]] I hope this helps [a bit].")
    'When does it open?'
    >>> bracketed("When does it open?") is None
    True
    """
    text = reply.translate(_BRACKETS)
    start = text.find("[")
    end = _closing(text, start) if start >= 0 else None
    if end is None:
        return None
    inner = " ".join(text[start + 1 : end].split())
    if inner.startswith("[") and _closing(inner, 0) == len(inner) - 1:
        return bracketed(inner)
    return inner


def _closing(text: str, start: int) -> int | None:
    """Return where the bracket that opens at `start` closes."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "[") - (text[position] == "]")
        if depth == 0:
            return position
    return None
