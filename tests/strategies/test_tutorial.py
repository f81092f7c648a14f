"""The tutorial's example is a rule that works."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from strategies.plan import Plan
from strategies.rule import Linear, Rule
from tests.strategies.rules.fleet import Device, begin, noise, play_round

TUTORIAL = Path(__file__).parents[2] / "docs" / "adding-a-strategy.md"


@pytest.fixture(scope="module")
def rule_class(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Rule]:
    (code,) = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path_factory.mktemp("tutorial") / "lg_fedavg.py"
    path.write_text(code, encoding="utf-8")
    spec = spec_from_file_location("lg_fedavg", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["lg_fedavg"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    found: Callable[..., Rule] = module.LGFedAvg
    return found


def test_shared_layers_are_averaged_and_others_stay(rule_class: Callable[..., Rule]) -> None:
    layer = next(iter(begin(rule_class()))).partition(".lora_")[0]
    rule = rule_class(shared=layer)
    assert isinstance(rule, Linear)
    devices = [Device(0), Device(1)]
    state = begin(rule)
    after = play_round(rule, state, devices, 1, train=noise)
    for key, tensor in state.items():
        assert torch.equal(after[key], tensor) == (layer not in key)
    for device in devices:
        assert device.kept
        assert all(layer not in key for key in device.kept)


def test_a_plan_takes_it(rule_class: Callable[..., Rule]) -> None:
    assert Plan(rule=rule_class(), secure_aggregation=True).name == "lg-fedavg"
