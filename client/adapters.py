"""Adapters: a shared and a personal LoRA on one frozen base.

    y = W x + Σ_slot (α/r) B_slot A_slot x

The layers are injected once (PEFT); attaching another user copies numbers into the tensors that are there already.
Outside an `active` block every adapter is off and the module computes what the bare base computes, so that embeddings
for selection never depend on what was learned. Deviations from PEFT's own switches: a slot whose B is all zeros adds
nothing and is skipped, and activating a slot never makes it trainable; only `training` does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from client.adapter_store import AdapterStore, Version
from client.dialogue import Dialogue, derive_id
from client.loading import load_skeleton
from florilegium.errors import ConfigError, InputError
from florilegium.tensors import Tensors

if TYPE_CHECKING:
    from client.model import BaseModel, Embedding, Generation, Prompt

__all__ = ["PERSONAL", "SHARED", "AdaptedModel", "AdapterConfig", "AdapterStore", "Version", "fresh_adapter"]

SHARED = "shared"
PERSONAL = "personal"
SAMPLED_VALUES = 64  # of each tensor of the base, to know it by


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """The shape of one adapter.

    Attributes:
        rank: r, the width of the two factors.
        alpha: α; the update is scaled by α/r, so the scale follows the rank.
        dropout: share of the adapter's inputs dropped in training.
        target_modules: "all-linear" (every linear layer but the output head), or names such as ("q_proj", "v_proj").
        top_layers: adapt only the highest k decoder layers; None adapts all. Enables the trunk cache of fine-tuning.

    Raises:
        ConfigError: a value is out of its range.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    top_layers: int | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank must be >= 1, got {self.rank}", "8 is a good start")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha must be > 0, got {self.alpha}", "twice the rank is a good start")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout}", "0.05 is a good start")
        if self.target_modules != "all-linear" and not self.target_modules:
            raise ConfigError("target_modules is empty", 'name modules, or say "all-linear"')
        if self.top_layers is not None and self.top_layers < 1:
            raise ConfigError(f"top_layers must be >= 1, got {self.top_layers}", "leave it out to adapt all layers")


@dataclass(frozen=True, slots=True)
class _Slot:
    config: AdapterConfig
    peft_config: LoraConfig
    parameters: dict[str, nn.Parameter]  # views of `flat`, keyed as PEFT's files key them
    flat: Tensor


