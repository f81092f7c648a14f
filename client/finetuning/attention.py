"""Attention over rows packed end to end: each row sees itself alone, and no mask is built.

The linear layers of a packed batch need no padding; only attention must know where a row begins. This function is
handed to transformers as an attention implementation, with the rows' lengths as the argument `segments`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
    lengths = list(segments)
    parts = zip(*(torch.split(tensor, lengths, 2) for tensor in (query, key, value)), strict=True)
    outputs = [_attend(q, k, v, scaling, sliding_window, softcap) for q, k, v in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None, softcap: float | None) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    if softcap is not None:
        return _softcapped(q, k, v, scale, window, softcap)
    if window is None or q.shape[2] <= window:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    visible = _visible(q.shape[2], window, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=grouped)


def _softcapped(q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None, softcap: float) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~_visible(q.shape[2], window, q.device), -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def _visible(length: int, window: int | None, device: torch.device) -> Tensor:
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril_()
    return causal if window is None else causal.triu_(1 - window)


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
