"""A toy fleet: training is a function of tensors, so that every law of a rule can be checked without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from florilegium.tensors import Tensors, mean
from strategies.directions import SCALARS
from strategies.factors import Factors, join, key_of, layers
from strategies.rule import Duty, Individual, Linear, Loaded, Reply, Rule, Turn, shares

SHAPES = {"low": (7, 5), "high": (4, 9)}  # (outputs, inputs)
ALPHA_PER_RANK = 2.0
Train = Callable[[Tensors, int], Tensors]
Gradient = Callable[[int], Tensors]  # device → dense gradient by layer


def adapter(rank: int, seed: int = 0, *, blank: bool = True) -> Tensors:
    """An adapter as a fresh device has it, or one with a B that is not zero."""
    draw = torch.Generator().manual_seed(seed)
    return join(
        {
            layer: Factors(
                torch.randn(rank, inputs, generator=draw),
                torch.zeros(outputs, rank) if blank else torch.randn(outputs, rank, generator=draw),
            )
            for layer, (outputs, inputs) in SHAPES.items()
        }
    )


def noise(state: Tensors, device: int) -> Tensors:
    """Stand in for training: move every tensor by numbers of the device's own."""
    draw = torch.Generator().manual_seed(1000 + device)
    return {key: tensor + 0.3 * torch.randn(tensor.shape, generator=draw) for key, tensor in state.items()}


def gradient(device: int) -> Tensors:
    draw = torch.Generator().manual_seed(2000 + device)
    return {layer: torch.randn(shape, generator=draw) for layer, shape in SHAPES.items()}


@dataclass
class Device:
    number: int
    rank: int = 3
    weight: float = 1.0
    kept: Tensors = field(default_factory=dict)
    before: Tensors = field(default_factory=dict)
    after: Tensors = field(default_factory=dict)

    def answer(self, rule: Rule, state: Tensors, turn: Turn, train: Train, slope: Gradient) -> Reply:
        turn = Turn(
            round=turn.round,
            exchange=turn.exchange,
            rank=self.rank,
            scale=turn.scale,
            seed=turn.seed,
            device=self.number,
        )
        down, duty = rule.down(state, turn), rule.duty(turn)
        if duty.work == "nothing":
            return self._send(rule, down, turn)
        loaded = rule.load(down, self.kept, turn).replayed(adapter(self.rank))
        along: Tensors = {}
        if duty.work == "gradient":
            self.before = {key: torch.zeros_like(tensor) for key, tensor in loaded.adapter.items()}
            self.after = _lora_gradient(loaded, slope(self.number), turn.scale)
        elif duty.work == "zeroth-order":
            self.before = loaded.adapter
            self.after, along = _walked(loaded, train, self.number)
        else:
            self.before, self.after = _trained(loaded, duty, train, self.number)
        self.kept = rule.keep(self.after, turn)
        return self._send(rule, down, turn, along)

    def _send(self, rule: Rule, down: Tensors, turn: Turn, along: Tensors | None = None) -> Reply:
        sent = rule.up(self.before, self.after | (along or {}), down, turn)
        return Reply(device=self.number, weight=self.weight, scale=turn.scale, tensors=sent)


def _lora_gradient(loaded: Loaded, dense: Tensors, scale: float) -> Tensors:
    """The chain rule through s B A: dL/dB = s G Aᵀ, dL/dA = s Bᵀ G."""
    return join(
        {
            layer: Factors(scale * pair.b.t() @ dense[layer], scale * dense[layer] @ pair.a.t())
            for layer, pair in layers(loaded.adapter).items()
        }
    )


def _trained(loaded: Loaded, duty: Duty, train: Train, number: int) -> tuple[Tensors, Tensors]:
    before = dict(loaded.adapter)
    if duty.part == "core":
        assert loaded.core is not None
        moved = train(loaded.core, number)
        after = dict(before)
        for layer, pair in layers(loaded.adapter).items():
            before[key_of(layer, "B")] = pair.b @ loaded.core[layer]
            after[key_of(layer, "B")] = pair.b @ moved[layer]
        return before, after
    wanted = [key for key in before if duty.part == "AB" or f".lora_{duty.part}." in key]
    return before, before | train({key: before[key] for key in wanted}, number)


def _walked(loaded: Loaded, train: Train, number: int) -> tuple[Tensors, Tensors]:
    """Where a few steps lead, one by one, each seed twice, and how far they went along each."""
    assert loaded.directions is not None
    after, moved = dict(loaded.adapter), torch.zeros_like(loaded.directions.scalars)
    for step, length in enumerate(train({SCALARS: torch.zeros(6)}, number)[SCALARS].tolist()):
        seed = step % 3
        moved[seed] += length
        for key, direction in loaded.directions.along(seed, after).items():
            after[key] = after[key] - length * direction
    return after, {SCALARS: moved}


def play_round(
    rule: Rule,
    state: Tensors,
    devices: Sequence[Device],
    number: int,
    *,
    rank: int = 3,
    train: Train = noise,
    slope: Gradient = gradient,
) -> Tensors:
    """All exchanges of one round, as a server holds them."""
    for exchange in range(rule.exchanges(number)):
        turn = Turn(round=number, exchange=exchange, rank=rank, scale=ALPHA_PER_RANK, seed=5)
        replies = [device.answer(rule, state, turn, train, slope) for device in devices]
        state = advance(rule, state, replies, turn)
    return state


def advance(rule: Rule, state: Tensors, replies: Sequence[Reply], turn: Turn) -> Tensors:
    if isinstance(rule, Linear):
        return rule.advance(
            state, mean((share, one.tensors) for share, one in zip(shares(replies), replies, strict=True)), turn
        )
    assert isinstance(rule, Individual)
    return rule.advance(state, replies, turn)


def begin(rule: Rule, rank: int = 3, seed: int = 0) -> Tensors:
    return rule.start(adapter(rank, seed), Turn(round=0, rank=rank, scale=ALPHA_PER_RANK, seed=5))


def weights_added(rule: Rule, state: Tensors, number: int, *, rank: int = 3, device: int = 0) -> Tensors:
    """What a device without a past adds to the frozen weights: s B A and the residual, by layer, dense."""
    turn = Turn(round=number, rank=rank, scale=ALPHA_PER_RANK, seed=5, device=device)
    return added(rule.adapter(state, turn), turn.scale)


def added(loaded: Loaded, scale: float) -> Tensors:
    found = {}
    for layer, pair in layers(loaded.adapter).items():
        b = pair.b if loaded.core is None else pair.b @ loaded.core[layer]
        found[layer] = scale * b @ pair.a
        if loaded.residual is not None:
            found[layer] = found[layer] + loaded.residual[layer]
    return found
