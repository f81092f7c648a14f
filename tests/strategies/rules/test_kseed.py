"""FedKSeed on a toy fleet whose losses are known, and what its directions are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from florilegium.errors import ConfigError, InputError
from florilegium.tensors import Tensors, add
from privacy.device_level import DeviceLevel
from privacy.noise import SeededSource
from strategies.codecs import payload_bytes
from strategies.directions import SCALARS, Directions
from strategies.factors import key_of, layers, split
from strategies.gathering import Gathering, Shared, prepare
from strategies.plan import Plan
from strategies.rule import Loaded, Reply, Turn
from strategies.rules.kseed import FedKSeed
from tests.strategies.rules.fleet import ALPHA_PER_RANK, SHAPES, adapter, added
from tests.strategies.rules.test_contract import assert_close

RANK, SEED = 3, 5
COMMON, *OWN = (
    {layer: torch.randn(shape, generator=torch.Generator().manual_seed(40 + number)) for layer, shape in SHAPES.items()}
    for number in range(4)
)
TARGETS = [add(COMMON, own, factor=0.2) for own in OWN]


def turn(number: int) -> Turn:
    return Turn(round=number, rank=RANK, scale=ALPHA_PER_RANK, seed=SEED)


def loss(state: Tensors, target: Tensors) -> float:
    """½ ‖s B A − target‖²: quadratic in B."""
    weights = added(Loaded(adapter=state), ALPHA_PER_RANK)
    return sum(0.5 * float((weights[layer] - target[layer]).square().sum()) for layer in SHAPES)


def walk(loaded: Loaded, target: Tensors, draw: torch.Generator, *, steps: int, rate: float) -> tuple[Tensors, Tensors]:
    """The local steps, word by word: where they lead, and η ρ summed by seed."""
    assert loaded.directions is not None
    directions, at = loaded.directions, loaded.adapter
    moved = torch.zeros_like(directions.scalars)
    for _ in range(steps):
        seed = int(torch.randint(len(moved), (), generator=draw))
        z = directions.along(seed, at)

        def moving(length: float, at: Tensors = at, z: Tensors = z) -> Tensors:
            return at | {key: at[key] + length * direction for key, direction in z.items()}

        ahead, behind = (loss(moving(side * directions.epsilon), target) for side in (1, -1))
        length = rate * (ahead - behind) / (2 * directions.epsilon)
        at = moving(-length)
        moved[seed] += length
    return at, {SCALARS: moved}


def play(
    plan: Plan, rounds: int, *, targets: Sequence[Tensors] = TARGETS, order: Sequence[int] = (0, 1, 2)
) -> tuple[Shared, list[Tensors]]:
    """A whole fleet, through the server's own gathering; and what every device sent."""
    assert isinstance(plan.rule, FedKSeed)
    shared = Shared(state=plan.rule.start(adapter(RANK), turn(0)))
    sent = []
    for number in range(1, rounds + 1):
        told = prepare(plan, shared, turn(number), adapter(RANK))
        gathering = Gathering(plan, shared, told, noise=SeededSource(0))
        for device in order:
            loaded = plan.rule.load(told.down, {}, told.turn).replayed(adapter(RANK))
            draw = torch.Generator().manual_seed(100 * number + device)
            after, along = walk(loaded, targets[device], draw, steps=8, rate=0.02)
            update = plan.rule.up(loaded.adapter, after | along, told.down, told.turn)
            gathering.take(Reply(device=device, weight=1.0, scale=ALPHA_PER_RANK, tensors=update), told)
            sent.append(update)
        shared = gathering.close()
    return shared, sent


def plan_of(privacy: DeviceLevel | None = None) -> Plan:
    return Plan(rule=FedKSeed(seeds=64), privacy=privacy, seed=SEED)


def test_a_fleet_converges_to_the_least_mean_loss() -> None:
    """Least squares by the normal equations is what is left of the loss when B is free and A is not."""
    plan = plan_of()
    assert isinstance(plan.rule, FedKSeed)
    shared, _ = play(plan, 80)
    found = plan.rule.adapter(shared.state, turn(81)).adapter
    start = plan.rule.start(adapter(RANK), turn(0))
    best = dict(found)
    for layer, pair in layers(found).items():
        mean = torch.stack([target[layer] for target in TARGETS]).mean(0)
        best[key_of(layer, "B")] = torch.linalg.lstsq(ALPHA_PER_RANK * pair.a.t(), mean.t()).solution.t()

    def over(state: Tensors) -> float:
        return sum(loss(state, target) - loss(best, target) for target in TARGETS)

    begin = {key: tensor for key, tensor in start.items() if key != SCALARS}
    assert 0 <= over(found) < 0.03 * over(begin)


