"""Attention over rows packed end to end: each row sees itself alone, and no token-by-token mask of the pack is built.

The linear layers of a packed batch need no padding; only attention must know where a row begins. On a processor the
fused kernel runs in float32 also where the activations are bfloat16: its bfloat16 backward converts block by block and
takes three times as long on rows as short as dialogues.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

__all__ = ["packed_attention", "segment_attention"]

_NAME = "florilegium_segments"


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Sequence[int],
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend causally within each segment.

    Args:
        module: the attention layer (unused; transformers hands it over).
        query: `(1, heads, tokens, width)`.
        key: `(1, key heads, tokens, width)`.
        value: like `key`.
        attention_mask: unused, there is none.
        segments: tokens of each packed row.
        scaling: factor on the scores; 1/√width if None.
        sliding_window: how many tokens back a token sees; None: all.
        softcap: bound on the scores (Gemma 2); None: none.

    Returns:
        `(1, tokens, heads, width)`, and no weights.
    """
    dtype = query.dtype
    if query.device.type == "cpu":
        query, key, value = query.float(), key.float(), value.float()
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    alike = [(length, len(list(run))) for length, run in groupby(segments)]  # rows of one length attend at once
    parts = zip(*(_batches(tensor[0], alike) for tensor in (query, key, value)), strict=True)
    outputs = [_attend(q, k, v, scale, sliding_window, softcap) for q, k, v in parts]
    return torch.cat([output.transpose(1, 2).flatten(0, 1) for output in outputs])[None].to(dtype), None


def _batches(packed: Tensor, alike: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Cut `(heads, tokens, width)` into a `(rows, heads, length, width)` for each (length, rows)."""
    parts = torch.split(packed, [length * rows for length, rows in alike], 1)
    return [
        part.view(len(part), rows, -1, part.shape[2]).transpose(0, 1)
        for part, (_, rows) in zip(parts, alike, strict=True)
    ]


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    if softcap is None and (window is None or q.shape[2] <= window):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    mask = _hidden(q.shape[2], window, q)
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = softcap * torch.tanh(q @ k.transpose(2, 3) * (scale / softcap)) + mask
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def _hidden(length: int, window: int | None, like: Tensor) -> Tensor:
    """Return −∞ where a token must not look and 0 elsewhere, `(length, length)`."""
    everything = like.new_full((length, length), -torch.inf)
    hidden = everything.triu(1)
    return hidden if window is None else hidden + everything.tril(-window)


@contextmanager
def packed_attention(module: PreTrainedModel) -> Iterator[None]:
    """Let the module attend within segments inside the block; its forward then needs `segments`."""
    AttentionInterface.register(_NAME, segment_attention)
    before = module.config._attn_implementation
    module.config._attn_implementation = _NAME
    try:
        yield
    finally:
        module.config._attn_implementation = before
