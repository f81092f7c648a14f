"""Find a base model, load it frozen, and say in one line what is wrong if that fails."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from client.quantization import Quantization, plan_quantization, protect_weights, require_quantization
from florilegium.errors import ModelError

__all__ = ["SEEDLING", "DType", "load_parts", "load_skeleton", "locate"]

SEEDLING: Final = "seedling"
DType = Literal["auto", "float32", "bfloat16"]

_FLOAT32_LIMIT_BYTES: Final = 4 * 2**30
_HUB_SECONDS: Final = 10


def locate(name_or_path: str) -> str:
    """Return the folder of a model, or its Hub name.

    "seedling" is the folder that the environment variable FLORILEGIUM_SEEDLING names, or the one installed with the
    package. An existing folder is taken as it is. Everything else is a Hub name if it looks like one.

    Raises:
        ModelError: there is no such folder, or it holds no model.
    """
    if name_or_path == SEEDLING:
        return _folder(_seedling(), "set FLORILEGIUM_SEEDLING to the built-in model's folder, or install again")
    looks_local = name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1 or "\\" in name_or_path
    if looks_local or not name_or_path.strip() or Path(name_or_path).is_dir():
        return _folder(name_or_path, "give a folder with config.json, *.safetensors and tokenizer.json")
    return name_or_path


def _seedling() -> str:
    package = importlib.util.find_spec("florilegium")
    assert package is not None
    assert package.origin is not None
    return os.environ.get("FLORILEGIUM_SEEDLING") or str(Path(package.origin).parent / SEEDLING)


def _folder(name: str, remedy: str) -> str:
    folder = Path(name).expanduser()
    if not (name.strip() and folder.is_dir()):
        raise ModelError(f"there is no model folder {name!r}", remedy)
    if not (folder / "config.json").is_file():
        raise ModelError(f"the model folder {name!r} has no config.json", remedy)
    return str(folder)


def load_parts(
    source: str, dtype: DType, quantization: Quantization | None, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal model, frozen and in evaluation mode, and its tokenizer.

    Args:
        source: what `locate` returned.
        dtype: "auto" is bfloat16 on an accelerator; on a CPU float32, or bfloat16 where float32 weights would take
            more than 4 GiB.
        quantization: weights of the linear layers as integers of so many bits, or None.
        device: where the model goes.

    Raises:
        ModelError: the folder or the name holds no causal model that can be loaded whole.
        ConfigError: quantization is asked for and its library is not installed.
    """
    if quantization is not None:
        require_quantization(quantization)
    wanted = _Wanted(dtype, quantization, device)
    with _quiet():
        module, tokenizer = _load(source, wanted) if Path(source).is_dir() else _load_from_hub(source, wanted)
    if quantization is None:
        module.to(device=device, dtype=_full_dtype(dtype, module, device))  # type: ignore[call-arg]
    module.requires_grad_(requires_grad=False).eval()  # type: ignore[no-untyped-call]
    protect_weights(module)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return module, tokenizer


def load_skeleton(name_or_path: str) -> PreTrainedModel:
    """Return a model's modules without their weights, on torch's device "meta": names and shapes are known, no more.

    Raises:
        ModelError: there is no such model, or its config describes none.
    """
    with _quiet():
        config = _load_config(locate(name_or_path))
        try:
            with torch.device("meta"):
                models: Any = AutoModelForCausalLM
                module: PreTrainedModel = models.from_config(config, trust_remote_code=False)
        except Exception as error:
            raise ModelError(
                f"the config of model {name_or_path!r} makes no causal model ({_line(error)})", "use another model"
            ) from None
    return module.eval()  # type: ignore[no-untyped-call, no-any-return]


@dataclass(frozen=True, slots=True)
class _Wanted:
    dtype: DType
    quantization: Quantization | None
    device: torch.device

    def settings(self, config: PreTrainedConfig) -> dict[str, object]:
        """Return what `from_pretrained` is told; full weights come in their stored type and are cast afterwards."""
        if self.quantization is None:
            return {"dtype": "auto"}
        on_cpu = self.dtype == "auto" and self.device.type == "cpu"
        computed = torch.float32 if self.dtype == "float32" or on_cpu else torch.bfloat16
        plan = plan_quantization(config, self.quantization, computed)
        return {"dtype": computed, "quantization_config": plan, "device_map": {"": self.device}}


def _load_from_hub(name: str, wanted: _Wanted) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model of the Hub; one that was downloaded before is loaded without the network."""
    try:
        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return _load(str(Path(cached).parent), wanted)
    except (ModelError, HFValidationError):
        pass  # the download was not complete, or never began
    _require_available(name)
    return _load(name, wanted)


def _require_available(name: str) -> None:
    """Ask the Hub once, because the libraries below ask six times over half a minute before they give up."""
    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except Exception as error:  # no network, no such name, a gated or malformed one
        raise ModelError(
            f"model {name!r} is no local folder and the Hugging Face Hub does not give it ({_line(error)})",
            "check the name and the network, or download the model and give its folder",
        ) from None


def _load(source: str, wanted: _Wanted) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    config = _load_config(source)
    if config.is_encoder_decoder:
        raise ModelError(
            f"model {source!r} is an encoder-decoder ({config.model_type})", "use a decoder-only causal model"
        )
    return _load_module(source, wanted.settings(config)), _load_tokenizer(source)


def _load_config(source: str) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"the config of model {source!r} describes none that Transformers knows ({_line(error)})",
            "use another model",
        ) from None
    return config


def _load_module(source: str, settings: dict[str, object]) -> PreTrainedModel:
    module: PreTrainedModel
    report: dict[str, set[str]]
    try:
        module, report = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
            source, trust_remote_code=False, output_loading_info=True, **settings
        )
    except Exception as error:  # the libraries below raise a dozen kinds, some of them bare Exceptions
        raise ModelError(
            f"the weights of model {source!r} cannot be loaded ({_line(error)})",
            "the files may be damaged or the architecture unsupported: fetch them again or use another model",
        ) from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"the weights of model {source!r} lack {len(missing)} tensors, such as {missing[0]!r}",
            "use the checkpoint of a causal language model",
        )
    return module


def _load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"the tokenizer of model {source!r} cannot be loaded ({_line(error)})", "its folder needs a tokenizer.json"
        ) from None


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}" if text else type(error).__name__


def _full_dtype(dtype: DType, module: PreTrainedModel, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    large = 4 * sum(parameter.numel() for parameter in module.parameters()) > _FLOAT32_LIMIT_BYTES
    return torch.bfloat16 if large or device.type != "cpu" else torch.float32


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Transformers from drawing bars and printing reports while a model loads."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
