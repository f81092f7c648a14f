"""What each rule computes, against dense references."""

from __future__ import annotations

import pytest
import torch

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors
from strategies.factors import Factors, key_of, layers
from strategies.residual import residual_of
from strategies.rule import Reply, Turn
from strategies.rules.fedex import FedEx
from strategies.rules.fedit import FedIT
from strategies.rules.fedsa import FedSA
from strategies.rules.fedsb import FedSB
from strategies.rules.ffa import FFA
from strategies.rules.flexlora import FlexLoRA
from strategies.rules.flora import FLoRA
from strategies.rules.hetlora import HetLoRA
from strategies.rules.rolora import RoLoRA
from strategies.rules.sketch import Sketch
from strategies.rules.trust import Trust
from tests.strategies.rules.fleet import (
    ALPHA_PER_RANK,
    SHAPES,
    Device,
    adapter,
    begin,
    gradient,
    play_round,
    weights_added,
)
from tests.strategies.rules.test_contract import assert_close


def fleet(weights: tuple[float, ...] = (1.0, 2.0, 3.0), rank: int = 3) -> list[Device]:
    return [Device(number, rank=rank, weight=weight) for number, weight in enumerate(weights)]


def mean_product(devices: list[Device]) -> Tensors:
    """Σ pᵢ s BᵢAᵢ, dense."""
    total = sum(device.weight for device in devices)
    return {
        layer: torch.stack(
            [device.weight / total * ALPHA_PER_RANK * layers(device.after)[layer].product() for device in devices]
        ).sum(0)
        for layer in SHAPES
    }


@pytest.mark.parametrize("rule", [FFA(), FedEx(), Sketch(width=32)], ids=lambda rule: rule.name)
def test_exact_rules_sum_products_exactly(rule: FFA | FedEx | Sketch) -> None:
    """A rule of full rank at the server, so that nothing is cut off."""
    rank = 4 if isinstance(rule, Sketch) else 3  # min(outputs, inputs) of the smaller layer: every product fits
    devices = fleet(rank=rank)
    before = play_round(rule, begin(rule, rank), devices, 1, rank=rank)
    state = play_round(rule, before, devices, 2, rank=rank)
    found = weights_added(rule, state, 3, rank=rank)
    base = residual_of(before)  # what the second round's products were learned on top of
    expected = {layer: product + base.get(layer, 0.0) for layer, product in mean_product(devices).items()}
    assert_close({"high": found["high"]}, {"high": expected["high"]}, 1e-3)
    if not isinstance(rule, Sketch):
        assert_close(found, expected, 1e-3)


def test_averaging_both_factors_is_not_exact() -> None:
    devices, rule = fleet(), FedIT()
    state = play_round(rule, begin(rule), devices, 1)
    state = play_round(rule, state, devices, 2)
    found, expected = weights_added(rule, state, 3), mean_product(devices)
    assert max(float((found[layer] - expected[layer]).norm() / expected[layer].norm()) for layer in SHAPES) > 0.1


def test_rolora_moves_one_factor_a_round_and_b_first() -> None:
    rule, devices = RoLoRA(), fleet()
    start = begin(rule)
    first = play_round(rule, start, devices, 1)
    second = play_round(rule, first, devices, 2)
    for key in start:
        assert torch.equal(start[key], first[key]) == (".lora_A." in key)
        assert torch.equal(first[key], second[key]) == (".lora_B." in key)


def test_fedsa_keeps_every_device_s_own_b() -> None:
    rule, devices = FedSA(), fleet()
    state = play_round(rule, begin(rule), devices, 1)
    turn = Turn(round=2, rank=3, scale=ALPHA_PER_RANK)
    for device in devices:
        loaded = layers(rule.load(rule.down(state, turn), device.kept, turn).adapter)
        for layer, pair in layers(device.after).items():
            assert torch.equal(loaded[layer].b, pair.b)
            assert torch.equal(loaded[layer].a, state[key_of(layer, "A")])


def test_fedsb_finds_the_directions_of_the_mean_gradient() -> None:
    """G of rank 3 is found whole: projecting it on B's columns and A's rows loses nothing."""
    draw = torch.Generator().manual_seed(3)
    left = {layer: torch.randn(outputs, 3, generator=draw) for layer, (outputs, _) in SHAPES.items()}
    right = {layer: torch.randn(3, inputs, generator=draw) for layer, (_, inputs) in SHAPES.items()}

    def slope(device: int) -> Tensors:
        mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(device))
        return {layer: left[layer] @ mix @ right[layer] for layer in SHAPES}

    rule, devices = FedSB(), fleet()
    state = play_round(rule, begin(rule), devices, 1, slope=slope)
    total = sum(device.weight for device in devices)
    for layer in SHAPES:
        a, b = state[key_of(layer, "A")], state[key_of(layer, "B")]
        torch.testing.assert_close(b.t() @ b, torch.eye(3), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a @ a.t(), torch.eye(3), atol=1e-5, rtol=1e-5)
        g = torch.stack([device.weight / total * slope(device.number)[layer] for device in devices]).sum(0)
        torch.testing.assert_close(b @ (b.t() @ g @ a.t()) @ a, g, atol=1e-4, rtol=1e-4)
        assert not state[f"core.{layer}"].any()


