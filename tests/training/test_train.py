from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from training.corpora import Document
from training.data import Rows, plan_stage, write_stage
from training.evaluate import IGNORED, bits_per_byte, windows
from training.export import export
from training.model import model_config, new_model
from training.train import TrainConfig, Trained, load_weights, train


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, chats: list[Document]) -> Rows:
    path = tmp_path_factory.mktemp("stage") / "stage.bin"
    array, summaries = plan_stage({"chats": lambda: chats}, {"chats": 1.0}, 6000, tiny_tokenizer, seed=3)
    write_stage(path, array, summaries)
    return Rows(path, 32)


def tiny_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    config = model_config(tokenizer.get_vocab_size())
    config.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2})
    config.update({"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16})
    return new_model(config, seed=4)


def config(stage: str = "one", steps: int = 6, **changed: int) -> TrainConfig:
    return TrainConfig(stage=stage, steps=steps, row_tokens=32, micro_rows=4, warmup_steps=2, compiled=False, **changed)


def weights(model: LlamaForCausalLM) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_resumed_equals_uninterrupted(tmp_path: Path, tiny_tokenizer: Tokenizer, rows: Rows) -> None:
    whole, first, second = (tiny_model(tiny_tokenizer) for _ in range(3))
    train(whole, rows, config(decay_steps=3), tmp_path / "whole")
    stopped = train(first, rows, config(decay_steps=3), tmp_path / "parts", stop_at=2)
    assert (stopped.step, stopped.stage) == (2, "one")
    finished = train(second, rows, config(decay_steps=3), tmp_path / "parts")
    assert finished.step == 6
    assert finished.tokens == 6 * 32 * 4 * 2
    assert torch.equal(weights(whole), weights(second))


def test_a_stage_goes_on_from_the_one_before(tmp_path: Path, tiny_tokenizer: Tokenizer, rows: Rows) -> None:
    model = tiny_model(tiny_tokenizer)
    train(model, rows, config(steps=2), tmp_path)
    trained = train(model, rows, config("two", steps=3), tmp_path)
    assert trained.stages == ["one", "two"]
    assert trained.step == 3
    assert trained.tokens == 5 * 256


def test_training_lowers_the_loss(tmp_path: Path, tiny_tokenizer: Tokenizer, rows: Rows, chats: list[Document]) -> None:
    model = tiny_model(tiny_tokenizer)
    before = bits_per_byte(model, tiny_tokenizer, chats[:10], window=64)
    train(model, rows, config(steps=15), tmp_path)
    assert bits_per_byte(model, tiny_tokenizer, chats[:10], window=64) < 0.9 * before


def test_the_rate_warms_up_stays_and_decays() -> None:
    dials = TrainConfig(stage="s", steps=100, warmup_steps=10, decay_steps=20)
    assert dials.rate(0) == pytest.approx(0.1)
    assert dials.rate(50) == 1.0
    assert dials.rate(90) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="decay_steps must be between 0 and steps=5, got 6"):
        TrainConfig(stage="s", steps=5, decay_steps=6)


def test_rows_are_slices_with_targets_one_later(rows: Rows) -> None:
    inputs, targets = rows.batch(0, 3)
    assert inputs.shape == targets.shape == (3, 32)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(rows.batch(len(rows), 1)[0], rows.batch(0, 1)[0])


def test_a_stage_keeps_the_shares(tiny_tokenizer: Tokenizer, chats: list[Document]) -> None:
    array, summaries = plan_stage(
        {"a": lambda: chats[:30], "b": lambda: chats[30:]}, {"a": 3, "b": 1}, 20_000, tiny_tokenizer, seed=1
    )
    assert array.dtype == np.uint16
    assert summaries["a"].used_tokens == pytest.approx(15_000, rel=0.05)
    assert summaries["b"].used_tokens == pytest.approx(5_000, rel=0.1)


@pytest.mark.parametrize("length", [2, 7, 8, 9, 30])
def test_windows_count_every_token_once(length: int) -> None:
    ids = list(range(100, 100 + length))
    counted = []
    for inputs, targets in windows(ids, 8):
        assert len(inputs) == len(targets) <= 8
        for before, token in zip(inputs, targets, strict=True):
            if token != IGNORED:
                assert token == before + 1
                counted.append(token)
    assert counted == ids[1:]


def test_an_export_is_what_transformers_loads(tmp_path: Path, tiny_tokenizer: Tokenizer, rows: Rows) -> None:
    model = tiny_model(tiny_tokenizer)
    train(model, rows, config(steps=1), tmp_path)
    for _ in range(2):  # The second replaces the first.
        export(model, tiny_tokenizer, tmp_path / "model")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(weights(loaded), weights(model).to(torch.bfloat16))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template
    assert not list(tmp_path.glob(".model*"))
    again = tiny_model(tiny_tokenizer)
    assert isinstance(load_weights(tmp_path / "checkpoint.pt", again), Trained)
    assert torch.equal(weights(again), weights(model))
