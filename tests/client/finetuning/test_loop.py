import dataclasses
import math
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.adapters import PERSONAL, SHARED, AdaptedModel
from client.dialogue import Example
from client.finetuning import FineTuneConfig, Progress, Target, finetune
from client.finetuning.batching import epoch_batches, make_rows
from florilegium.errors import ConfigError, InputError, StorageError

Wrap = Callable[..., AdaptedModel]


class Killed(BaseException):
    """What a kill looks like from inside."""


def trained(
    model: AdaptedModel,
    examples: Sequence[Example],
    config: FineTuneConfig,
    *,
    checkpoint: Path | None = None,
    stop: BaseException | None = None,
    after: int = -1,
) -> Tensor:
    """Train from a fresh start, with `stop` raised after step `after`; return the adapter."""

    def progress(now: Progress) -> None:
        if now.step == after and stop is not None:
            raise stop

    model.reset(PERSONAL, 1)
    finetune(model, examples, config=config, checkpoint=checkpoint, progress=progress)
    return model.flat(PERSONAL).clone()


def test_the_first_loss_is_transformers_own(wrap: Wrap, examples: list[Example], config: FineTuneConfig) -> None:
    model = wrap(dropout=0.0)
    rows = make_rows(model, examples)
    (first, *_) = epoch_batches(rows, seed=config.seed, epoch=0, batch_size=config.batch_size)
    sums, counts = [], []
    with model.active(SHARED, PERSONAL), torch.no_grad():
        for row in first.rows:
            labels = torch.tensor([[-100] * row.start + list(row.ids[row.start :])])
            loss = model.module(torch.tensor([row.ids]), labels=labels).loss
            sums.append(float(loss) * row.scored)
            counts.append(row.scored)
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    report = finetune(model, examples, config=config)
    assert report.loss_first == pytest.approx(sum(means) / len(means), rel=1e-5)
    model.reset(PERSONAL, 0)
    by_token = finetune(model, examples, config=dataclasses.replace(config, normalization="token"))
    assert by_token.loss_first == pytest.approx(sum(sums) / sum(counts), rel=1e-5)


def test_training_learns_and_reports(adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig) -> None:
    seen: list[Progress] = []
    config = dataclasses.replace(config, epochs=12, learning_rate=1e-2)
    report = finetune(adapted, examples, config=config, progress=seen.append)
    assert report.loss_last < report.loss_first / 2
    assert (report.steps, report.rows, report.stopped, report.resumed_step) == (36, 12 * 11, "", 0)
    assert report.tokens == 12 * sum(row.length for row in make_rows(adapted, examples))
    assert [now.step for now in seen] == list(range(1, 37))
    assert seen[-1].loss == report.loss_last
    assert seen[-1].eta_seconds == 0
    assert all(now.steps == 36 and now.tokens_per_second > 0 for now in seen)


@pytest.mark.parametrize("slot", [SHARED, PERSONAL])
def test_only_the_asked_slot_moves(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig, slot: str
) -> None:
    before = {name: tensor.clone() for name, tensor in adapted.module.state_dict().items()}
    generator = torch.get_rng_state()
    finetune(adapted, examples, target=Target(slot=slot), config=config)
    for name, tensor in adapted.module.state_dict().items():
        assert torch.equal(tensor, before[name]) != (f".{slot}." in name), name
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in adapted.module.parameters())