class AdaptedModel:
    """A base model with adapters in named slots.

    Args:
        base: the frozen model; its module is wrapped in place until `detach`.
        config: one shape for all slots, or one for each slot's name.
        slots: the slots' names; all of them are active in `generate` and the like unless `active` says otherwise.
        seed: where the first A factors come from.

    Attributes:
        base: as given.
        base_fingerprint: names the base by its weights, whatever floating type they are held in.
        frozen: the base's own parameters.

    Raises:
        ConfigError: a config is missing, or names modules or layers that the base does not have, or the base has
            adapters already. The base is then as it was.
    """

    def __init__(
        self,
        base: BaseModel,
        config: AdapterConfig | Mapping[str, AdapterConfig] | None = None,
        *,
        slots: Sequence[str] = (SHARED, PERSONAL),
        seed: int = 0,
    ) -> None:
        self.base = base
        self._selected: tuple[str, ...] | None = None
        self._trained: str | None = None
        self._applied: tuple[list[str], str | None] | None = None
        config = config or AdapterConfig()
        configs = {slot: config if isinstance(config, AdapterConfig) else _config_of(slot, config) for slot in slots}
        if any(isinstance(part, BaseTunerLayer) for part in base.module.modules()):
            raise ConfigError(
                "the base model has adapters already",
                "close the device or detach the AdaptedModel that uses it, or take a copy.deepcopy of it before",
            )
        self.base_fingerprint = _fingerprint(base.module)
        self.frozen = tuple(base.module.parameters())
        try:
            peft_configs = {slot: _peft_config(base.module, item) for slot, item in configs.items()}
            self._tuner = _inject(base.module, peft_configs)
            self._layers = [layer for layer in base.module.modules() if isinstance(layer, BaseTunerLayer)]
            self._slots = {slot: _flatten(self._tuner, slot, item) for slot, item in configs.items()}
            for slot in slots:
                self.reset(slot, seed)
            self._apply()
        except BaseException:
            _strip(base.module)
            raise

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots' names."""
        return tuple(self._slots)

    @property
    def module(self) -> nn.Module:
        """The wrapped transformers module."""
        return self.base.module

    @property
    def worn(self) -> tuple[str, ...]:
        """The slots that an `active` block switched on and that add something."""
        return tuple(slot for slot in self._selected or () if not self.is_blank(slot))

    def config(self, slot: str) -> AdapterConfig:
        """Return the shape of `slot`."""
        return self._slot(slot).config

    def set_dropout(self, dropout: float) -> None:
        """Train all slots with another dropout from now on; nothing else changes."""
        self._slots = {
            name: replace(slot, config=replace(slot.config, dropout=dropout)) for name, slot in self._slots.items()
        }

    def fingerprint(self, slot: str) -> str:
        """Name the base and the shape of `slot`: a state made where this is the same means the same here."""
        return derive_id("adapter", self.base_fingerprint, repr(replace(self.config(slot), dropout=0.0)))

    def peft_config(self, slot: str) -> LoraConfig:
        """Return PEFT's configuration of `slot`, as `PeftModel.from_pretrained` reads it."""
        return self._slot(slot).peft_config

    def parameters(self, slot: str) -> Mapping[str, nn.Parameter]:
        """Return the slot's live parameters by PEFT's file keys; each is a view of `flat`."""
        return self._slot(slot).parameters

    def flat(self, slot: str) -> Tensor:
        """Return the memory behind all parameters of `slot`, shape `(parameters,)`, float32."""
        return self._slot(slot).flat

    def is_blank(self, slot: str) -> bool:
        """Whether the slot adds nothing, because every B is zero."""
        parameters = self._slot(slot).parameters
        return not any(bool(tensor.detach().any()) for key, tensor in parameters.items() if ".lora_B." in key)

    def state(self, slot: str) -> dict[str, Tensor]:
        """Return a copy of the slot's tensors in main memory, keyed as PEFT's files key them: no slot's name inside."""
        return {key: tensor.detach().to("cpu", copy=True) for key, tensor in self._slot(slot).parameters.items()}

    @torch.no_grad()
    def load_state(self, slot: str, state: Mapping[str, Tensor]) -> None:
        """Copy `state` into the slot, or change nothing.

        Raises:
            InputError: a key is missing or unknown, or a tensor's shape, type or values are wrong.
        """
        own = self._slot(slot)
        _require_keys(slot, own.parameters.keys(), state.keys())
        for key, parameter in own.parameters.items():
            tensor = state[key]
            if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
                found, wanted = (f"{tuple(t.shape)} {t.dtype}" for t in (tensor, parameter))
                raise InputError(f"adapter tensor {key!r} is {found}, the {slot} slot holds {wanted}", _SAME_SHAPE)
        joined = torch.cat([state[key].reshape(-1).to(own.flat.device) for key in own.parameters])
        if not bool(joined.isfinite().all()):
            key = next(key for key in own.parameters if not bool(state[key].isfinite().all()))
            raise InputError(f"adapter tensor {key!r} holds values that are not finite", "load another version")
        own.flat.copy_(joined)
        self._apply()

    @torch.no_grad()
    def reset(self, slot: str, seed: int) -> None:
        """Start the slot anew: A uniform in ±1/√inputs from a generator of its own, B zero."""
        own = self._slot(slot).parameters
        for key, tensor in _drawn({key: parameter.shape for key, parameter in own.items()}, seed).items():
            own[key].copy_(tensor)
        self._apply()

    @contextmanager
    def active(self, *slots: str) -> Iterator[None]:
        """Switch exactly `slots` on within the block (none: the bare base); blocks nest."""
        for slot in slots:
            self._slot(slot)
        with self._switched(slots, self._trained):
            yield

    @contextmanager
    def training(self, slot: str, *beside: str) -> Iterator[None]:
        """Switch exactly `slot` and `beside` on within the block, and let gradients reach `slot` and nothing else."""
        for name in (slot, *beside):
            self._slot(name)
        with self._switched((slot, *beside), slot):
            yield

    @contextmanager
    def _switched(self, slots: Sequence[str], trained: str | None) -> Iterator[None]:
        before = self._selected, self._trained
        self._selected, self._trained = tuple(slot for slot in self._slots if slot in slots), trained
        self._apply()
        try:
            yield
        finally:
            self._selected, self._trained = before
            self._apply()

    @contextmanager
    def folded(self, residual: Mapping[str, Tensor]) -> Iterator[None]:
        """Add matrices to the frozen weights within the block; afterwards they are as before, bitwise.

        Args:
            residual: by layer, keyed as the slots' tensors are without their ending, `(outputs, inputs)`.

        Raises:
            ConfigError: a layer's weights are quantized, so nothing can be added to them.
            InputError: there is no such layer, or a matrix has another shape than its weights.
        """
        originals: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for layer, matrix in residual.items():
                weight, is_transposed = self._weight(layer)
                added = matrix.t() if is_transposed else matrix
                if added.shape != weight.shape:
                    shapes = f"{tuple(matrix.shape)}, the layer's weights are {tuple(weight.shape)}"
                    raise InputError(f"the residual of {layer!r} is {shapes}", _SAME_SHAPE)
                originals.append((weight, weight.data))
                weight.data = weight.data + added.to(weight)
            yield
        finally:
            for weight, data in originals:
                weight.data = data

    def _weight(self, layer: str) -> tuple[nn.Parameter, bool]:
        """Return a layer's frozen weights, and whether they are held transposed."""
        wrapped = dict(self._tuner.named_modules()).get(layer.removeprefix("base_model."))
        if not isinstance(wrapped, BaseTunerLayer):
            raise InputError(f"there is no adapted layer {layer!r}", _SAME_SHAPE)
        base = wrapped.get_base_layer()
        weight = base.weight
        assert isinstance(weight, nn.Parameter)
        if type(weight.data) is not Tensor or not weight.is_floating_point():
            raise ConfigError(
                "the base model is quantized, and this way of sharing adds to its weights",
                "choose a rule that leaves the base as it is: fedit, ffa, rolora, fedsa, flexlora, hetlora or sketch",
            )
        return weight, isinstance(base, Conv1D)

    def detach(self) -> BaseModel:
        """Take the adapters out and return the base, bitwise as it was."""
        self._tuner.unload()
        return self.base

    def prompt_ids(
        self, question: str, *, shots: Sequence[tuple[str, str]] = (), system: str | None = None
    ) -> list[int]:
        """Return the prompt's tokens, as the base makes them."""
        return self.base.prompt_ids(question, shots=shots, system=system)

    def example_ids(self, question: str, response: str) -> tuple[list[int], int]:
        """Return a training row's tokens and its number of unsupervised leading ones, as the base makes them."""
        return self.base.example_ids(question, response)

    def generate(
        self,
        prompts: Sequence[list[int] | Prompt],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Generation]:
        """Generate with the active adapters (all slots outside an `active` block); see `BaseModel.generate`."""
        with self._serving():
            return self.base.generate(prompts, max_new_tokens=max_new_tokens, temperature=temperature, seeds=seeds)

    def respond(
        self,
        questions: Sequence[str],
        *,
        shots: Sequence[Sequence[tuple[str, str]]] | None = None,
        max_new_tokens: int = 64,
        embed: bool = True,
    ) -> list[Generation]:
        """Answer with the active adapters, as `generate` does; the embeddings are the bare base's."""
        with self._serving():
            answers = self.base.respond(questions, shots=shots, max_new_tokens=max_new_tokens, embed=False)
        if not embed:
            return answers
        pairs = zip(questions, answers, strict=True)
        embeddings = self.embed([Dialogue(question=question, response=answer.text) for question, answer in pairs])
        return [replace(answer, embedding=item) for answer, item in zip(answers, embeddings, strict=True)]

    def embed(self, dialogues: Sequence[Dialogue]) -> list[Embedding]:
        """Embed with the bare base, whatever is active."""
        with self.active():
            return self.base.embed(dialogues)

    @contextmanager
    def _serving(self) -> Iterator[None]:
        with self.active(*(self._slots if self._selected is None else self._selected)):
            yield

    def _slot(self, slot: str) -> _Slot:
        if slot not in self._slots:
            raise ConfigError(f"there is no adapter slot {slot!r}", f"the slots are: {', '.join(self._slots)}")
        return self._slots[slot]

    def _apply(self) -> None:
        names = [slot for slot in self._selected or () if slot == self._trained or not self.is_blank(slot)]
        if self._applied == (names, self._trained):
            return
        self._applied = names, self._trained
        for layer in self._layers:
            layer.enable_adapters(bool(names))
            layer.set_adapter(names, inference_mode=True)  # enabling made them trainable again
        for slot, own in self._slots.items():
            for parameter in own.parameters.values():
                parameter.requires_grad_(slot == self._trained)


