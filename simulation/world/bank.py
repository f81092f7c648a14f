"""Read the banks: editable text files with everything a world can say.

A bank is a TOML file; each table in it is a `Kind`, one thing that can be asked about:

    slots   what varies: a name for each blank, and where its values come from (see `values.draw`)
    ask     how a user asks; blanks in braces, `{a item}` writes the right article
    tell    how a user states the fact
    change  how a user says that the fact is now another one
    keeps   blanks that stay as they are when the fact changes
    brief   the answer in few words
    full    the answer in more words (`brief` when it is missing)

Blanks that occur in `ask` are the fact's *key* (which pet?); the others are its *value* (the pet's name). A fact
that changes keeps its key, and what `keeps` names.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final, TypeAlias

__all__ = ["BLANK", "Kind", "chitchat", "common", "lines", "pool", "private", "views"]

BLANK: Final = re.compile(r"\{(a )?(\w+)\}")
Tables: TypeAlias = dict[str, dict[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind:
    """One thing that can be asked about, with all its wordings.

    Attributes:
        name: unique among all banks.
        domain: the part of life it belongs to; the name of its file.
        slots: for each blank, where its values come from.
        ask: questions.
        tell: statements of the fact.
        change: statements that the fact has changed.
        keeps: blanks that a change leaves alone, besides the key.
        brief: short answers.
        full: long answers.
    """

    name: str
    domain: str
    slots: Mapping[str, str]
    ask: tuple[str, ...]
    tell: tuple[str, ...]
    change: tuple[str, ...]
    keeps: tuple[str, ...]
    brief: tuple[str, ...]
    full: tuple[str, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """Name the blanks that the questions mention."""
        return tuple(name for name in self.slots if any(name in blanks(text) for text in self.ask))

    def __repr__(self) -> str:
        return f"Kind({self.name})"


def blanks(template: str) -> set[str]:
    """Return the names of a template's blanks."""
    return {name for _, name in BLANK.findall(template)}


@cache
def _tables(bank: str) -> Tables:
    text = files("simulation.world").joinpath("banks", f"{bank}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _texts(table: Mapping[str, object], field: str) -> tuple[str, ...]:
    value = table.get(field, [])
    assert isinstance(value, list)
    return tuple(str(text) for text in value)


def _kind(name: str, domain: str, table: Mapping[str, object], **changed: tuple[str, ...]) -> Kind:
    slots = table.get("slots", {})
    assert isinstance(slots, dict)
    wordings = {field: _texts(table, field) for field in ("ask", "tell", "change", "keeps", "brief", "full")} | changed
    wordings["full"] = wordings["full"] or wordings["brief"]
    return Kind(name=name, domain=domain, slots={str(k): str(v) for k, v in slots.items()}, **wordings)


def _bank(bank: str) -> tuple[Kind, ...]:
    return tuple(_kind(f"{bank}.{name}", bank, table) for name, table in _tables(bank).items())


@cache
def private() -> tuple[Kind, ...]:
    """Return what only one user knows, over all domains of life."""
    names = lines("domains", "private")
    return tuple(kind for name in names for kind in _bank(name))


@cache
def common() -> tuple[Kind, ...]:
    """Return what a whole town knows."""
    return _bank("common")


@cache
def chitchat() -> tuple[Kind, ...]:
    """Return small talk and routine requests, with nothing personal in them."""
    return _bank("chitchat")


@cache
def views() -> tuple[tuple[Kind, Kind], ...]:
    """Return questions on which people disagree: the same questions with two contradicting answers."""
    return tuple(
        (
            _kind(f"views.{name}.left", "views", table, brief=_texts(table, "left")),
            _kind(f"views.{name}.right", "views", table, brief=_texts(table, "right")),
        )
        for name, table in _tables("views").items()
    )


@cache
def lines(bank: str, field: str, section: str = "lines") -> tuple[str, ...]:
    """Return a list of texts from a bank's section."""
    return _texts(_tables(bank)[section], field)


@cache
def pool(name: str) -> tuple[str, ...]:
    """Return a pool of values."""
    return lines("pools", name, "pools")
