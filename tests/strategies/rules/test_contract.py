"""The laws that every rule of sharing keeps."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from florilegium.tensors import Tensors
from strategies.factors import layers
from strategies.rule import Linear, Reply, Rule, Turn, shares
from strategies.rules import RULES
from strategies.rules.kseed import FedKSeed
from tests.strategies.rules.fleet import (
    ALPHA_PER_RANK,
    Device,
    adapter,
    added,
    advance,
    begin,
    gradient,
    noise,
    play_round,
    weights_added,
)

ROUNDS = 3
every_rule = pytest.mark.parametrize("name", sorted(RULES))
MIXED = sorted(name for name, rule in RULES.items() if rule.mixed_ranks)


def make(name: str) -> Rule:
    return FedKSeed(seeds=24) if name == "fedkseed" else RULES[name]()  # a replay of thousands takes its time


def assert_close(one: Tensors, other: Tensors, tolerance: float = 2e-5) -> None:
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=tolerance, rtol=tolerance)


def play(name: str, devices: Sequence[Device], rounds: int = ROUNDS) -> Tensors:
    rule = make(name)
    state = begin(rule)
    for number in range(1, rounds + 1):
        state = play_round(rule, state, devices, number)
    return weights_added(rule, state, rounds + 1)


def same_training(state: Tensors, _: int) -> Tensors:
    return noise(state, 0)


@every_rule
def test_a_fleet_of_equal_devices_is_one_device(name: str) -> None:
    rule, one, many = make(name), begin(make(name)), begin(make(name))
    single, crowd = [Device(0)], [Device(number) for number in range(4)]
    for number in range(1, ROUNDS + 1):
        one = play_round(rule, one, single, number, train=same_training, slope=lambda _: gradient(0))
        many = play_round(rule, many, crowd, number, train=same_training, slope=lambda _: gradient(0))
    assert_close(weights_added(rule, many, ROUNDS + 1), weights_added(rule, one, ROUNDS + 1), 1e-4)


@every_rule
def test_one_device_s_work_arrives_whole(name: str) -> None:
    """What a single device has learned is what the next device starts from (but for what a rule leaves at home)."""
    rule, device = make(name), Device(0)
    state = begin(rule)
    for number in range(1, ROUNDS + 1):
        state = play_round(rule, state, [device], number)
    if name == "fedsa":
        assert not any(bool(tensor.any()) for tensor in weights_added(rule, state, ROUNDS + 1).values()), "B stayed"
        return
    turn = Turn(round=ROUNDS, rank=3, scale=ALPHA_PER_RANK, seed=5)
    loaded = rule.load(rule.down(state, turn), {}, turn).replayed(adapter(3))
    expected = {layer: ALPHA_PER_RANK * pair.product() for layer, pair in layers(device.after).items()}
    if loaded.residual is not None and name == "flora":
        return  # its adapter starts afresh, on a residual: the sum of products is tested below
    assert_close(added(loaded, ALPHA_PER_RANK), expected, 1e-4)


@every_rule
def test_the_order_of_devices_changes_nothing(name: str) -> None:
    forward = play(name, [Device(number, weight=1.0 + number) for number in range(4)])
    backward = play(name, [Device(number, weight=1.0 + number) for number in reversed(range(4))])
    assert_close(forward, backward, 1e-4)


@every_rule
def test_a_fleet_that_does_nothing_stays_where_it_is(name: str) -> None:
    rule, state = make(name), begin(make(name))
    devices = [Device(number) for number in range(3)]
    for number in (1, 2):  # the second round finds what the first has learned
        state = play_round(rule, state, devices, number)
    before = weights_added(rule, state, 3)
    if name == "trust":
        return  # a mixture moves towards the others although nobody learns: it is tested on its own
    state = play_round(rule, state, [Device(9)], 3, train=lambda tensors, _: dict(tensors))
    assert_close(weights_added(rule, state, 4), before, 1e-4)


@every_rule
def test_what_is_sent_has_the_declared_shapes(name: str) -> None:
    """Shapes found on zeros are those of the real ones."""
    rule, device = make(name), Device(0)
    state = begin(rule)
    for number in (1, 2, 3):
        for exchange in range(rule.exchanges(number)):
            turn = Turn(round=number, exchange=exchange, rank=3, scale=ALPHA_PER_RANK, seed=5)
            reply = device.answer(rule, state, turn, noise, gradient)
            empty = {key: torch.empty_like(tensor, device="meta") for key, tensor in device.after.items()}
            down = {key: torch.empty_like(tensor, device="meta") for key, tensor in rule.down(state, turn).items()}
            with torch.device("meta"):
                declared = rule.up(empty, empty, down, turn)
            found = {key: (tensor.shape, tensor.dtype) for key, tensor in declared.items()}
            assert found == {key: (tensor.shape, tensor.dtype) for key, tensor in reply.tensors.items()}
            state = advance(rule, state, [reply], turn)


@every_rule
def test_functions_leave_their_arguments_alone(name: str) -> None:
    rule = make(name)
    state = begin(rule)
    copy = {key: tensor.clone() for key, tensor in state.items()}
    play_round(rule, state, [Device(0), Device(1)], 1)
    assert state.keys() == copy.keys()
    assert all(torch.equal(state[key], copy[key]) for key in state)


@pytest.mark.parametrize("name", sorted(name for name, rule in RULES.items() if issubclass(rule, Linear)))
@settings(max_examples=10, deadline=None)
@given(weights=st.lists(st.floats(0.1, 10.0), min_size=2, max_size=5))
def test_a_linear_rule_needs_the_masked_sum_alone(name: str, weights: list[float]) -> None:
    """Masks that cancel are added to what devices send; the server, which sees masked replies only, ends the same."""
    rule = make(name)
    assert isinstance(rule, Linear)
    plain, masked = begin(rule), begin(rule)
    crowds = [[Device(number, weight=weight) for number, weight in enumerate(weights)] for _ in range(2)]
    for number in (1, 2):
        plain = play_round(rule, plain, crowds[0], number)
        for exchange in range(rule.exchanges(number)):
            turn = Turn(round=number, exchange=exchange, rank=3, scale=ALPHA_PER_RANK, seed=5)
            replies = [device.answer(rule, masked, turn, noise, gradient) for device in crowds[1]]
            masked = rule.advance(masked, masked_sum(replies), turn)
    assert_close(weights_added(rule, masked, 3), weights_added(rule, plain, 3), 1e-3)


def masked_sum(replies: Sequence[Reply]) -> Tensors:
    draw = torch.Generator().manual_seed(0)
    masks = [{key: torch.randn(t.shape, generator=draw) for key, t in reply.tensors.items()} for reply in replies]
    sent = [
        {
            key: share * tensor + masks[at][key] - masks[(at + 1) % len(masks)][key]
            for key, tensor in reply.tensors.items()
        }
        for at, (share, reply) in enumerate(zip(shares(replies), replies, strict=True))
    ]
    return {key: torch.stack([one[key] for one in sent]).sum(0) for key in sent[0]}


@pytest.mark.parametrize("name", MIXED)
def test_devices_of_other_ranks_take_part(name: str) -> None:
    rule = make(name)
    state = begin(rule)
    devices = [Device(0, rank=1), Device(1, rank=2), Device(2, rank=3)]
    for number in (1, 2):
        state = play_round(rule, state, devices, number)
    for rank in (1, 2, 3):
        turn = Turn(round=3, rank=rank, scale=ALPHA_PER_RANK, seed=5)
        shapes = {key: tensor.shape for key, tensor in rule.adapter(state, turn).adapter.items()}
        assert shapes == {key: tensor.shape for key, tensor in adapter(rank).items()}