def test_the_order_of_examples_changes_not_a_bit(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    expected = trained(adapted, examples, config)
    assert torch.equal(trained(adapted, examples[::-1], config), expected)
    assert torch.equal(trained(adapted, examples[5:] + examples[:5], config), expected)


def test_training_without_an_example_is_as_if_it_had_never_been(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    never = trained(adapted, examples[:6] + examples[7:], config)
    whole = trained(adapted, examples, config)
    assert not torch.equal(whole, never)
    assert torch.equal(trained(adapted, [row for row in examples if row is not examples[6]], config), never)


@pytest.mark.parametrize("top_layers", [None, 1])
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Killed()], ids=["interrupted", "killed"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    wrap: Wrap,
    examples: list[Example],
    config: FineTuneConfig,
    tmp_path: Path,
    stop: BaseException,
    top_layers: int | None,
) -> None:
    model = wrap(top_layers=top_layers)
    config = dataclasses.replace(config, schedule="cosine", warmup_steps=2)
    expected = trained(model, examples, config)
    path = tmp_path / "checkpoint"
    for step in (1, 3, 5):
        with pytest.raises(type(stop)):
            trained(model, examples, config, checkpoint=path, stop=stop, after=step)
        fresh = model.flat(PERSONAL).clone()
        assert torch.equal(trained(model, examples, config, checkpoint=path), expected)
        assert not path.exists()
        model.reset(PERSONAL, 1)
        assert torch.equal(model.flat(PERSONAL), fresh)  # an interrupted call leaves the adapter as before


def test_a_run_may_be_stopped_at_every_step(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig, tmp_path: Path
) -> None:
    expected = trained(adapted, examples, config)
    path = tmp_path / "checkpoint"
    for step in range(1, 7):
        with pytest.raises(KeyboardInterrupt):
            trained(adapted, examples, config, checkpoint=path, stop=KeyboardInterrupt(), after=step)
    adapted.reset(PERSONAL, 1)
    report = finetune(adapted, examples, config=config, checkpoint=path)
    assert (report.resumed_step, report.steps, report.rows) == (6, 6, 22)
    assert torch.equal(adapted.flat(PERSONAL), expected)


def test_control_c_inside_a_step_loses_that_step_alone(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig, tmp_path: Path
) -> None:
    expected = trained(adapted, examples, config)
    path = tmp_path / "checkpoint"
    adapted.reset(PERSONAL, 1)

    def press(now: Progress) -> None:
        if now.step == 3:
            os.kill(os.getpid(), signal.SIGINT)  # noticed before the first micro-batch of step 4

    lazy = dataclasses.replace(config, checkpoint_steps=100)
    with pytest.raises(KeyboardInterrupt):
        finetune(adapted, examples, config=lazy, checkpoint=path, progress=press)
    report = finetune(adapted, examples, config=config, checkpoint=path)  # how often to save is no part of the work
    assert report.resumed_step == 3
    assert torch.equal(adapted.flat(PERSONAL), expected)


@pytest.mark.parametrize("change", ["examples", "seed", "start", "frozen"])
def test_a_checkpoint_of_other_work_is_left_aside(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        trained(adapted, examples, config, checkpoint=path, stop=KeyboardInterrupt(), after=2)
    adapted.reset(PERSONAL, 2 if change == "start" else 1)
    if change == "frozen":
        adapted.flat(SHARED).mul_(2)
    if change == "seed":
        config = dataclasses.replace(config, seed=config.seed + 1)
    rows = examples[1:] if change == "examples" else examples
    assert finetune(adapted, rows, config=config, checkpoint=path).resumed_step == 0


def test_what_is_not_finite_stops_and_leaves_the_adapter(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig, tmp_path: Path
) -> None:
    before = adapted.flat(PERSONAL).clone()
    path = tmp_path / "checkpoint"
    report = finetune(adapted, examples, config=dataclasses.replace(config, learning_rate=1e30), checkpoint=path)
    assert "was not finite at step 2 of 6; lower the learning rate" in report.stopped
    assert report.steps == 1
    assert torch.equal(adapted.flat(PERSONAL), before)
    assert not path.exists()


def test_a_disk_that_refuses_the_checkpoint_leaves_the_adapter(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig, tmp_path: Path
) -> None:
    before = adapted.flat(PERSONAL).clone()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        finetune(adapted, examples, config=config, checkpoint=tmp_path / "file" / "checkpoint")
    assert torch.equal(adapted.flat(PERSONAL), before)


@pytest.mark.parametrize("change", [{"micro_tokens": 7}, {"trunk_cache_mb": 0}, {"gradient_checkpointing": True}])
def test_how_the_work_is_cut_changes_rounding_alone(
    wrap: Wrap, examples: list[Example], config: FineTuneConfig, change: dict[str, int]
) -> None:
    model = wrap(top_layers=1)
    config = dataclasses.replace(config, learning_rate=1e-3)
    expected = trained(model, examples, config)
    result = trained(model, examples, dataclasses.replace(config, **change))  # type: ignore[arg-type]
    start = trained(model, examples, dataclasses.replace(config, learning_rate=1e-12))
    assert (result - expected).norm() < 0.01 * (expected - start).norm()
    assert torch.equal(result, expected) or "gradient_checkpointing" not in change


def test_max_steps_bounds_the_epochs(adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig) -> None:
    report = finetune(adapted, examples, config=dataclasses.replace(config, max_steps=4))
    assert (report.steps, report.rows) == (4, 11 + 3)  # 11 rows make steps of 3, 4 and 4


def test_the_gradient_is_clipped(wrap: Wrap, examples: list[Example], config: FineTuneConfig) -> None:
    model = wrap(dropout=0.0)
    config = dataclasses.replace(config, max_steps=2, clip_norm=1e-12)  # below AdamW's ε = 1e-8: it hardly moves
    start = trained(model, examples, dataclasses.replace(config, learning_rate=1e-12))
    assert (trained(model, examples, config) - start).abs().max() < 1e-4
    free = dataclasses.replace(config, clip_norm=math.inf)
    assert (trained(model, examples, free) - start).abs().max() > 1e-3


def test_no_example_is_refused(adapted: AdaptedModel) -> None:
    with pytest.raises(InputError, match="no example to train on"):
        finetune(adapted, [])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be > 0, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be > 0, got nan"),
        ({"batch_size": 0}, "batch_size must be > 0, got 0"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0, got -0.1"),
        ({"memory_mb": 0}, "memory_mb must be > 0, got 0"),
    ],
)
def test_config_refuses_what_is_out_of_range(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FineTuneConfig(**values)  # type: ignore[arg-type]
