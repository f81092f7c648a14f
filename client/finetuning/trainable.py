"""What of a slot is trained: both factors, one of them, or a small core between frozen ones.

The slot's tensors stay what the network computes with; a `Trainable` is the vector that the optimizer moves. It pulls
the slot's gradient back to that vector, and pushes the vector into the slot after each step.

    "AB"     both factors                         FedIT and most others
    "A"      A alone, B as it is                  RoLoRA's even rounds (arXiv 2502.01755)
    "B"      B alone, A as it is                  FFA-LoRA (arXiv 2403.12313)
    "core"   R of B R A, with A and B as they are Fed-SB (arXiv 2502.15436); the slot holds A and B R
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from florilegium.errors import ConfigError

if TYPE_CHECKING:
    from client.adapters import AdaptedModel

__all__ = ["Anchor", "Part", "Target", "Trainable", "trainable"]

Part: TypeAlias = Literal["AB", "A", "B", "core"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A pull towards a point: adds (weight / 2) ‖w − point‖² to the loss.

    Attributes:
        weight: μ of FedProx (arXiv 1812.06127), λ of Ditto (arXiv 2012.04221); 0 is no anchor.
        point: the slot's tensors to stay near to; None is where training starts.

    Raises:
        ConfigError: the weight is negative or not finite.
    """

    weight: float
    point: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"the anchor's weight must be finite and >= 0, got {self.weight}", "0 is no anchor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a fine-tuning moves, and beside what.

    Attributes:
        slot: the adapter.
        part: what of it; see this file's head.
        core: R of each layer, for "core".
        beside: slots that are active and frozen in the meantime; None is all others.
        anchor: what the trained values stay near to.
    """

    slot: str
    part: Part = "AB"
    core: Mapping[str, Tensor] | None = field(default=None, repr=False)
    beside: tuple[str, ...] | None = None
    anchor: Anchor | None = None


class Trainable(Protocol):
    """The vector that the optimizer moves.

    Attributes:
        values: `(size,)`, float32; moved in place.
    """

    values: Tensor

    def pull(self, gradient: Tensor) -> Tensor:
        """Return the gradient of `values`, given that of the slot's flat parameters."""
        ...

    def push(self) -> None:
        """Let the slot's parameters be what `values` say."""
        ...

    def at(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return what `values` would be if the slot held `state`."""
        ...


def trainable(model: AdaptedModel, target: Target) -> Trainable:
    """Return the trainable vector of a slot in the state it is in; for "core", the slot's B is multiplied by R.

    Raises:
        ConfigError: the part is "core" and a layer has no R.
    """
    if target.part == "AB":
        return _Whole(model, target.slot)
    if target.part == "core":
        return _Core(model, target.slot, target.core or {})
    return _Factor(model, target.slot, f".lora_{target.part}.")


class _Whole:
    def __init__(self, model: AdaptedModel, slot: str) -> None:
        self._keys = tuple(model.parameters(slot))
        self.values = model.flat(slot)

    def pull(self, gradient: Tensor) -> Tensor:
        return gradient

    def push(self) -> None:
        pass  # the vector is the slot's own memory

    def at(self, state: Mapping[str, Tensor]) -> Tensor:
        return _joined(self._keys, state, self.values)


class _Factor:
    def __init__(self, model: AdaptedModel, slot: str, mark: str) -> None:
        parameters = model.parameters(slot).items()
        flags = [torch.full((parameter.numel(),), mark in key) for key, parameter in parameters]
        self._keys = tuple(model.parameters(slot))
        self._flat = model.flat(slot)
        self._own = torch.cat(flags).nonzero()[:, 0].to(self._flat.device)
        self.values = self._flat[self._own]

    def pull(self, gradient: Tensor) -> Tensor:
        return gradient[self._own]

    def push(self) -> None:
        self._flat[self._own] = self.values

    def at(self, state: Mapping[str, Tensor]) -> Tensor:
        return _joined(self._keys, state, self._flat)[self._own]


class _Core:
    def __init__(self, model: AdaptedModel, slot: str, core: Mapping[str, Tensor]) -> None:
        parameters = model.parameters(slot)
        self._wide: list[tuple[nn.Parameter, Tensor, Tensor, slice]] = []  # B R, B, R, where B R lies in the slot
        cores, start, size = [], 0, 0
        for key, parameter in parameters.items():
            if ".lora_B." in key:
                layer = key.split(".lora_B.")[0]
                if layer not in core:
                    raise ConfigError(f"the layer {layer!r} has no core", "give an R of (rank, rank) for every layer")
                cores.append(core[layer].reshape(-1).float())
                size += parameter.shape[1] ** 2
            start += parameter.numel()
        self.values = torch.cat(cores).to(model.flat(slot).device)
        at = start = 0
        for key, parameter in parameters.items():
            end = start + parameter.numel()
            if ".lora_B." in key:
                rank = parameter.shape[1]
                r = self.values[at : at + rank * rank].view(rank, rank)
                self._wide.append((parameter, parameter.detach().clone(), r, slice(start, end)))
                at += rank * rank
            start = end
        self.push()

    def pull(self, gradient: Tensor) -> Tensor:
        # d(B R) reaches R as Bᵀ dL/d(B R)
        return torch.cat([(b.t() @ gradient[where].view_as(b)).reshape(-1) for _, b, _, where in self._wide])

    @torch.no_grad()
    def push(self) -> None:
        for parameter, b, r, _ in self._wide:
            parameter.copy_(b @ r)

    def at(self, state: Mapping[str, Tensor]) -> Tensor:
        raise ConfigError("a core has no other point to be anchored at", "anchor it where training starts")


def _joined(keys: Sequence[str], state: Mapping[str, Tensor], like: Tensor) -> Tensor:
    return torch.cat([state[key].reshape(-1) for key in keys]).to(like)