def test_fedsb_averages_cores() -> None:
    rule, devices = FedSB(), fleet()
    state = play_round(rule, begin(rule), devices, 1)
    moved = play_round(rule, state, devices, 2)
    assert_close(weights_added(rule, moved, 3), mean_product(devices), 1e-4)
    sent = devices[0].answer(rule, moved, Turn(round=3, rank=3, scale=2.0, seed=5), lambda t, _: dict(t), gradient)
    assert {tuple(tensor.shape) for tensor in sent.tensors.values()} == {(3, 3)}


def test_flora_folds_the_sum_of_all_rounds_into_the_base() -> None:
    rule, devices = FLoRA(), [Device(0, rank=1), Device(1, rank=2, weight=2.0), Device(2, rank=3)]
    state, expected = begin(rule), {layer: torch.zeros(shape) for layer, shape in SHAPES.items()}
    for number in (1, 2, 3):
        state = play_round(rule, state, devices, number)
        for layer, product in mean_product(devices).items():
            expected[layer] += product
        assert_close(weights_added(rule, state, number + 1), expected, 1e-4)


def test_flexlora_keeps_the_best_of_the_sum() -> None:
    rule, devices = FlexLoRA(), fleet()
    state = play_round(rule, begin(rule), devices, 1)
    for layer, found in weights_added(rule, state, 2).items():
        u, values, v = torch.linalg.svd(mean_product(devices)[layer], full_matrices=False)
        torch.testing.assert_close(found, u[:, :3] * values[:3] @ v[:3], atol=1e-4, rtol=1e-4)
    narrow = weights_added(rule, state, 2, rank=1)
    for layer, found in narrow.items():
        u, values, v = torch.linalg.svd(mean_product(devices)[layer], full_matrices=False)
        torch.testing.assert_close(found, u[:, :1] * values[:1] @ v[:1], atol=1e-4, rtol=1e-4)


def test_hetlora_weighs_by_the_norm_of_the_product() -> None:
    """Two devices by hand: norms 3 and 1 weigh 3/4 and 1/4; a device of rank 1 fills the first row alone."""
    rule = HetLoRA()
    a, b = torch.zeros(2, 5), torch.zeros(7, 2)
    a[0, 0], b[0, 0] = 1.0, 3.0
    one = {"low.lora_A.weight": a, "low.lora_B.weight": b}
    two = {"low.lora_A.weight": torch.eye(1, 5), "low.lora_B.weight": torch.eye(7, 1)}
    replies = [Reply(device=n, weight=1.0, scale=2.0, tensors=sent) for n, sent in enumerate((one, two))]
    state = rule.advance({}, replies, Turn(round=1, rank=2, scale=2.0))
    assert state["low.lora_B.weight"][0].tolist() == pytest.approx([0.75 * 3 + 0.25, 0.0])
    assert state["low.lora_A.weight"][:, 0].tolist() == pytest.approx([1.0, 0.0])


def test_a_narrow_sketch_is_near_and_a_wide_one_exact() -> None:
    errors = []
    for width in (2, 4, 12):
        rule, devices = Sketch(width=width), fleet(rank=4)
        state = play_round(rule, begin(rule, 4), devices, 1, rank=4)
        found, expected = weights_added(rule, state, 2, rank=4)["high"], mean_product(devices)["high"]
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[0] > errors[2]
    assert errors[2] < 1e-4


def test_a_sketch_is_never_larger_than_what_it_sketches() -> None:
    sent = Sketch(width=10**6).up(adapter(3), adapter(3), {}, Turn(round=1, rank=3, scale=2.0))
    assert {layer: tuple(tensor.shape) for layer, tensor in sent.items()} == {"low": (7, 5), "high": (4, 4)}


def test_a_sketch_takes_nothing_away_from_what_narrow_devices_do_not_hold() -> None:
    """A device of rank 1 that learns nothing leaves the state of rank 3 as it is, though it holds a third of it."""
    rule = Sketch()
    state = play_round(rule, begin(rule), fleet(), 1)
    after = play_round(rule, state, [Device(7, rank=1)], 2, train=lambda tensors, _: dict(tensors))
    assert_close(weights_added(rule, after, 3), weights_added(rule, state, 3), 1e-4)


def test_trust_is_given_to_the_alike() -> None:
    rule = Trust(temperature=0.05)
    kinds = [adapter(3, 50, blank=False), adapter(3, 60, blank=False)]

    def train(_: Tensors, device: int) -> Tensors:
        draw = torch.Generator().manual_seed(device)
        target = kinds[device % 2]
        return {key: tensor + 0.05 * torch.randn(tensor.shape, generator=draw) for key, tensor in target.items()}

    state = play_round(rule, begin(rule), fleet((1.0,) * 6), 1, train=train)

    def distance(device: int, kind: int) -> float:
        mixed = rule.down(state, Turn(round=2, rank=3, scale=2.0, device=device))
        return sum(float((mixed[key] - kinds[kind][key]).norm()) for key in mixed)

    for device in range(6):
        assert distance(device, device % 2) < distance(device, 1 - device % 2) / 10
    stranger = rule.down(state, Turn(round=2, rank=3, scale=2.0, device=99))
    everyone = [train({}, device) for device in range(6)]
    assert_close(stranger, {key: torch.stack([one[key] for one in everyone]).mean(0) for key in stranger})


@pytest.mark.parametrize("make", [lambda: Sketch(width=0), lambda: Trust(temperature=0.0)])
def test_settings_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


def test_the_norm_of_a_product_needs_no_product() -> None:
    pair = Factors(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.randn(5, 3))
    assert pair.norm() == pytest.approx(float(pair.product().norm()), rel=1e-5)
