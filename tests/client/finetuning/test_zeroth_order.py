"""Steps along random directions, on a tiny model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from client.adapters import SHARED, AdaptedModel
from client.dialogue import Example
from client.finetuning import Anchor, FineTuneConfig, Target, finetune, mean_gradient
from client.finetuning.zeroth_order import zeroth_order
from florilegium.errors import ConfigError, InputError, MemoryBudgetError
from strategies.directions import Directions

Wrap = Callable[..., AdaptedModel]
TARGET = Target(slot=SHARED, part="B", beside=())


def directions(seeds: int = 8, *, epsilon: float = 1e-3) -> Directions:
    scalars = 0.01 * torch.randn(seeds, generator=torch.Generator().manual_seed(1))
    return Directions(seed=4, scalars=scalars, epsilon=epsilon)


@pytest.fixture
def model(wrap: Wrap) -> AdaptedModel:
    made = wrap()
    made.load_state(SHARED, directions().adapter(made.state(SHARED)))
    return made


@pytest.fixture
def config(config: FineTuneConfig) -> FineTuneConfig:
    return dataclasses.replace(config, learning_rate=1e-3, clip_norm=math.inf)


def whole(config: FineTuneConfig, **changes: object) -> FineTuneConfig:
    """One batch of all examples a step, and one pass of them."""
    return dataclasses.replace(config, batch_size=64, micro_tokens=4096, **changes)  # type: ignore[arg-type]


def inner(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return sum(float((tensor * other[key]).sum()) for key, tensor in one.items())


@pytest.mark.parametrize("seed", range(4))
def test_a_slope_is_the_gradient_along_the_direction(
    model: AdaptedModel, examples: list[Example], config: FineTuneConfig, seed: int
) -> None:
    gradient = mean_gradient(model, examples, target=TARGET, config=whole(config))
    state = model.state(SHARED)
    near = directions(epsilon=3e-4)
    moved = zeroth_order(model, examples, target=TARGET, directions=near, steps=1, config=whole(config, seed=seed))
    (number,) = moved.nonzero()[:, 0].tolist()
    expected = inner(near.along(number, state), gradient)
    assert float(moved[number]) / config.learning_rate == pytest.approx(expected, rel=5e-3, abs=2e-3)


def test_a_replay_of_what_is_returned_is_where_the_slot_is(
    model: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    before = directions()
    moved = zeroth_order(model, examples, target=TARGET, directions=before, steps=15, config=config)
    assert (moved != 0).sum() > 1
    after = dataclasses.replace(before, scalars=before.scalars + moved).adapter(model.state(SHARED))
    for key, tensor in model.state(SHARED).items():
        torch.testing.assert_close(tensor, after[key], atol=1e-6, rtol=1e-5)


def test_b_of_the_slot_moves_and_nothing_else(
    model: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    generator = torch.get_rng_state()
    zeroth_order(model, examples, target=TARGET, directions=directions(), steps=3, config=config)
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, before[name]) != (f".lora_B.{SHARED}." in name), name
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_the_loss_falls(model: AdaptedModel, examples: list[Example], config: FineTuneConfig) -> None:
    def loss() -> float:
        probe = whole(config, max_steps=1, learning_rate=1e-12)
        state = model.state(SHARED)
        report = finetune(model, examples, target=TARGET, config=dataclasses.replace(probe, optimizer="sgd"))
        model.load_state(SHARED, state)
        return report.loss_first

    before = loss()
    many = directions(512)
    zeroth_order(model, examples, target=TARGET, directions=many, steps=60, config=whole(config, learning_rate=3e-3))
    assert loss() < before - 0.3


def test_the_order_of_examples_changes_not_a_bit_and_the_seed_does(
    model: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    start = model.state(SHARED)

    def moved(rows: list[Example], seed: int = 3) -> Tensor:
        model.load_state(SHARED, start)
        changed = dataclasses.replace(config, seed=seed)
        return zeroth_order(model, rows, target=TARGET, directions=directions(), steps=4, config=changed)

    expected = moved(examples)
    assert torch.equal(moved(examples[::-1]), expected)
    assert not torch.equal(moved(examples, seed=4), expected)


def test_nothing_is_kept_for_a_backward_pass(
    model: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        zeroth_order(model, examples, target=TARGET, directions=directions(), steps=2, config=config)
        assert kept == []
        finetune(model, examples, target=TARGET, config=dataclasses.replace(config, max_steps=1))
        assert kept != []


def test_a_slope_is_clipped(model: AdaptedModel, examples: list[Example], config: FineTuneConfig) -> None:
    config = dataclasses.replace(config, clip_norm=1e-4)
    one = dataclasses.replace(directions(), scalars=torch.zeros(1))
    for steps in (1, 2):
        start = model.state(SHARED)
        moved = zeroth_order(model, examples, target=TARGET, directions=one, steps=steps, config=config)
        assert abs(float(moved)) <= steps * config.learning_rate * 1e-4 * (1 + 1e-5)
        model.load_state(SHARED, start)
    assert abs(float(zeroth_order(model, examples, target=TARGET, directions=one, steps=1, config=config))) > 0


@pytest.mark.parametrize("change", [{"micro_tokens": 7}, {"trunk_cache_mb": 0}])
def test_how_the_work_is_cut_changes_rounding_alone(
    wrap: Wrap, examples: list[Example], config: FineTuneConfig, change: dict[str, int]
) -> None:
    model = wrap(top_layers=1)
    start = model.state(SHARED)
    found = []
    for changed in ({}, change):
        model.load_state(SHARED, start)
        settings = dataclasses.replace(config, **changed)  # type: ignore[arg-type]
        found.append(zeroth_order(model, examples, target=TARGET, directions=directions(), steps=6, config=settings))
    assert float((found[0] - found[1]).norm()) < 0.01 * float(found[0].norm())


def test_an_anchor_pulls_along_the_direction(
    model: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    """The slope of (μ / 2) ‖w − point‖² along z is μ ⟨w − point, z⟩."""
    start = model.state(SHARED)
    point = {key: tensor + 0.1 * (".lora_B." in key) for key, tensor in start.items()}
    found = []
    for target in (TARGET, dataclasses.replace(TARGET, anchor=Anchor(weight=2.0, point=point))):
        model.load_state(SHARED, start)
        found.append(zeroth_order(model, examples, target=target, directions=directions(), steps=1, config=config))
    (number,) = found[0].nonzero()[:, 0].tolist()
    pull = 2.0 * inner(directions().along(number, start), {key: start[key] - point[key] for key in start})
    assert float((found[1] - found[0])[number]) == pytest.approx(config.learning_rate * pull, rel=1e-3)


def test_what_is_not_finite_stops_and_leaves_the_adapter(
    model: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    before = model.flat(SHARED).clone()
    config = dataclasses.replace(config, learning_rate=1e38)
    with pytest.raises(InputError, match="the loss was not finite at step 2 of 6; lower the learning rate"):
        zeroth_order(model, examples, target=TARGET, directions=directions(), steps=6, config=config)
    assert torch.equal(model.flat(SHARED), before)


def test_what_does_not_go_is_refused(model: AdaptedModel, examples: list[Example], config: FineTuneConfig) -> None:
    def take(rows: list[Example], **changes: object) -> None:
        changed = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
        zeroth_order(model, rows, target=TARGET, directions=directions(), steps=2, config=changed)

    with pytest.raises(ConfigError, match="weight decay"):
        take(examples, weight_decay=0.1)
    with pytest.raises(MemoryBudgetError, match="memory_mb is 1"):
        take(examples, memory_mb=1)
    with pytest.raises(InputError, match="no example to train on"):
        take([])


def test_no_step_moves_nothing(model: AdaptedModel, examples: list[Example]) -> None:
    before = model.flat(SHARED).clone()
    moved = zeroth_order(model, examples, target=TARGET, directions=directions(), steps=0)
    assert torch.equal(moved, torch.zeros(8))
    assert torch.equal(model.flat(SHARED), before)
