"""The precision of the frozen weights while a slot is trained.

A copy in bfloat16 stands in for float32 weights where the processor multiplies bfloat16 natively: half the traffic, and
twice the products a second. Autocast would convert every frozen weight again in every forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from client.finetuning.config import Precision

__all__ = ["base_dtype", "resolve_precision", "weights_in"]


def base_dtype(parameters: Iterable[Tensor]) -> torch.dtype:
    """Return the type of most floating-point weights."""
    counts: dict[torch.dtype, int] = {}
    for parameter in parameters:
        if parameter.is_floating_point():
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return max(counts, key=lambda dtype: counts[dtype])


def resolve_precision(wanted: Precision, present: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the type to compute in: as asked, else bfloat16 where the weights or the processor's abilities say so."""
    if wanted != "auto":
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if present != torch.float32:
        return present
    return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def weights_in(dtype: torch.dtype, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let plain float parameters be of another type inside the block; afterwards they are as before, bitwise."""
    originals: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for parameter in parameters:
            if parameter.is_floating_point() and parameter.dtype != dtype and type(parameter.data) is Tensor:
                originals.append((parameter, parameter.data))
                parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data