def fresh_adapter(name_or_path: str, config: AdapterConfig, seed: int) -> Tensors:
    """Return what `reset` makes of a slot, without the base model's weights: its config alone is read.

    Args:
        name_or_path: the base model's, as for `load_model`.
        config: the adapter's shape.
        seed: where A comes from.

    Raises:
        ModelError: there is no such model.
        ConfigError: the shape does not fit it.
    """
    module = load_skeleton(name_or_path)
    tuner = _inject(module, {SHARED: _peft_config(module, config)})
    return _drawn({key: parameter.shape for key, parameter in _named(tuner, SHARED).items()}, seed)


def _drawn(shapes: Mapping[str, torch.Size], seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed & (2**63 - 1))
    found = {}
    for key, shape in shapes.items():
        if ".lora_A." in key:
            bound = 1.0 / math.sqrt(shape[1])
            found[key] = torch.rand(shape, generator=generator).mul_(2 * bound).sub_(bound)
        else:
            found[key] = torch.zeros(shape)
    return found


def _named(tuner: LoraModel, slot: str) -> dict[str, nn.Parameter]:
    """Return a slot's parameters by the keys of PEFT's files, which leave the slot's name out."""
    mark = f".{slot}."
    return {f"base_model.{name.replace(mark, '.')}": p for name, p in tuner.named_parameters() if mark in name}


