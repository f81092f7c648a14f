"""Put exchanges together as users: a stream in the file's order, and a share that is held out of it.

What is held out together is a *unit*: all exchanges of one dialogue, or, where a file has single questions, all
exchanges of one user with the same question (letters and digits compared, case ignored). A unit is held out if the
hash of its name falls into the share, so neither the order nor the rest of the file decides, and both speakers of a
dialogue agree on it; a file may also say itself what is held out. Held-out exchanges whose question (of dialogues also:
whose answer) the user's stream gives away (`simulation.overlap`), like a greeting, are left out altogether; of a
question held out twice, the last answer stays.

A file's name for a user, be it an identifier, a category or an address, never gets further than here: results and
reports show a hash of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from client.dialogue import Example, derive_id, derive_seed
from florilegium.errors import ConfigError, InputError
from simulation.overlap import KnownTexts, words_of
from simulation.users import Turn, UserData

__all__ = ["Assembly", "Exchange", "assemble", "name_user", "normalized"]

_HASH_RANGE: Final = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question and its preferred answer, not yet assigned to the stream or held out.

    Attributes:
        user: whose it is, as reports may show it.
        question: what the user says.
        preferred: the ideal answer.
        response: what a model answered, if the data has it.
        unit: the name of what is held out together.
        kind: a label for reports.
        dialogue: whether it is a piece of a dialogue, where an answer is as telling as a question.
        held_out: whether it is held out; None leaves it to its unit.
    """

    user: str
    question: str
    preferred: str
    unit: str
    response: str | None = None
    kind: str = ""
    dialogue: bool = False
    held_out: bool | None = None

    @property
    def telling(self) -> tuple[str, ...]:
        """The texts by which the stream gives it away, or it others."""
        return (self.question, self.preferred) if self.dialogue else (self.question,)

    def __repr__(self) -> str:
        return f"Exchange({self.kind}, {len(self.question)}+{len(self.preferred)} characters)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """How users are put together.

    Attributes:
        heldout_share: share of the units that is held out.
        min_turns: users with fewer turns in the stream are left out.
        min_heldout: users with fewer held-out questions are left out.
        max_users: how many users to keep at most, drawn by `seed`; None keeps all.
        seed: draws the users.
    """

    heldout_share: float = 0.2
    min_turns: int = 1
    min_heldout: int = 0
    max_users: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.heldout_share < 1:
            raise ConfigError(f"heldout_share must be in [0, 1), got {self.heldout_share}")
        if self.max_users is not None and self.max_users < 1:
            raise ConfigError(f"max_users must be at least 1, got {self.max_users}")


def normalized(text: str) -> str:
    """Return the words of a text with one space between them.

    >>> normalized("  What is NEW, then? ")
    'what is new then'
    """
    return " ".join(words_of(text))


def name_user(owner: str, text: str, pseudo_users: int) -> str:
    """Return a stand-in for an owner's name or, where there is none, one of a few pseudo-users, by a text."""
    if owner:
        return f"user-{derive_id('user', owner)[:16]}"
    return f"pseudo-{derive_seed('pseudo-user', text) % pseudo_users:03d}"


def _is_held_out(exchange: Exchange, share: float) -> bool:
    if exchange.held_out is not None:
        return exchange.held_out
    return derive_seed("held-out unit", exchange.unit) < share * _HASH_RANGE


def _novel(held: Iterable[Exchange], stream: Iterable[Exchange]) -> list[Exchange]:
    """Keep the held-out exchanges that the stream does not give away."""
    known = KnownTexts(chain.from_iterable(exchange.telling for exchange in stream))
    novel = (exchange for exchange in held if not any(known.give_away(text) for text in exchange.telling))
    return list({normalized(exchange.question): exchange for exchange in novel}.values())


def _make_user(user: str, exchanges: Sequence[Exchange], share: float) -> UserData:
    stream: list[Exchange] = []
    held: list[Exchange] = []
    for exchange in exchanges:
        (held if _is_held_out(exchange, share) else stream).append(exchange)
    turns = tuple(
        Turn(
            turn_id=derive_id("read-turn", user, index),
            question=exchange.question,
            preferred=exchange.preferred,
            response=exchange.response,
            kind=exchange.kind,
        )
        for index, exchange in enumerate(stream)
    )
    novel = _novel(held, stream)
    keys = [derive_id("read-heldout", user, index) for index in range(len(novel))]
    examples = tuple(
        Example(question=exchange.question, response=exchange.preferred, source_id=key, example_id=key)
        for key, exchange in zip(keys, novel, strict=True)
    )
    kinds = {key: exchange.kind for key, exchange in zip(keys, novel, strict=True)}
    return UserData(user_id=user, stream=turns, heldout=examples, heldout_kinds=kinds)


def _choose(users: list[UserData], most: int | None, seed: int) -> list[UserData]:
    if most is None or len(users) <= most:
        return users
    chosen = set(random.Random(derive_seed("choose users", seed)).sample(range(len(users)), most))
    return [user for index, user in enumerate(users) if index in chosen]


def assemble(exchanges: Iterable[Exchange], assembly: Assembly) -> list[UserData]:
    """Return the users of some exchanges, ordered by first appearance.

    Raises:
        InputError: no user has enough turns and held-out questions.
    """
    by_user: dict[str, list[Exchange]] = {}
    for exchange in exchanges:
        by_user.setdefault(exchange.user, []).append(exchange)
    made = (_make_user(user, own, assembly.heldout_share) for user, own in by_user.items())
    users = [u for u in made if len(u.stream) >= assembly.min_turns and len(u.heldout) >= assembly.min_heldout]
    if not users:
        raise InputError(
            f"none of {len(by_user)} users has at least {assembly.min_turns} turns"
            f" and {assembly.min_heldout} held-out questions",
            "lower min_turns or min_heldout",
        )
    return _choose(users, assembly.max_users, assembly.seed)
