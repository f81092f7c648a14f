from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.adapters import PERSONAL, SHARED, AdaptedModel
from client.dialogue import Example
from client.finetuning import Anchor, FineTuneConfig, Progress, Target, finetune
from client.finetuning.trainable import Part, trainable
from florilegium.errors import ConfigError

Wrap = Callable[..., AdaptedModel]


def started(model: AdaptedModel, seed: int = 1) -> dict[str, Tensor]:
    """Give the personal slot factors that are not zero, and return them."""
    model.reset(PERSONAL, seed)
    generator = torch.Generator().manual_seed(seed)
    flat = model.flat(PERSONAL)
    flat.add_(torch.randn(flat.shape, generator=generator), alpha=0.02)
    return model.state(PERSONAL)


def layers(state: dict[str, Tensor]) -> list[str]:
    return [key.split(".lora_B.")[0] for key in state if ".lora_B." in key]


def cores(state: dict[str, Tensor], value: float = 1.0) -> dict[str, Tensor]:
    rank = next(tensor.shape[1] for key, tensor in state.items() if ".lora_B." in key)
    return {layer: value * torch.eye(rank) for layer in layers(state)}


@pytest.mark.parametrize(("part", "moved", "kept"), [("A", ".lora_A.", ".lora_B."), ("B", ".lora_B.", ".lora_A.")])
def test_one_factor_moves_and_the_other_stays(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig, part: Part, moved: str, kept: str
) -> None:
    before = started(adapted)
    finetune(adapted, examples, target=Target(slot=PERSONAL, part=part), config=config)
    after = adapted.state(PERSONAL)
    for key in before:
        same = torch.equal(before[key], after[key])
        assert same == (kept in key), key
        assert same != (moved in key), key


@pytest.mark.parametrize("part", ["AB", "A", "B", "core"])
def test_the_pulled_gradient_is_autograd_s(adapted: AdaptedModel, part: Part) -> None:
    """Reference: the chain rule by autograd through the map from values to the slot's tensors."""
    before = started(adapted)
    moving = trainable(adapted, Target(slot=PERSONAL, part=part, core=cores(before)))
    weights = {
        key: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)) for key, tensor in before.items()
    }
    values = moving.values.clone().requires_grad_()
    at, loss = 0, torch.zeros(())
    for key, tensor in before.items():
        if part == "core" and ".lora_B." in key:
            rank = tensor.shape[1]
            state = tensor @ values[at : at + rank * rank].view(rank, rank)
            at += rank * rank
        elif part == "AB" or f".lora_{part}." in key:
            state = values[at : at + tensor.numel()].view_as(tensor)
            at += tensor.numel()
        else:
            state = tensor
        loss = loss + (weights[key] * state.sin()).sum()
    assert at == len(values)
    torch.autograd.backward(loss)
    now = adapted.state(PERSONAL)
    of_slot = torch.cat([(weights[key] * now[key].cos()).reshape(-1) for key in now])
    torch.testing.assert_close(moving.pull(of_slot), values.grad)


