"""LoRA layers fused for training: one autograd node for y = W x + b + Σ s B A (x ∘ m).

PEFT composes the same from six nodes that each keep their input; here a layer keeps only its (dropped) input, the mask
and a rank-wide product, and adds the low-rank terms in place. The factors stay float32, and the products run in the
precision of the activations. Layers that are not plain linear (quantized ones) keep PEFT's forward with our dropout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from client.finetuning.dropout import DropoutSource

__all__ = ["trainable_layers"]


@dataclass(frozen=True, slots=True)
class _Factors:
    a: Tensor  # (rank, inputs)
    b: Tensor  # (outputs, rank)
    scale: float


class _FusedLinear(torch.autograd.Function):
    """y = W x + b + s B A (x ∘ m) + Σ_frozen s B A x, for x of shape `(tokens, inputs)`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        mask: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        frozen: Sequence[_Factors],
    ) -> Tensor:
        kept = x if dropped is None else dropped
        a, b = a.to(x.dtype), b.to(x.dtype)
        y = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
        narrow = kept @ a.t()
        y.addmm_(narrow, b.t(), alpha=scale)
        for factors in frozen:
            y.addmm_(x @ factors.a.t().to(x.dtype), factors.b.t().to(x.dtype), alpha=factors.scale)
        ctx.save_for_backward(kept, mask, weight, a, b, narrow)
        ctx.scale, ctx.frozen = scale, frozen
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, mask, weight, a, b, narrow = ctx.saved_tensors
        grad_narrow = (grad @ b).mul_(ctx.scale)
        grad_a = (grad_narrow.t() @ kept).float()
        grad_b = (grad.t() @ narrow).float().mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if mask is None:
                grad_x.addmm_(grad_narrow, a)
            else:
                grad_x.addcmul_(grad_narrow @ a, mask.to(grad.dtype))
            for factors in ctx.frozen:
                grad_x.addmm_(grad @ factors.b.to(grad.dtype), factors.a.to(grad.dtype), alpha=factors.scale)
        return grad_x, None, None, None, None, grad_a, grad_b, None, None


def _fused_forward(
    layer: LoraLinear, number: int, slot: str, frozen: Sequence[str], source: DropoutSource, x: Tensor
) -> Tensor:
    base = layer.base_layer
    weight = base.weight.t() if isinstance(base, Conv1D) else base.weight
    flat = x.reshape(-1, x.shape[-1])
    own = _factors(layer, slot)
    dropped = mask = None
    scale = own.scale
    if source.is_active:
        dropped, mask = source.drop(flat.detach(), number)
        scale /= source.keep
    others = [_factors(layer, name) for name in frozen if name in layer.lora_A]
    y: Tensor = _FusedLinear.apply(  # type: ignore[no-untyped-call]
        flat, dropped, mask, weight, base.bias, own.a, own.b, scale, others
    )
    return y.view(*x.shape[:-1], -1)


def _factors(layer: LoraLinear, slot: str) -> _Factors:
    a: Any = layer.lora_A[slot]
    b: Any = layer.lora_B[slot]
    return _Factors(a.weight, b.weight, layer.scaling[slot])


class _SeededDropout(nn.Module):
    """Stands in for a LoRA layer's dropout where the layer keeps PEFT's forward."""

    def __init__(self, source: DropoutSource, number: int) -> None:
        super().__init__()
        self.source, self.number = source, number

    def forward(self, x: Tensor) -> Tensor:
        if not self.source.is_active:
            return x
        _, kept = self.source.drop(x.detach().reshape(-1, x.shape[-1]), self.number)
        return x * (kept.to(x.dtype).view(x.shape) / self.source.keep)


@contextmanager
def trainable_layers(module: nn.Module, slot: str, frozen: Sequence[str], source: DropoutSource) -> Iterator[None]:
    """Let the module's LoRA layers train `slot`, with the slots in `frozen` active beside it, inside the block."""
    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer) and slot in layer.lora_A]
    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            if isinstance(layer, LoraLinear) and _is_plain(layer):
                layer.forward = partial(_fused_forward, layer, number, slot, frozen, source)
                stack.callback(delattr, layer, "forward")
            else:
                stack.callback(layer.lora_dropout.__setitem__, slot, layer.lora_dropout[slot])
                layer.lora_dropout[slot] = _SeededDropout(source, number)
        yield


def _is_plain(layer: LoraLinear) -> bool:
    base = layer.base_layer
    plain = type(base) in (nn.Linear, Conv1D) and type(base.weight.data) is Tensor
    return plain and not layer.lora_variant and not any(layer.lora_bias.values())
