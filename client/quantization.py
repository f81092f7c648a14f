"""Weights of the linear layers in 8 or 4 bits, through bitsandbytes.

    int8: whole numbers with one scale a row (LLM.int8(), arXiv 2208.07339)
    int4: NormalFloat-4 with one scale a block of 64 (QLoRA, arXiv 2305.14314)

The output head, the embeddings and the norms stay as they are. Adapters train in float32 on top.
"""

from __future__ import annotations

import importlib.util
from typing import Final, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from florilegium.errors import ConfigError

__all__ = ["Quantization", "plan_quantization", "protect_weights", "require_quantization"]

Quantization = Literal["int8", "int4"]

_BLOCK: Final = 64
_REPACKS: Final = "support_avx512bf16_for_cpu"


def require_quantization(quantization: Quantization) -> None:
    """Check that what quantized weights need is installed.

    Raises:
        ConfigError: it is not.
    """
    if not (importlib.util.find_spec("bitsandbytes") and importlib.util.find_spec("accelerate")):
        raise ConfigError(
            f"quantization {quantization!r} needs the libraries bitsandbytes and accelerate, which are not installed",
            'pip install "florilegium[quantization]", or leave quantization out',
        )


def plan_quantization(
    config: PreTrainedConfig, quantization: Quantization, computed: torch.dtype
) -> BitsAndBytesConfig:
    """Return what `from_pretrained` is told.

    Args:
        config: the model's.
        quantization: which.
        computed: the type that activations have.
    """
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=computed,
        llm_int8_skip_modules=_unquantized_layers(config),  # meant for 4 bits too, in spite of its name
    )


def protect_weights(module: PreTrainedModel) -> None:
    """Keep 4-bit weights from being repacked.

    On some CPUs bitsandbytes repacks them at the first inference: their scales are rounded for good, and no gradient
    passes through them any more. Adapters need both.
    """
    for layer in module.modules():
        if hasattr(layer, _REPACKS):
            setattr(layer, _REPACKS, False)


def _unquantized_layers(config: PreTrainedConfig) -> list[str]:
    """Name the output head, and the layers whose inputs are not whole blocks.

    A block that spans two rows of a weight is read back wrongly on a CPU.
    """
    with torch.device("meta"):
        module: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    head = module.get_output_embeddings()  # type: ignore[no-untyped-call]
    widths = {
        name: int(layer.in_features if isinstance(layer, nn.Linear) else layer.nx)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
    }
    return [name for name, width in widths.items() if width % _BLOCK or module.get_submodule(name) is head]