def test_a_core_s_factors_stay_and_the_slot_holds_their_product(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    before = started(adapted)
    finetune(adapted, examples, target=Target(slot=PERSONAL, part="core", core=cores(before)), config=config)
    after = adapted.state(PERSONAL)
    for layer in layers(before):
        assert torch.equal(before[f"{layer}.lora_A.weight"], after[f"{layer}.lora_A.weight"])
        b, moved = before[f"{layer}.lora_B.weight"], after[f"{layer}.lora_B.weight"]
        assert not torch.equal(b, moved)
        r = torch.linalg.lstsq(b, moved).solution  # B has full column rank, so R can be read off B R
        torch.testing.assert_close(b @ r, moved, atol=1e-5, rtol=1e-4)


def test_a_zero_core_adds_nothing_and_still_learns(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    before = started(adapted)
    target = Target(slot=PERSONAL, part="core", core=cores(before, 0.0), beside=())
    report = finetune(adapted, examples, target=target, config=dataclasses.replace(config, epochs=10))
    assert report.loss_last < report.loss_first
    adapted.load_state(PERSONAL, before)
    trainable(adapted, target)
    assert adapted.is_blank(PERSONAL)


def test_a_layer_without_a_core_is_refused(adapted: AdaptedModel) -> None:
    with pytest.raises(ConfigError, match="has no core"):
        trainable(adapted, Target(slot=PERSONAL, part="core"))


def test_what_is_not_beside_takes_no_part(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    config = dataclasses.replace(config, max_steps=1)
    start = started(adapted)
    alone = finetune(adapted, examples, target=Target(slot=PERSONAL, beside=()), config=config).loss_first
    adapted.load_state(PERSONAL, start)
    beside = finetune(adapted, examples, target=Target(slot=PERSONAL, beside=(SHARED,)), config=config).loss_first
    adapted.load_state(PERSONAL, start)
    assert finetune(adapted, examples, config=config).loss_first == beside != alone
    adapted.reset(SHARED, 0)  # a blank neighbour is none
    adapted.load_state(PERSONAL, start)
    assert finetune(adapted, examples, config=config).loss_first == alone


def moved_by(adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig, anchor: Anchor | None) -> Tensor:
    started(adapted)
    before = adapted.flat(PERSONAL).clone()
    finetune(adapted, examples, target=Target(slot=PERSONAL, anchor=anchor), config=config)
    return adapted.flat(PERSONAL) - before


def test_an_anchor_of_weight_zero_is_none(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    free = moved_by(adapted, examples, config, None)
    assert torch.equal(free, moved_by(adapted, examples, config, Anchor(weight=0.0)))


def test_an_anchor_holds_back(adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig) -> None:
    config = dataclasses.replace(config, optimizer="sgd", learning_rate=0.05, epochs=8)
    norms = [float(moved_by(adapted, examples, config, Anchor(weight=weight)).norm()) for weight in (0.0, 1.0, 10.0)]
    assert norms[0] > norms[1] > norms[2] > 0


def test_an_anchor_elsewhere_is_a_pull_of_its_own(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    """One step of SGD: the difference to the free step is −η μ (w − point), by hand."""
    config = dataclasses.replace(config, optimizer="sgd", max_steps=1, clip_norm=float("inf"))
    start = started(adapted)
    point = {key: torch.full_like(tensor, 0.3) for key, tensor in start.items()}
    free = moved_by(adapted, examples, config, None)
    held = moved_by(adapted, examples, config, Anchor(weight=0.7, point=point))
    flat = torch.cat([tensor.reshape(-1) for tensor in start.values()])
    torch.testing.assert_close(held - free, -config.learning_rate * 0.7 * (flat - 0.3), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_an_anchor_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="anchor's weight"):
        Anchor(weight=weight)


@pytest.mark.parametrize("part", ["AB", "A", "B", "core"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_interrupted_training_of_any_part_ends_the_same(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig, tmp_path: Path, part: Part, optimizer: str
) -> None:
    config = dataclasses.replace(config, optimizer=optimizer)  # type: ignore[arg-type]
    start = started(adapted)
    target = Target(slot=PERSONAL, part=part, core=cores(start), anchor=Anchor(weight=0.1))
    finetune(adapted, examples, target=target, config=config)
    whole = adapted.flat(PERSONAL).clone()

    def press(now: Progress) -> None:
        if now.step == 3:
            raise KeyboardInterrupt

    adapted.load_state(PERSONAL, start)
    with pytest.raises(KeyboardInterrupt):
        finetune(adapted, examples, target=target, config=config, checkpoint=tmp_path / "c", progress=press)
    assert torch.equal(adapted.flat(PERSONAL), torch.cat([tensor.reshape(-1) for tensor in start.values()]))
    report = finetune(adapted, examples, target=target, config=config, checkpoint=tmp_path / "c")
    assert report.resumed_step == 3
    assert torch.equal(adapted.flat(PERSONAL), whole)


def test_another_target_does_not_take_over_a_checkpoint(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig, tmp_path: Path
) -> None:
    start = started(adapted)

    def press(now: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(adapted, examples, config=config, checkpoint=tmp_path / "c", progress=press)
    targets = [
        Target(slot=PERSONAL, part="B"),
        Target(slot=PERSONAL, beside=()),
        Target(slot=PERSONAL, anchor=Anchor(weight=0.1, point=start)),
    ]
    for target in targets:
        adapted.load_state(PERSONAL, start)
        checkpoint = tmp_path / "copy"
        checkpoint.write_bytes((tmp_path / "c").read_bytes())
        assert finetune(adapted, examples, target=target, config=config, checkpoint=checkpoint).resumed_step == 0