_SAME_SHAPE = "load an adapter made for this base with the same rank, targets and layers"


def _config_of(slot: str, configs: Mapping[str, AdapterConfig]) -> AdapterConfig:
    if slot not in configs:
        raise ConfigError(f"slot {slot!r} has no adapter config", "give one config for all slots, or one for each")
    return configs[slot]


def _peft_config(module: nn.Module, config: AdapterConfig) -> LoraConfig:
    layers = None
    if config.top_layers is not None:
        depth = int(module.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        if config.top_layers > depth:
            raise ConfigError(f"top_layers is {config.top_layers}, the base has {depth} layers", f"use 1 to {depth}")
        layers = list(range(depth - config.top_layers, depth))
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank, and takes any number
        lora_dropout=config.dropout,
        target_modules=_target_names(module) if config.target_modules == "all-linear" else list(config.target_modules),
        layers_to_transform=layers,
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in module.modules()),
    )


def _target_names(module: nn.Module) -> list[str]:
    """Name every linear layer that sits in a numbered decoder layer; the output head does not."""
    linear = (name for name, part in module.named_modules() if isinstance(part, nn.Linear | Conv1D))
    return sorted({name.rpartition(".")[2] for name in linear if any(word.isdigit() for word in name.split("."))})


@torch.no_grad()
def _fingerprint(module: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in module.named_parameters():
        flat = tensor.reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLED_VALUES)].bfloat16().float()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.cpu().numpy().tobytes())
    return digest.hexdigest()


def _strip(module: nn.Module) -> None:
    """Take out whatever adapter layers there are, where there is no whole tuner that could."""
    for name, part in list(module.named_modules()):
        if isinstance(part, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, part.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config


def _inject(module: nn.Module, configs: Mapping[str, LoraConfig]) -> LoraModel:
    tuner: LoraModel | None = None
    try:
        with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator; `reset` replaces the draws
            for slot, config in configs.items():
                if tuner is None:
                    tuner = LoraModel(module, {slot: config}, slot)
                else:
                    tuner.peft_config[slot] = config
                    tuner.inject_adapter(module, slot)
    except ValueError as error:
        raise ConfigError(f"the adapter does not fit the base: {error}", "name modules that the base has") from None
    if tuner is None:
        raise ConfigError("slots is empty", "name at least one slot")
    module.eval()  # PEFT's dropout layers are born in training mode
    return tuner


def _flatten(tuner: LoraModel, slot: str, config: AdapterConfig) -> _Slot:
    named = _named(tuner, slot)
    flat = torch.cat([parameter.detach().reshape(-1).float() for parameter in named.values()])
    start = 0
    for parameter in named.values():
        end = start + parameter.numel()
        parameter.data = flat[start:end].view(parameter.shape)
        start = end
    return _Slot(config=config, peft_config=cast(LoraConfig, tuner.peft_config[slot]), parameters=named, flat=flat)


def _require_keys(slot: str, own: Iterable[str], given: Iterable[str]) -> None:
    missing, unknown = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if missing or unknown:
        which, key = ("lacks", missing[0]) if missing else ("has the unknown", unknown[0])
        count = len(missing) + len(unknown)
        raise InputError(f"the state for slot {slot!r} {which} tensor {key!r} ({count} keys differ)", _SAME_SHAPE)
