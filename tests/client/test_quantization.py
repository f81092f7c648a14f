from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, LoraModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from client.model import BaseModel, load_model
from client.quantization import Quantization
from florilegium.errors import ConfigError

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

IDS = torch.tensor([[1, *range(40, 70)], [1, *range(90, 120)]])
Quantized = Callable[[str, Quantization], BaseModel]


@pytest.fixture(scope="module")
def whole(random_module: Callable[[str], PreTrainedModel]) -> Callable[[str], PreTrainedModel]:
    """Return a function that makes a random model of hidden size 64, whose rows are whole blocks."""

    def build(architecture: str) -> PreTrainedModel:
        config = copy.deepcopy(random_module(architecture).config)
        config.hidden_size, config.head_dim = 64, 16
        with torch.random.fork_rng():
            torch.manual_seed(13)
            module: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        module.requires_grad_(requires_grad=False).eval()  # type: ignore[no-untyped-call]
        return module

    return build


@pytest.fixture(scope="module")
def quantized(
    tmp_path_factory: pytest.TempPathFactory,
    whole: Callable[[str], PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Quantized:
    """Return a function that loads such a model quantized, each time anew."""
    folders: dict[str, Path] = {}

    def load(architecture: str, quantization: Quantization) -> BaseModel:
        if architecture not in folders:
            folders[architecture] = tmp_path_factory.mktemp(architecture)
            whole(architecture).save_pretrained(folders[architecture])
            tiny_tokenizer.save_pretrained(folders[architecture])
        return copy.deepcopy(load_model(str(folders[architecture]), quantization=quantization, device="cpu"))

    return load


def quantized_layers(module: PreTrainedModel) -> dict[str, nn.Module]:
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


def weight_of(layer: nn.Module) -> Tensor:
    """Return a quantized layer's weight as the float matrix it stands for, (outputs, inputs)."""
    stored: Any = layer.get_parameter("weight")  # a kind of its own, with the scales
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        return torch.as_tensor(bitsandbytes.functional.dequantize_4bit(stored.data, stored.quant_state))
    return torch.as_tensor(stored.data).float() * torch.as_tensor(stored.SCB)[:, None] / 127


def as_floats(module: PreTrainedModel, like: PreTrainedModel) -> PreTrainedModel:
    """Return `like` with the weights that the quantized `module` stands for."""
    for name, layer in quantized_layers(module).items():
        target = like.get_submodule(name)
        weight = weight_of(layer)
        target.weight.data = weight.T.contiguous() if isinstance(target, Conv1D) else weight
    return like


def gradients(module: PreTrainedModel) -> dict[str, Tensor]:
    """Inject adapters with fixed numbers and return their gradients for one batch."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        config.fan_in_fan_out = any(isinstance(layer, Conv1D) for layer in module.modules())
        LoraModel(module, config, "personal")
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    for number, parameter in enumerate(trained.values()):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1
    module(IDS, labels=IDS).loss.backward()
    return {name: parameter.grad for name, parameter in trained.items() if parameter.grad is not None}


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize(("quantization", "bits", "error"), [("int8", 8, 0.01), ("int4", 4, 0.12)])
def test_weights_shrink_and_stay_near(
    quantized: Quantized,
    whole: Callable[[str], PreTrainedModel],
    architecture: str,
    quantization: Quantization,
    bits: int,
    error: float,
) -> None:
    """Normal weights lose about 0.7 % to 8 bits a row and 9 % to 4 bits a block of 64."""
    model, original = quantized(architecture, quantization), whole(architecture)
    layers = quantized_layers(model.module)
    assert len(layers) == {"gpt2": 8, "llama": 14, "qwen2": 14}[architecture]
    saved_bits = 0
    for name, layer in layers.items():
        source = original.get_submodule(name)
        weight = source.get_parameter("weight")
        expected = weight.T if isinstance(source, Conv1D) else weight
        assert float((weight_of(layer) - expected).norm() / expected.norm()) < error
        saved_bits += expected.numel() * (32 - bits)
    assert BaseModel("whole", original, model.tokenizer).weight_bytes - model.weight_bytes == saved_bits // 8


def test_a_row_that_is_no_whole_number_of_blocks_stays_as_it_is(
    whole: Callable[[str], PreTrainedModel], tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = copy.deepcopy(whole("llama").config)
    config.intermediate_size = 172
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    tiny_tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), quantization="int4", device="cpu")
    names = {name.rpartition(".")[2] for name in quantized_layers(model.module)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize(("quantization", "tolerance"), [("int8", 0.3), ("int4", 1e-3)])
def test_gradients_of_adapters_pass_through_even_after_inference(
    quantized: Quantized,
    whole: Callable[[str], PreTrainedModel],
    architecture: str,
    quantization: Quantization,
    tolerance: float,
) -> None:
    """They equal those of a float model with the same weights; 8-bit products also round the activations,
    which these sharp random models amplify; a lost gradient would be off by 1."""
    model = quantized(architecture, quantization)
    expected = gradients(as_floats(model.module, whole(architecture)))
    model.respond(["What should I cook?"], max_new_tokens=4)
    found = gradients(model.module)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < tolerance, name


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_a_batch_answers_as_its_rows_do(quantized: Quantized, architecture: str) -> None:
    model = quantized(architecture, "int4")
    prompts = [model.prompt_ids(question) for question in ("Why?", "What should I cook for dinner?", "When?")]
    together = [answer.text for answer in model.generate(prompts, max_new_tokens=8)]
    assert together == [model.generate([prompt], max_new_tokens=8)[0].text for prompt in prompts]


def test_a_missing_library_is_named(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "client.quantization.importlib.util.find_spec", lambda name: None if name == "accelerate" else find(name)
    )
    with pytest.raises(ConfigError, match=r'not installed; pip install "florilegium\[quantization\]"'):
        load_model(str(tiny_model_folder), quantization="int8", device="cpu", dtype="float32")
