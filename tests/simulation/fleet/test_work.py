"""What a request asks: what is declared is what is sent, and tokens by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from florilegium.tensors import Tensors
from server.transport import Request
from simulation.fleet.work import LocalWork
from strategies.codecs.int8 import Int8
from strategies.gathering import Shared, prepare
from strategies.plan import Plan
from strategies.rule import Rule, Turn
from strategies.rules import RULES
from tests.strategies.rules.fleet import ALPHA_PER_RANK, Device, adapter, advance, begin, gradient, noise


def work(plan: Plan) -> LocalWork:
    return LocalWork(plan=plan, adapter=adapter(3), parameters=1_000_000, row_tokens=40.0, rows=20.0)


def request(plan: Plan, state: Tensors, turn: Turn, **hyperparameters: float) -> Request:
    told = prepare(plan, Shared(state=state), turn, adapter(turn.rank))
    return Request(
        device=1, turn=turn, down=told.down, agreement=told.agreement, hyperparameters=hyperparameters or {"steps": 4.0}
    )


def size(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def turn(number: int = 1, exchange: int = 0, rank: int = 3) -> Turn:
    return Turn(round=number, exchange=exchange, rank=rank, scale=ALPHA_PER_RANK, seed=5)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", sorted(RULES))
def test_what_is_declared_is_what_is_sent(name: str, rank: int) -> None:
    rule: Rule = RULES[name]()
    if rank < 3 and not rule.mixed_ranks:
        return
    plan, state = Plan(rule=rule, seed=5), begin(rule)
    device, other = Device(1, rank=rank), Device(2)
    for number in (1, 2):
        for exchange in range(rule.exchanges(number)):
            at = turn(number, exchange, rank)
            asked = request(plan, state, at)
            sent = device.answer(rule, state, at, noise, gradient)
            cost = work(plan)(asked)
            assert cost.bytes_up == size(sent.tensors)
            assert cost.bytes_down == size(asked.down) + size(asked.agreement)
            # SHAPES: r · (7 + 5) + r · (4 + 9) numbers.
            assert (cost.parameters, cost.adapter_parameters) == (1_000_000, 25 * rank)
            full = turn(number, exchange)
            replies = [sent, other.answer(rule, state, full, noise, gradient)]
            state = advance(rule, state, replies, full)


def test_a_codec_makes_the_way_up_shorter() -> None:
    rule = RULES["fedit"]()
    costs = [
        work(plan)(request(plan, begin(rule), turn())) for plan in (Plan(rule=rule), Plan(rule=rule, codec=Int8()))
    ]
    assert costs[0].bytes_up == 4 * 75
    assert 75 < costs[1].bytes_up < 4 * 75
    assert costs[0].bytes_down == costs[1].bytes_down


@pytest.mark.parametrize(
    ("hyperparameters", "tokens"),
    [
        ({"steps": 4.0, "batch_size": 8.0}, 4 * 8 * 40),
        ({"steps": 4.0, "batch_size": 64.0}, 4 * 20 * 40),  # no device has more than 20 rows
        ({"learning_rate": 0.1}, 8 * 8 * 40),  # the defaults
        ({"steps": 1e4, "batch_size": 2.0}, 256 * 2 * 40),  # more steps than devices are willing to take
    ],
)
def test_tokens_by_hand(hyperparameters: dict[str, float], tokens: int) -> None:
    plan = Plan(rule=RULES["fedit"]())
    assert work(plan)(request(plan, begin(RULES["fedit"]()), turn(), **hyperparameters)).tokens == tokens


@pytest.mark.parametrize(("name", "number", "tokens"), [("fedsb", 1, [800, 800]), ("sketch", 1, [1280, 0])])
def test_exchanges_without_training_by_hand(name: str, number: int, tokens: list[int]) -> None:
    """Fed-SB reads its 20 rows of 40 tokens twice; a sketch trains 4 steps of 8 rows, and then sends once more."""
    rule: Rule = RULES[name]()
    plan, state, device, found = Plan(rule=rule, seed=5), begin(rule), Device(1), []
    for exchange in range(rule.exchanges(number)):
        at = turn(number, exchange)
        asked = replace(request(plan, state, at), hyperparameters={"steps": 4.0, "batch_size": 8.0})
        found.append(work(plan)(asked).tokens)
        state = advance(rule, state, [device.answer(rule, state, at, noise, gradient)], at)
    assert found == tokens


def test_judging_an_improvement_reads_the_holdout_as_training_does_once() -> None:
    plan = Plan(rule=RULES["fedit"]())
    asked = request(plan, begin(RULES["fedit"]()), turn(), steps=4.0, batch_size=8.0)
    judging = replace(work(plan), holdout_rows=5.0)
    assert judging(asked).tokens == 4 * 8 * 40
    assert judging(replace(asked, improvement_unit=1.0)).tokens == (4 * 8 + 5) * 40
