"""Gathering: the replies of one exchange, taken one at a time and merged into the server's next state.

    linear plans        Σ wᵢ payloadᵢ is all that is held; decoded once if the codec is linear, reply by reply if not
    individual plans    every reply is held until the end

A gathering refuses what is not as declared; who was refused, and why, is the caller's to report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from florilegium.errors import InputError
from florilegium.packing import Packed, accumulate, pack, unpack
from florilegium.tensors import Tensors, is_finite, scale, subtract
from privacy.device_level import bound, noise_sum
from privacy.egress import Declared, Refusal, RefusedError, check_in
from privacy.noise import NoiseSource, SystemSource
from strategies.codecs import Shapes, payload_bytes, shapes_of
from strategies.draws import seed_of
from strategies.optimizers import step_part
from strategies.plan import Plan
from strategies.rule import Individual, Linear, Reply, Turn

__all__ = ["Exchange", "Gathering", "Shared", "declared_shapes", "prepare"]

_WEIGHTS: Final = "weights are finite and > 0"
# No adapter comes near it, and the product or the square of two such numbers is far from the largest float32.
_LARGEST_NORM: Final = 2.0**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What a server holds.

    Attributes:
        state: the rule's.
        moments: the server optimizer's, by "moment/key".
        change: what each tensor last changed by, for codecs that look at it; empty before the first.
    """

    state: Tensors = field(repr=False)
    moments: Tensors = field(default_factory=dict, repr=False)
    change: Tensors = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What all devices of one rank are told and held to in one exchange.

    Attributes:
        turn: where the fleet is.
        down: what travels to a device; the rule's.
        agreement: what the codec's devices have in common.
        shapes: of what `up` gives, before it is encoded.
        declared: shapes and types of what a reply holds.
    """

    turn: Turn
    down: Tensors = field(repr=False)
    agreement: Tensors = field(repr=False)
    shapes: Shapes = field(repr=False)
    declared: Declared = field(repr=False)


def prepare(plan: Plan, shared: Shared, turn: Turn, like: Mapping[str, Tensor]) -> Exchange:
    """Return what a device is told in this turn.

    Args:
        plan: of the fleet.
        shared: what the server holds.
        turn: of the device.
        like: an adapter of the device's rank; only its shapes count.
    """
    assert plan.rule is not None
    down = plan.rule.down(shared.state, turn)
    shapes = declared_shapes(plan, down, like, turn)
    change = {key: tensor for key, tensor in shared.change.items() if key in shapes} or None
    agreement = plan.codec.agree(shapes, seed=seed_of(plan.seed, "codec", turn.round, turn.exchange), change=change)
    return Exchange(
        turn=turn, down=down, agreement=agreement, shapes=shapes, declared=Declared(tensors=plan.codec.declared(shapes))
    )


def declared_shapes(plan: Plan, down: Mapping[str, Tensor], like: Mapping[str, Tensor], turn: Turn) -> Shapes:
    """Return the shapes of what `up` gives, from nothing but zeros; both sides compute it for themselves."""
    assert plan.rule is not None
    empty, received = _blank(like), _blank(down)
    return shapes_of(plan.rule.up(empty, empty, received, turn))


def _blank(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return zeros of the same shapes, each one number in memory: what travels down may be as large as the model."""
    return {key: tensor.new_zeros(()).expand(tensor.shape) for key, tensor in tensors.items()}


def _norm(packed: Packed) -> float:
    """Return the Euclidean norm of all tensors as one vector; infinity where float32 does not hold it."""
    return math.hypot(*(float(torch.linalg.vector_norm(values, dtype=torch.float32)) for _, values in packed))


