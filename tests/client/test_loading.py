from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BartConfig, CLIPConfig, PreTrainedModel, PreTrainedTokenizerFast, T5Config
from transformers.utils import logging as transformers_logging

from client import loading
from client.loading import load_parts, locate
from client.model import load_model
from florilegium.errors import ConfigError, ModelError

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path, tiny_model_folder: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def refusal(source: object) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(source))
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    return message


@pytest.mark.parametrize("name", ["/no/such/folder", "./here", "~/there", "a/b/c", "..\\model", "", "  "])
def test_a_missing_folder_is_named(name: str) -> None:
    assert refusal(name).startswith(f"there is no model folder {name!r}; ")


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


@pytest.mark.parametrize(
    "config", ["{", "{}", '{"model_type": "unheard"}', '{"auto_map": {"AutoConfig": "a.B"}}', "[]"]
)
def test_an_unknown_config_is_refused(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    assert "describes none that Transformers knows" in refusal(folder)


def test_weights_cut_short_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        weights.write_bytes(whole[:length])
        assert "the weights of model" in refusal(folder)
    weights.unlink()
    assert "the weights of model" in refusal(folder)


def test_a_missing_tensor_is_named_rather_than_drawn_at_random(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "lack 1 tensors, such as 'model.norm.weight'" in refusal(folder)


def test_a_tensor_of_another_shape_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    assert "the weights of model" in refusal(folder)


@pytest.mark.parametrize("kind", [T5Config, BartConfig])
def test_an_encoder_decoder_is_refused(folder: Path, kind: type[T5Config | BartConfig]) -> None:
    kind().save_pretrained(folder)
    assert "is an encoder-decoder" in refusal(folder)


def test_a_model_that_writes_no_text_is_refused(folder: Path) -> None:
    CLIPConfig().save_pretrained(folder)
    assert "the weights of model" in refusal(folder)


def test_a_missing_tokenizer_is_refused(folder: Path) -> None:
    for part in folder.glob("*token*"):
        part.unlink()
    assert "the tokenizer of model" in refusal(folder)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model", "bad name?"])
def test_a_hub_name_without_the_network_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "the Hugging Face Hub does not give it" in refusal(name)


def test_a_model_downloaded_before_needs_no_network(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = {"someone/tiny": str(tiny_model_folder / "config.json")}
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda name, _file: found.get(name))
    module, _ = load_parts("someone/tiny", "auto", None, CPU)
    assert module.config.hidden_size == 32
    found["someone/tiny"] = str(tmp_path / "config.json")  # a download that stopped before the weights came
    assert "the Hugging Face Hub does not give it" in refusal("someone/tiny")


def test_seedling_is_where_the_environment_says(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLORILEGIUM_SEEDLING", str(tiny_model_folder))
    assert locate("seedling") == str(tiny_model_folder)
    monkeypatch.setenv("FLORILEGIUM_SEEDLING", str(tiny_model_folder / "none"))
    assert "FLORILEGIUM_SEEDLING" in refusal("seedling")


def test_an_installed_seedling_lies_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLORILEGIUM_SEEDLING", raising=False)
    monkeypatch.setattr(loading, "_folder", lambda name, _remedy: name)
    assert Path(locate("seedling")) == Path(loading.__file__).parents[1] / "florilegium" / "seedling"


def test_the_model_is_frozen_and_nothing_global_changes(
    tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    module, tokenizer = load_parts(str(tiny_model_folder), "auto", None, CPU)
    after = (
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    assert before == after
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_without_padding_pads_with_its_end(folder: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    described = folder / "tokenizer_config.json"
    config = json.loads(described.read_text())
    del config["pad_token"]
    described.write_text(json.dumps(config))
    _, tokenizer = load_parts(str(folder), "auto", None, CPU)
    assert tokenizer.pad_token == tiny_tokenizer.eos_token


def test_dtype(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(dtype: loading.DType) -> torch.dtype:
        return load_parts(str(tiny_model_folder), dtype, None, CPU)[0].dtype

    assert loaded("auto") == loaded("float32") == torch.float32
    assert loaded("bfloat16") == torch.bfloat16
    monkeypatch.setattr(loading, "_FLOAT32_LIMIT_BYTES", 1000)  # as if the model were large
    assert loaded("auto") == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"dtype": "fp16"}, "dtype must be one of 'auto', 'float32', 'bfloat16', got 'fp16'"),
        ({"quantization": "int2"}, "quantization must be one of None, 'int8', 'int4', got 'int2'"),
        ({"device": "abacus"}, "device 'abacus' is not there"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_model_folder: Path, settings: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_model(str(tiny_model_folder), **settings)  # type: ignore[arg-type]


def test_a_model_is_loaded_once(tiny_model_folder: Path) -> None:
    first = load_model(str(tiny_model_folder), device="cpu")
    assert load_model(str(tiny_model_folder), device="cpu") is first
    assert load_model(str(tiny_model_folder), device="cpu", dtype="bfloat16") is not first


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "mistral", "qwen2"])
def test_other_architectures_answer(
    architecture: str,
    tmp_path: Path,
    random_module: Callable[[str], PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    random_module(architecture).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device="cpu")
    assert (model.hidden_size, model.context_length) == (32, 256)
    (answer,) = model.respond(["What should I cook?"], max_new_tokens=5)
    assert answer.embedding is not None
    assert answer.embedding.vector.shape == (32,)
