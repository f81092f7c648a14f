"""The contract that every server optimizer keeps, and what each one promises beyond it."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from florilegium.errors import ConfigError, InputError
from florilegium.settings import build
from florilegium.tensors import Tensors, add, scale, zeros_like
from strategies import optimizers
from strategies.optimizers import SERVER_OPTIMIZERS, Moments, ServerOptimizer, step_part
from strategies.optimizers.adagrad import Adagrad
from strategies.optimizers.adam import Adam
from strategies.optimizers.average import Average
from strategies.optimizers.momentum import Momentum
from strategies.optimizers.yogi import Yogi

A, B = "layer.q_proj.lora_A.weight", "layer.q_proj.lora_B.weight"
SHARED = ("adaptive", "optimizer")


def draw(seed: int, size: float = 1e-2) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        A: torch.randn(2, 5, generator=generator, dtype=torch.float64) * size,
        B: torch.randn(4, 2, generator=generator, dtype=torch.float64) * size,
    }


def run(optimizer: ServerOptimizer, updates: list[Tensors]) -> tuple[Moments, list[Tensors]]:
    moments, changes = optimizer.start(zeros_like(updates[0])), []
    for update in updates:
        moments, change = optimizer.step(moments, update)
        changes.append(change)
    return moments, changes


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], *, rtol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key], rtol=rtol, atol=0.0)


@pytest.fixture(params=SERVER_OPTIMIZERS)
def optimizer(request: pytest.FixtureRequest) -> ServerOptimizer:
    return SERVER_OPTIMIZERS[request.param]()


def test_an_optimizer_is_one_file_and_one_line() -> None:
    modules = [
        importlib.import_module(f"strategies.optimizers.{module.name}")
        for module in pkgutil.iter_modules(optimizers.__path__)
        if module.name not in SHARED
    ]
    classes = [getattr(module, name) for module in modules for name in module.__all__]
    assert len(classes) == len(modules) == len(SERVER_OPTIMIZERS)
    assert all(each in SERVER_OPTIMIZERS.values() for each in classes)


def test_a_change_has_the_keys_and_shapes_of_the_state_and_the_direction_of_the_update(
    optimizer: ServerOptimizer,
) -> None:
    _, (change,) = run(optimizer, [draw(0)])
    assert {key: tensor.shape for key, tensor in change.items()} == {key: each.shape for key, each in draw(0).items()}
    assert all(bool((change[key].sign() == tensor.sign()).all()) for key, tensor in draw(0).items())


def test_no_update_at_all_is_no_change(optimizer: ServerOptimizer) -> None:
    _, changes = run(optimizer, [zeros_like(draw(0))] * 3)
    assert all(not bool(tensor.any()) for change in changes for tensor in change.values())


def test_a_step_touches_neither_moments_nor_update(optimizer: ServerOptimizer) -> None:
    moments, _ = run(optimizer, [draw(0), draw(1)])
    update = draw(2)
    before = {key: tensor.clone() for key, tensor in moments.items()}
    optimizer.step(moments, update)
    assert_same(moments, before)
    assert_same(update, draw(2))


def test_the_order_of_keys_changes_nothing(optimizer: ServerOptimizer) -> None:
    updates = [draw(seed) for seed in range(3)]
    backwards = [dict(reversed(update.items())) for update in updates]
    assert list(backwards[0]) != list(updates[0])
    moments, changes = run(optimizer, updates)
    other_moments, other_changes = run(optimizer, [updates[0], *backwards[1:]])
    assert_same(moments, other_moments)
    assert_same(changes[-1], other_changes[-1])


def test_one_tensor_does_not_see_another(optimizer: ServerOptimizer) -> None:
    updates = [draw(seed) for seed in range(3)]
    _, together = run(optimizer, updates)
    _, alone = run(optimizer, [{A: update[A]} for update in updates])
    assert_same({A: together[-1][A]}, alone[-1])


def test_a_resumed_run_is_the_run_that_was_not_interrupted(optimizer: ServerOptimizer) -> None:
    moments, _ = run(optimizer, [draw(0), draw(1)])
    assert isinstance(moments, dict)
    resumed, change = optimizer.step(load(save(moments)), draw(2))
    whole, changes = run(optimizer, [draw(0), draw(1), draw(2)])
    assert_same(resumed, whole)
    assert_same(change, changes[-1])


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS)
def test_changes_are_proportional_to_the_learning_rate(name: str) -> None:
    updates = [draw(seed) for seed in range(4)]
    _, whole = run(build(SERVER_OPTIMIZERS[name], {"learning_rate": 0.5}, source=name), updates)
    _, half = run(build(SERVER_OPTIMIZERS[name], {"learning_rate": 0.25}, source=name), updates)
    assert_same(scale(half[-1], 2.0), whole[-1])


def test_an_update_of_other_keys_or_shapes_is_refused_before_the_state_changes(optimizer: ServerOptimizer) -> None:
    state, update = draw(0), draw(1)
    moments = optimizer.start(state)
    for wrong in ({A: update[A]}, {**update, "stray": update[A]}, {**update, A: update[A][:1]}):
        with pytest.raises(InputError, match="tensor"):
            add(state, optimizer.step(moments, wrong)[1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_refused(optimizer: ServerOptimizer, value: float) -> None:
    update = draw(0)
    update[A][0, 0] = value
    with pytest.raises(InputError, match="not finite"):
        optimizer.step(optimizer.start(update), update)


def test_rounds_may_take_turns_with_the_halves_of_an_adapter(optimizer: ServerOptimizer) -> None:
    """Each half moves as if the rounds of the other had not been."""
    moments: Moments = {}
    found: dict[str, list[Tensor]] = {A: [], B: []}
    for number, key in enumerate((B, A, B, A)):
        moments, change = step_part(optimizer, moments, {key: draw(number)[key]})
        found[key].append(change[key])
    for key, numbers in ((B, (0, 2)), (A, (1, 3))):
        _, changes = run(optimizer, [{key: draw(number)[key]} for number in numbers])
        for one, other in zip(found[key], changes, strict=True):
            assert torch.equal(one, other[key])


def test_a_whole_update_is_a_plain_step(optimizer: ServerOptimizer) -> None:
    update = draw(1)
    plain, change = optimizer.step(optimizer.start(update), update)
    moments, parted = step_part(optimizer, {}, update)
    assert_same(parted, change)
    assert_same(moments, plain)


def test_a_part_of_another_shape_is_refused(optimizer: ServerOptimizer) -> None:
    moments, _ = step_part(optimizer, {}, draw(0))
    if moments:
        with pytest.raises(InputError):
            step_part(optimizer, moments, {B: draw(1)[B][:1]})


def test_averaging_is_the_identity() -> None:
    for seed in range(3):
        assert_same(run(Average(), [draw(seed)])[1][0], draw(seed))
    assert Average().start(draw(0)) == {}


def test_momentum_zero_is_averaging() -> None:
    updates = [draw(seed) for seed in range(4)]
    assert_same(run(Momentum(momentum=0.0), updates)[1][-1], run(Average(), updates)[1][-1])


def test_momentum_is_torchs_own() -> None:
    """Torch descends along a gradient, so it is given −Δ."""
    config = Momentum(learning_rate=0.3, momentum=0.8)
    updates = [draw(seed) for seed in range(6)]
    parameter = torch.nn.Parameter(torch.zeros_like(updates[0][A]))
    follow(torch.optim.SGD([parameter], lr=0.3, momentum=0.8), parameter, updates)
    torch.testing.assert_close(total(run(config, updates)[1]), parameter.detach(), rtol=1e-12, atol=0)


def test_adagrad_is_torchs_own_from_tau_squared() -> None:
    config = Adagrad(learning_rate=0.01, tau=1e-2)
    updates = [draw(seed) for seed in range(6)]
    parameter = torch.nn.Parameter(torch.zeros_like(updates[0][A]))
    torchs = torch.optim.Adagrad([parameter], lr=0.01, initial_accumulator_value=1e-4, eps=1e-2)
    follow(torchs, parameter, updates)
    torch.testing.assert_close(total(run(config, updates)[1]), parameter.detach(), rtol=1e-12, atol=0)


def follow(torchs: torch.optim.Optimizer, parameter: torch.nn.Parameter, updates: list[Tensors]) -> None:
    for update in updates:
        parameter.grad = -update[A]
        torchs.step()


def total(changes: list[Tensors]) -> Tensor:
    return torch.stack([change[A] for change in changes]).sum(dim=0)


def naive_adam(v: float, square: float, beta2: float) -> float:
    return beta2 * v + (1 - beta2) * square


def naive_yogi(v: float, square: float, beta2: float) -> float:
    sign = (v > square) - (v < square)
    return v - (1 - beta2) * square * sign


def naive_adagrad(v: float, square: float, beta2: float) -> float:
    return v + square


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(Adam, naive_adam), (Yogi, naive_yogi), (Adagrad, naive_adagrad)]),
    st.lists(st.floats(-1, 1), min_size=1, max_size=12),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
    st.floats(1e-6, 1),
)
def test_adaptive_steps_are_those_of_the_papers_loop_over_scalars(
    pair: tuple[type, Callable[[float, float, float], float]],
    deltas: list[float],
    beta1: float,
    beta2: float,
    tau: float,
) -> None:
    kind, second = pair
    betas = {"beta1": beta1} if kind is Adagrad else {"beta1": beta1, "beta2": beta2}
    _, changes = run(
        kind(learning_rate=0.1, tau=tau, **betas), [{A: torch.tensor([d], dtype=torch.float64)} for d in deltas]
    )
    mean, square = 0.0, tau * tau
    for delta, change in zip(deltas, changes, strict=True):
        mean = beta1 * mean + (1 - beta1) * delta
        square = second(square, delta * delta, beta2)
        assert float(change[A]) == pytest.approx(0.1 * mean / (math.sqrt(square) + tau), rel=1e-9, abs=1e-300)


def test_an_adaptive_first_step_by_hand() -> None:
    """η .1, β₁ .5, β₂ .75, τ 2: v starts at 4, Δ = 4 gives m = 2 and Δ² = 16.

    Adam: v = 3 + 4 = 7.  Yogi: 4 < 16, so v = 4 + 4 = 8.  Adagrad: v = 4 + 16 = 20.
    """
    update = {A: torch.tensor([4.0], dtype=torch.float64)}
    for config, square in (
        (Adam(learning_rate=0.1, beta1=0.5, beta2=0.75, tau=2.0), 7),
        (Yogi(learning_rate=0.1, beta1=0.5, beta2=0.75, tau=2.0), 8),
        (Adagrad(learning_rate=0.1, beta1=0.5, tau=2.0), 20),
    ):
        _, (change,) = run(config, [update])
        assert float(change[A]) == pytest.approx(0.1 * 2 / (math.sqrt(square) + 2))


def test_adam_and_yogi_agree_in_a_first_step_from_zero_and_nearly_from_tau_squared() -> None:
    adam, yogi = Adam(), Yogi()
    update = draw(0, size=1e-3)
    nothing = {key: torch.zeros_like(tensor) for key, tensor in adam.start(update).items()}
    assert_same(yogi.step(nothing, update)[0], adam.step(nothing, update)[0], rtol=1e-12)
    one, other = adam.step(adam.start(update), update)[0], yogi.step(yogi.start(update), update)[0]
    apart = torch.cat([(one[key] - other[key]).abs().flatten() for key in one])
    assert 0 < float(apart.max()) <= (1 - adam.beta2) * adam.tau**2 * (1 + 1e-9)


def test_yogi_remembers_a_large_update_that_adam_forgets() -> None:
    large, small = {A: torch.tensor([1.0])}, {A: torch.tensor([1e-3])}
    squares = {
        kind: run(kind(), [large] + [small] * 200)[0]["square/" + A].item()
        / kind().step(kind().start(large), large)[0]["square/" + A].item()
        for kind in (Adam, Yogi)
    }
    # Adam keeps .99²⁰⁰ = .134 of it; Yogi loses 200 · .01 · 1e-6 of .01.
    assert squares[Adam] == pytest.approx(0.134, abs=0.001)
    assert squares[Yogi] == pytest.approx(1 - 2e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (Average, "learning_rate", 0.0),
        (Momentum, "learning_rate", math.inf),
        (Momentum, "momentum", 1.0),
        (Adam, "learning_rate", math.nan),
        (Adam, "beta1", -0.1),
        (Adam, "beta2", 1.0),
        (Yogi, "tau", 0.0),
        (Yogi, "beta2", math.nan),
        (Adagrad, "beta1", 1.0),
        (Adagrad, "tau", -1.0),
    ],
)
def test_a_setting_out_of_its_range_is_refused(kind: type, setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{setting} must be .* got {value}"):
        kind(**{setting: value})