class Gathering:
    """The replies of one exchange.

    Args:
        plan: of the fleet.
        shared: what the server holds.
        exchange: as `prepare` made it for the server's own rank.
        noise: where central noise comes from.
        buffer: K of a buffered round, where replies were told different things: Σ wᵢ updateᵢ is divided by it, and not
            by Σ wᵢ.

    Attributes:
        count: replies taken.
    """

    def __init__(
        self,
        plan: Plan,
        shared: Shared,
        exchange: Exchange,
        *,
        noise: NoiseSource | None = None,
        buffer: int | None = None,
    ) -> None:
        self._plan, self._shared, self._exchange, self._buffer = plan, shared, exchange, buffer
        self._sums_payloads = plan.codec.is_linear and buffer is None
        self._noise = noise or SystemSource()
        self._replies: list[Reply] = []
        self._total: Packed | None = None
        self._weight = 0.0
        self.count = 0

    def take(self, reply: Reply, told: Exchange) -> None:
        """Take one reply.

        Args:
            reply: payloads as the device sent them.
            told: the exchange as that device was told it.

        Raises:
            RefusedError: it is not as declared; it is not finite, or so large that what is made of it might not be,
                also once it is decoded; or its weight is not finite or not above 0.
            InputError: it cannot be decoded.
        """
        if not 0 < reply.weight < math.inf:
            raise RefusedError(Refusal.BAD_METRIC, f"device {reply.device} has the weight {reply.weight}", _WEIGHTS)
        tensors, _ = check_in(
            reply.tensors, {}, told.declared, max_bytes=max(1, payload_bytes(self._plan.codec, told.shapes))
        )
        if self._looks_at_each or not self._sums_payloads:
            tensors = self._decode(tensors, told)
        packed = pack(tensors)
        if not _norm(packed) <= _LARGEST_NORM:
            raise RefusedError(Refusal.HUGE, f"device {reply.device} sent huge numbers", "leave it out")
        if self._looks_at_each:
            self._replies.append(Reply(device=reply.device, weight=reply.weight, scale=reply.scale, tensors=tensors))
        else:
            self._add(packed, reply.weight)
        self.count += 1

    def close(self) -> Shared:
        """Merge what was taken.

        Raises:
            InputError: nothing was, or too little for the robust rule.
        """
        rule, turn, shared = self._plan.rule, self._exchange.turn, self._shared
        if self.count == 0:
            raise InputError("no reply came", "wait for at least one")
        if isinstance(rule, Individual):
            return self._changed(rule.advance(shared.state, self._replies, turn), shared.moments)
        assert isinstance(rule, Linear)
        mean = self._mean()
        moments = shared.moments
        if rule.sums_updates(turn):
            moments, mean = step_part(self._plan.optimizer, moments, mean)
        return self._changed(rule.advance(shared.state, mean, turn), moments)

    @property
    def _looks_at_each(self) -> bool:
        return self._plan.robust is not None or isinstance(self._plan.rule, Individual)

    def _decode(self, payload: Tensors, told: Exchange) -> Tensors:
        decoded = self._plan.codec.decode(payload, agreement=told.agreement, shapes=told.shapes)
        if not is_finite(decoded):
            raise RefusedError(Refusal.NOT_FINITE, "a payload is not finite once it is decoded", "leave it out")
        return decoded

    def _add(self, packed: Packed, weight: float) -> None:
        privacy = self._plan.privacy
        if privacy is not None and privacy.placement == "central":
            packed, weight = pack(bound(unpack(packed), privacy)), 1.0
        self._total = accumulate(self._total, packed, factor=weight)
        self._weight += weight

    def _mean(self) -> Tensors:
        if self._plan.robust is not None:
            return self._plan.robust(
                [reply.tensors for reply in self._replies], [reply.weight for reply in self._replies]
            )
        assert self._total is not None
        total, privacy = unpack(self._total), self._plan.privacy
        if privacy is not None and privacy.placement == "central":
            merged = noise_sum(total, privacy, self._noise)
        else:
            merged = scale(total, 1.0 / (self._buffer or self._weight))
        single = {key: tensor.float() for key, tensor in merged.items()}
        return self._decode(single, self._exchange) if self._sums_payloads else single

    def _changed(self, state: Tensors, moments: Tensors) -> Shared:
        before = self._shared.state
        alike = {key: tensor for key, tensor in state.items() if key in before and before[key].shape == tensor.shape}
        change = subtract(alike, {key: before[key] for key in alike})
        # Where factors take turns, what rested in this round still has a last change.
        rested = {
            key: self._shared.change[key]
            for key, each in change.items()
            if key in self._shared.change and not each.any()
        }
        return Shared(state=state, moments=moments, change=change | rested)