def test_a_replay_is_where_the_steps_led() -> None:
    rule = FedKSeed(seeds=16)  # fewer than steps: seeds come again
    down = {SCALARS: torch.randn(16, generator=torch.Generator().manual_seed(1))}
    loaded = rule.load(down, {}, turn(3)).replayed(adapter(RANK))
    after, along = walk(loaded, TARGETS[0], torch.Generator().manual_seed(2), steps=40, rate=0.005)
    replayed = rule.load({SCALARS: down[SCALARS] + along[SCALARS]}, {}, turn(4)).replayed(adapter(RANK)).adapter
    assert_close(replayed, after, 1e-5)
    assert float((after[key_of("low", "B")] - loaded.adapter[key_of("low", "B")]).norm()) > 0.1


def test_the_order_of_devices_changes_nothing() -> None:
    one, other = (play(plan_of(), 3, order=order)[0].state for order in ((0, 1, 2), (2, 0, 1)))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_central_sum_without_noise_is_the_plain_plan() -> None:
    private = DeviceLevel(clip_norm=float("inf"), noise_multiplier=0.0, delta=1e-5, max_rounds=3, cohort=3)
    plain, summed = play(plan_of(), 3)[0], play(plan_of(private), 3)[0]
    assert_close(summed.state, plain.state, 1e-4)


def test_a_clip_bounds_what_one_device_moves() -> None:
    private = DeviceLevel(clip_norm=0.02, noise_multiplier=0.0, delta=1e-5, max_rounds=1, cohort=3)
    shared, sent = play(plan_of(private), 1)
    assert all(float(update[SCALARS].norm()) > 0.02 for update in sent)
    assert float(shared.state[SCALARS].norm()) <= 0.02 * (1 + 1e-6)


def test_a_round_takes_less_than_18_kilobytes_each_way_and_as_declared() -> None:
    plan = Plan(rule=FedKSeed(), seed=SEED)
    assert isinstance(plan.rule, FedKSeed)
    shared = Shared(state=plan.rule.start(adapter(RANK), turn(0)))
    told = prepare(plan, shared, turn(1), adapter(RANK))
    assert payload_bytes(plan.codec, told.shapes) == 4 * 4096 < 18_000
    assert sum(tensor.numel() * tensor.element_size() for tensor in told.down.values()) == 4 * 4096
    moved = torch.zeros(4096)
    sent = plan.rule.up({}, {SCALARS: moved}, told.down, told.turn)
    assert {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in sent.items()} == dict(told.declared.tensors)


def test_a_device_that_took_no_step_sends_zeros() -> None:
    sent = FedKSeed(seeds=7).up({}, {}, {SCALARS: torch.ones(7)}, turn(1))
    assert torch.equal(sent[SCALARS], torch.zeros(7))


@pytest.mark.parametrize("count", [3, 20_000])
def test_another_number_of_scalars_than_of_seeds_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} scalars came for 4 seeds"):
        FedKSeed(seeds=4).load({SCALARS: torch.ones(count)}, {}, turn(1))


def test_directions_are_unit_normal_and_do_not_resemble_each_other() -> None:
    directions = Directions(seed=SEED, scalars=torch.zeros(2000), epsilon=0.01)
    like = adapter(RANK)
    rows = torch.stack(
        [torch.cat([z.reshape(-1) for z in directions.along(k, like).values()]) for k in range(2000)]
    ).double()  # 2000 draws of 33 numbers
    assert rows.shape[1] == sum(tensor.numel() for tensor in split(like, "B").values())
    covariance = rows.t() @ rows / 2000
    # An entry's standard deviation is √(1/2000) = 0.022, on the diagonal √2 times that: five of them.
    assert float((covariance - torch.eye(33)).abs().max()) < 5 * 0.032
    between = rows @ rows.t() / 33
    assert float(between.fill_diagonal_(0).abs().max()) < 6.5 / 33**0.5  # 2 million pairs


def test_all_draw_alike_whatever_the_order_of_keys() -> None:
    directions = Directions(seed=SEED, scalars=torch.tensor([0.5, 0.0, -2.0]), epsilon=0.01)
    like = adapter(RANK)
    turned = dict(reversed(like.items()))
    one, other = directions.adapter(like), directions.adapter(turned)
    assert all(torch.equal(one[key], other[key]) for key in like)
    strange = replace(directions, seed=SEED + 1).adapter(like)
    assert not any(torch.equal(one[key], strange[key]) for key in like)


def test_all_begin_at_the_base_model() -> None:
    state = FedKSeed().start(adapter(RANK), turn(0))
    begin = FedKSeed().adapter(state, turn(1)).adapter
    assert all(torch.equal(begin[key], state[key]) for key in begin)
    assert not any(bool(tensor.any()) for tensor in split(begin, "B").values())
    assert all(bool(tensor.any()) for tensor in split(begin, "A").values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": 0}, "seeds must be >= 1 and <= 65536, got 0"),
        ({"seeds": 65537}, "got 65537"),
        ({"epsilon": 0.0}, "epsilon must be finite"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FedKSeed(**options)  # type: ignore[arg-type]
