"""Rule: what devices share of their adapters, and how that becomes what they start the next round from.

A rule is a frozen value with pure functions of named tensors. The server holds a state; in each exchange of a round

    server   down(state)                    → what a device receives
    device   load(down, kept)               → the adapter to train          … duty says what and how …
    device   up(before, after, down)        → what leaves it;  keep(after)  → what stays there for the next round
    server   advance(state, mean | replies) → the next state

A `Linear` rule needs no more than the weighted mean of what left the devices: replies can be summed one by one, masked,
or noised once. An `Individual` one looks at every reply, and a plan with secure aggregation refuses it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from florilegium.tensors import Tensors, subtract

if TYPE_CHECKING:
    from strategies.directions import Directions

__all__ = ["Duty", "Individual", "Linear", "Loaded", "Reply", "Rule", "Turn", "shares"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What both sides know of one exchange with one device.

    Attributes:
        round: from 1.
        exchange: from 0, within the round.
        rank: of this device's adapter.
        scale: s = α / rank of this device's adapter.
        seed: the plan's; draws that both sides make derive from it and the round.
        device: who it is, for rules that treat devices differently; 0 on the device itself.
    """

    round: int
    exchange: int = 0
    rank: int
    scale: float
    seed: int = 0
    device: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Duty:
    """What a device does in an exchange.

    Attributes:
        work: "train" (the round's local steps), "zeroth-order" (the same along the loaded directions, by losses alone),
            "gradient" (the mean gradient over its rows, with no step), or "nothing" (the adapters before and after are
            those of the round's first exchange).
        part: of the shared adapter.
    """

    work: Literal["train", "zeroth-order", "gradient", "nothing"] = "train"
    part: Literal["AB", "A", "B", "core"] = "AB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a device puts in place before it works.

    Attributes:
        adapter: the shared slot's tensors, of the device's rank; empty before they are `replayed`.
        core: R of each layer, where "core" is trained.
        residual: by layer, `(outputs, inputs)`, added to the frozen weights.
        directions: what the adapter is replayed from, where it does not travel itself.
    """

    adapter: Tensors = field(repr=False)
    core: Tensors | None = field(default=None, repr=False)
    residual: Tensors | None = field(default=None, repr=False)
    directions: Directions | None = field(default=None, repr=False)

    def replayed(self, like: Tensors) -> Self:
        """Return this with its adapter, whose shapes are those of `like`."""
        return self if self.directions is None else replace(self, adapter=self.directions.adapter(like))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one device sent.

    Attributes:
        device: who.
        weight: its share in means, > 0.
        scale: s of its adapter.
        tensors: as `up` made them.
    """

    device: int
    weight: float
    scale: float
    tensors: Tensors = field(repr=False)


class Rule(ABC):
    """The defaults are those of averaging both factors; see the module.

    Attributes:
        name: on the command line and in files.
        mixed_ranks: whether devices may have adapters of different ranks.
        starts_afresh: whether each round's adapters are folded into the weights, and the next begins with new ones.
    """

    name: ClassVar[str]
    mixed_ranks: ClassVar[bool] = False
    starts_afresh: ClassVar[bool] = False

    def sums_updates(self, turn: Turn) -> bool:
        """Whether the mean of what leaves is a change of the state's tensors of the same keys.

        Then a server optimizer can scale it.
        """
        return False

    def exchanges(self, round_number: int) -> int:
        """Return how many times a device is asked in a round."""
        return 1

    def duty(self, turn: Turn) -> Duty:
        """Return what a device does."""
        return Duty()

    def start(self, adapter: Tensors, turn: Turn) -> Tensors:
        """Return the server's first state.

        Args:
            adapter: of the server's rank, with A drawn from the plan's seed and B zero.
            turn: round 0, with the server's rank and scale.
        """
        return adapter

    def down(self, state: Tensors, turn: Turn) -> Tensors:
        """Return what a device receives."""
        return state

    def load(self, down: Tensors, kept: Tensors, turn: Turn) -> Loaded:
        """Return what a device puts in place.

        Args:
            down: as received.
            kept: as `keep` returned it in the device's last round; empty in its first.
            turn: the exchange.
        """
        return Loaded(adapter=down)

    def up(self, before: Tensors, after: Tensors, down: Tensors, turn: Turn) -> Tensors:
        """Return what leaves a device.

        Args:
            before: the shared adapter before the work (where a gradient was asked for: zeros).
            after: the shared adapter after it (where a gradient was asked for: the gradient; where directions were:
                with what they were followed by, under `strategies.directions.SCALARS`, if any step was taken).
            down: as received in this exchange.
            turn: the exchange.
        """
        return subtract(after, before)

    def keep(self, after: Tensors, turn: Turn) -> Tensors:
        """Return what stays on the device for its next round; it never leaves it."""
        return {}

    def adapter(self, state: Tensors, turn: Turn) -> Loaded:
        """Return what a device without a past would use of the state now, to be measured or published."""
        return self.load(self.down(state, turn), {}, turn)


class Linear(Rule):
    """A rule that needs the weighted mean alone."""

    @abstractmethod
    def advance(self, state: Tensors, mean: Tensors, turn: Turn) -> Tensors:
        """Return the next state, given Σ pᵢ upᵢ with Σ pᵢ = 1."""


class Individual(Rule):
    """A rule that looks at every reply."""

    @abstractmethod
    def advance(self, state: Tensors, replies: Sequence[Reply], turn: Turn) -> Tensors:
        """Return the next state; the order of the replies changes nothing but rounding."""


def shares(replies: Sequence[Reply]) -> list[float]:
    """Return pᵢ, the replies' weights divided by their sum."""
    total = math.fsum(reply.weight for reply in replies)
    return [reply.weight / total for reply in replies]
