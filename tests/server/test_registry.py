"""The registry of shared adapters."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from client.adapter_store import AdapterStore
from client.adapters import SHARED, AdaptedModel, AdapterConfig
from client.model import BaseModel
from florilegium.errors import StorageError
from florilegium.tensors import Tensors
from server.config import CoordinationConfig
from server.registry import Registry
from strategies.factors import layers
from strategies.rule import Loaded, Turn
from strategies.rules import RULES
from strategies.rules.kseed import FedKSeed
from tests.server.toy import SMALL, Toy, coordinate, play
from tests.strategies.rules.fleet import ALPHA_PER_RANK, Device, adapter, play_round

RANK, SCALE = 4, 2.0


def made(seed: int = 0) -> Loaded:
    return Loaded(adapter=adapter(3, seed, blank=False))


def filled(folder: Path, rounds: int, *, keep: int = 5) -> Registry:
    registry = Registry(folder, keep=keep)
    for number in range(1, rounds + 1):
        assert registry.save(made(number), scale=ALPHA_PER_RANK, metrics={"round": number, "taken": 8.0}) == number
    return registry


def test_versions_have_the_numbers_of_their_rounds_and_the_newest_is_served(tmp_path: Path) -> None:
    registry = filled(tmp_path, 3)
    assert [(each.number, dict(each.metrics)) for each in registry.versions()] == [
        (number, {"round": number, "taken": 8.0}) for number in (1, 2, 3)
    ]
    assert registry.current == 3
    assert not registry.is_pinned


def test_an_empty_one_serves_nothing(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "none")
    assert registry.versions() == []
    assert registry.current is None
    with pytest.raises(StorageError, match="serves no version"):
        registry.roll_back()
    with pytest.raises(StorageError, match="no adapter version 1"):
        registry.promote(1)
    assert registry.current is None


def test_what_was_rolled_back_to_stays_until_the_newest_is_promoted(tmp_path: Path) -> None:
    registry = filled(tmp_path, 3)
    assert registry.roll_back() == 2
    registry.save(made(), scale=1.0, metrics={"round": 4})
    assert (registry.current, registry.is_pinned) == (2, True)
    assert registry.roll_back() == 1
    registry.promote(3)
    registry.save(made(), scale=1.0, metrics={"round": 5})
    assert (registry.current, registry.is_pinned) == (3, True)
    registry.promote(5)
    registry.save(made(), scale=1.0, metrics={"round": 6})
    assert (registry.current, registry.is_pinned) == (6, False)


def test_rolling_back_from_the_first_version_leads_to_the_base(tmp_path: Path) -> None:
    registry = filled(tmp_path, 1)
    assert registry.roll_back() is None
    registry.save(made(), scale=1.0, metrics={"round": 2})
    assert registry.current is None


def test_the_oldest_go_and_the_one_served_never(tmp_path: Path) -> None:
    registry = filled(tmp_path, 4, keep=2)
    assert [each.number for each in registry.versions()] == [3, 4]
    assert registry.roll_back() == 3
    for number in (5, 6, 7):
        registry.save(made(), scale=1.0, metrics={"round": number})
    assert [each.number for each in registry.versions()] == [3, 6, 7]


def test_a_round_is_kept_once(tmp_path: Path) -> None:
    registry = filled(tmp_path, 2)
    before = (registry.versions()[-1].path / SHARED / "adapter_model.safetensors").read_bytes()
    assert registry.save(made(9), scale=1.0, metrics={"round": 2}) == 2
    assert (registry.versions()[-1].path / SHARED / "adapter_model.safetensors").read_bytes() == before


def test_a_round_of_another_run_is_kept_beside(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for run in (7, 8, 8):
        number = registry.save(made(run), scale=1.0, metrics={"run": run, "round": 1})
    assert (number, [each.metrics["run"] for each in registry.versions()]) == (2, [7, 8])
    assert registry.current == 2


def test_who_looks_waits_for_who_writes(tmp_path: Path) -> None:
    """A version that is deleted meanwhile would be one that cannot be read."""
    registry = filled(tmp_path, 2)
    with ThreadPoolExecutor() as pool:
        with registry._lock() as store:
            looking = pool.submit(registry.versions)
            with pytest.raises(TimeoutError):
                looking.result(timeout=0.1)
            store.prune(keep=1)
        assert [each.number for each in looking.result()] == [2]


def test_two_registries_on_one_folder_see_each_other(tmp_path: Path) -> None:
    """A server saves while an operator, elsewhere, rolls back."""
    server, operator = filled(tmp_path, 2), Registry(tmp_path)
    assert operator.roll_back() == 1
    server.save(made(), scale=1.0, metrics={"round": 3})
    assert (server.current, operator.current) == (1, 1)


def test_a_damaged_pointer_is_named(tmp_path: Path) -> None:
    registry = filled(tmp_path, 1)
    (tmp_path / "current.json").write_text("{")
    with pytest.raises(StorageError, match=r"current\.json cannot be read"):
        _ = registry.current


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    registry = filled(tmp_path / "registry", 2)
    registry.roll_back()
    for path in [registry.directory, *registry.directory.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("name", sorted(RULES))
def test_peft_loads_what_any_rule_made(name: str, tiny_model: BaseModel, tmp_path: Path) -> None:
    """Reference: PEFT's own model, with the residual added to its weights, against ours with the state loaded."""
    model = AdaptedModel(tiny_model, AdapterConfig(rank=RANK, alpha=SCALE * RANK, top_layers=1, dropout=0.0))
    model.reset(SHARED, 7)
    loaded = after_rounds(name, model.state(SHARED))
    registry = Registry(tmp_path)
    number = registry.save(loaded, scale=SCALE, metrics={"round": 2})
    ids = torch.tensor([[5, 9, 14, 3, 8]])

    AdapterStore(tmp_path, read_only=True).load(model)
    with torch.no_grad(), model.folded(loaded.residual or {}), model.active(SHARED):
        expected = model.module(ids).logits
    base = model.detach().module
    with torch.no_grad():
        does_nothing = torch.allclose(base(ids).logits, expected, atol=1e-3)
        assert does_nothing == (name == "fedsa"), "whose B stays on the devices"
    peft = PeftModel.from_pretrained(base, str(registry.versions()[-1].path / SHARED))
    weights = {layer.removeprefix("base_model."): matrix for layer, matrix in registry.residual(number).items()}
    with torch.no_grad():
        for layer, matrix in weights.items():
            peft.base_model.get_parameter(f"{layer}.base_layer.weight").add_(matrix)
        torch.testing.assert_close(peft(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert bool(weights) == (name in ("fedex", "flora"))


def after_rounds(name: str, start: Tensors) -> Loaded:
    """A state after two rounds of two devices whose tensors move by numbers of their own."""
    rule = FedKSeed(seeds=24) if name == "fedkseed" else RULES[name]()
    turn = Turn(round=3, rank=RANK, scale=SCALE, seed=5)
    state = rule.start(start, Turn(round=0, rank=RANK, scale=SCALE, seed=5))

    def slope(device: int) -> Tensors:
        draw = torch.Generator().manual_seed(device)
        shapes = {layer: (pair.b.shape[0], pair.a.shape[1]) for layer, pair in layers(start).items()}
        return {layer: torch.randn(shape, generator=draw) for layer, shape in shapes.items()}

    devices = [Device(number, rank=RANK) for number in range(2)]
    for number in (1, 2):
        state = play_round(rule, state, devices, number, rank=RANK, slope=slope)
    return rule.adapter(state, turn)


def test_a_server_keeps_a_version_of_each_round(tmp_path: Path) -> None:
    config = CoordinationConfig.parse(SMALL | {"keep_versions": 3, "plan": {"rule": "fedex"}})
    server = coordinate(tmp_path, Toy(config.make_plan(), dict.fromkeys(range(8), 3)), config, registry=True)
    _, progress = play(server)
    registry = Registry(tmp_path / "registry")
    versions = registry.versions()
    assert [each.metrics["round"] for each in versions] == [2, 3, 4]
    assert versions[-1].metrics == {"run": progress.run, **progress.metrics}
    assert {
        "taken",
        "refused",
        "failed",
        "silent",
        "uplink_bytes",
        "downlink_bytes",
        "seconds",
    } <= progress.metrics.keys()
    content = json.loads((versions[-1].path / SHARED / "adapter_config.json").read_text())
    assert (content["r"], content["lora_alpha"], content["target_modules"]) == (3, 6.0, ["high", "low"])
    for layer, matrix in registry.residual(versions[-1].number).items():
        torch.testing.assert_close(matrix, progress.shared.state[f"residual.{layer}"])


def test_a_server_that_died_before_it_kept_a_version_does_so_when_it_starts(tmp_path: Path) -> None:
    config = CoordinationConfig.parse(SMALL)
    toy = Toy(config.make_plan(), dict.fromkeys(range(8), 3))
    for _, progress in coordinate(tmp_path, toy, config).rounds():  # without a registry
        if progress.round == 2:
            break
    registry = Registry(tmp_path / "registry")
    rounds = coordinate(tmp_path, toy, config, registry=True).rounds()
    next(rounds)
    assert [each.metrics["round"] for each in registry.versions()] == [2, 3]
