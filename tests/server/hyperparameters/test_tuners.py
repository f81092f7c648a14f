"""The contract that every tuner keeps."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from florilegium.tensors import Tensors
from server import hyperparameters
from server.hyperparameters import TUNERS, Tuner
from server.hyperparameters.fedex_hpo import FedExHPO
from server.hyperparameters.fixed import Fixed
from server.hyperparameters.schedule import Schedule
from strategies.hyperparameters import require_values

BESIDE = {"halving", "settings", "tuner"}
EXAMPLES: Mapping[str, Callable[[], Tuner]] = {
    "fixed": lambda: Fixed(values={"steps": 4, "learning_rate": 1e-3}),
    "schedule": lambda: Schedule(first={"steps": 8, "learning_rate": 1e-2}, last={"learning_rate": 1e-4}, rounds=5),
    "fedex_hpo": lambda: FedExHPO(candidates=tuple({"learning_rate": 10.0**-power} for power in (1, 2, 3, 4))),
}
Said = list[tuple[dict[str, float], float]]


def said_in(tuner: Tuner, state: Mapping[str, Tensor], server_round: int, seed: int = 0) -> Said:
    """What six devices were asked in a round, and how it went, by the draw and the device."""
    drawn = [tuner.draw(state, server_round=server_round, device=device, seed=seed) for device in range(6)]
    return [
        (each, math.sin(1e3 * each.get("learning_rate", 0.0) + 7 * server_round + device))
        for device, each in enumerate(drawn)
    ]


def total(tuner: Tuner, said: Said) -> Tensor:
    return torch.stack([tuner.feedback(drawn, gain) for drawn, gain in said]).sum(dim=0)


def play(tuner: Tuner, state: Tensors, rounds: range, seed: int = 0) -> Tensors:
    for server_round in rounds:
        state = tuner.advance(state, total(tuner, said_in(tuner, state, server_round, seed)))
    return state


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype
        assert torch.equal(tensor, other[key]), key


@pytest.fixture(params=sorted(TUNERS))
def tuner(request: pytest.FixtureRequest) -> Tuner:
    return EXAMPLES[request.param]()


def test_a_tuner_is_one_file_and_one_line() -> None:
    names = {module.name for module in pkgutil.iter_modules(hyperparameters.__path__)} - BESIDE
    assert names == set(TUNERS) == set(EXAMPLES)
    for name in names:
        module = importlib.import_module(f"server.hyperparameters.{name}")
        assert [TUNERS[name]] == [getattr(module, public) for public in module.__all__]


def test_all_tuners_are_called_alike() -> None:
    for name, (kind, method) in ((f"{k.__name__}.{m}", (k, m)) for k in TUNERS.values() for m in vars(Tuner)):
        if not method.startswith("_") and method != "sensitivity":
            assert inspect.signature(getattr(kind, method)) == inspect.signature(getattr(Tuner, method)), name


def test_a_draw_can_be_asked_and_depends_on_its_arguments_alone(tuner: Tuner) -> None:
    state = play(tuner, tuner.start(), range(1, 4))
    drawn = {
        (server_round, device): tuner.draw(state, server_round=server_round, device=device, seed=3)
        for server_round in range(1, 8)
        for device in range(8)
    }
    for (server_round, device), values in reversed(drawn.items()):
        require_values(values)
        assert values
        assert tuner.draw(dict(state), server_round=server_round, device=device, seed=3) == values


def test_a_draw_is_the_callers_own(tuner: Tuner) -> None:
    drawn = tuner.draw(tuner.start(), server_round=1, device=1, seed=0)
    before = dict(drawn)
    drawn.clear()
    assert tuner.draw(tuner.start(), server_round=1, device=1, seed=0) == before


def test_nothing_that_is_given_is_touched(tuner: Tuner) -> None:
    state = play(tuner, tuner.start(), range(1, 3))
    kept = {key: tensor.clone() for key, tensor in state.items()}
    summed = total(tuner, said_in(tuner, state, 3))
    before = summed.clone()
    tuner.advance(state, summed)
    assert_same(state, kept)
    assert torch.equal(summed, before)


def test_the_order_of_devices_changes_nothing(tuner: Tuner) -> None:
    state = play(tuner, tuner.start(), range(1, 3))
    said = said_in(tuner, state, 3)
    assert_same(tuner.advance(state, total(tuner, said)), tuner.advance(state, total(tuner, said[::-1])))


def test_sums_may_be_made_of_sums(tuner: Tuner) -> None:
    """What masks and streaming need: no more than addition."""
    said = said_in(tuner, tuner.start(), 1)
    assert torch.equal(total(tuner, said[:2]) + total(tuner, said[2:]), total(tuner, said))


def test_a_sum_of_zeros_changes_nothing(tuner: Tuner) -> None:
    state = play(tuner, tuner.start(), range(1, 4))
    nothing = torch.zeros_like(total(tuner, said_in(tuner, state, 4)))
    assert_same(tuner.advance(state, nothing), state)


def test_no_device_moves_the_sum_by_more_than_the_sensitivity(tuner: Tuner) -> None:
    state, norms = tuner.start(), []
    for device in range(40):
        drawn = tuner.draw(state, server_round=1, device=device, seed=0)
        norms += [float(tuner.feedback(drawn, gain).norm()) for gain in (-1e9, -1.0, -0.3, 0.0, 0.7, 1.0, 1e9)]
    assert max(norms) == pytest.approx(tuner.sensitivity, rel=1e-12), "reached, and never passed"


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tuner: Tuner) -> None:
    whole = play(tuner, tuner.start(), range(1, 9))
    state = play(tuner, tuner.start(), range(1, 5))
    resumed = play(tuner, load(save(state)), range(5, 9))
    assert_same(resumed, whole)
    assert said_in(tuner, resumed, 9) == said_in(tuner, whole, 9)


def test_a_tuner_does_not_change_with_what_it_was_made_from() -> None:
    values = {"learning_rate": 1e-2}
    makers: list[Callable[[], Tuner]] = [
        lambda: Fixed(values=values),
        lambda: Schedule(first=values),
        lambda: FedExHPO(candidates=(values, {"learning_rate": 1e-3})),
    ]
    made = [make() for make in makers]
    before = [[each.draw(each.start(), server_round=1, device=d, seed=0) for d in range(9)] for each in made]
    values["learning_rate"] = 0.5
    after = [[each.draw(each.start(), server_round=1, device=d, seed=0) for d in range(9)] for each in made]
    assert after == before
