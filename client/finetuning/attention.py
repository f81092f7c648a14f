"""Attention over rows packed end to end: each row sees itself alone, and no token-by-token mask of the pack is built.

The linear layers of a packed batch need no padding; only attention must know where a row begins. Rows of similar length
are laid side by side for it, and plain matrix products with the weights kept for the backward pass do the work: on a
processor, for rows this short, they are several times faster than the fused kernel's backward. Longer rows go through
that kernel one by one, which needs no memory for weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

__all__ = ["Segments", "packed_attention", "segment_attention", "segments_of"]

_NAME = "florilegium_segments"
_LONGEST = 256  # tokens of a row that is laid beside others
_SIMILAR = 0.6  # shortest of a group, as a share of its longest: at most 1/0.6² of the scores are padding


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows laid side by side.

    Attributes:
        shape: rows and width.
        gather: `(rows · width,)`, the pack's token at each place (any token where there is only padding).
        padding: places that hold padding.
    """

    shape: tuple[int, int]
    gather: Tensor
    padding: Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """How the rows of a pack are laid out for attention.

    Attributes:
        lengths: tokens of each row, in the pack's order.
        groups: rows side by side; none if a row is too long for it.
        scatter: `(tokens,)`, the place of each of the pack's tokens in the groups one after another.
    """

    lengths: tuple[int, ...]
    groups: tuple[_Group, ...]
    scatter: Tensor


def segments_of(lengths: Sequence[int], device: torch.device) -> Segments:
    """Lay out rows of these lengths."""
    starts = [sum(lengths[:row]) for row in range(len(lengths))]
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    scatter = [0] * sum(lengths)
    groups: list[_Group] = []
    place = 0
    while order and lengths[order[0]] <= _LONGEST:
        width = lengths[order[0]]
        rows = [row for row in order if lengths[row] >= _SIMILAR * width]
        order = order[len(rows) :]
        gather, padding = [0] * (len(rows) * width), []
        for index, row in enumerate(rows):
            for offset in range(width):
                if offset < lengths[row]:
                    gather[index * width + offset] = starts[row] + offset
                    scatter[starts[row] + offset] = place + index * width + offset
                else:
                    padding.append(index * width + offset)
        place += len(rows) * width
        tensors = (torch.tensor(places, dtype=torch.long, device=device) for places in (gather, padding))
        groups.append(_Group((len(rows), width), *tensors))
    return Segments(tuple(lengths), () if order else tuple(groups), torch.tensor(scatter, device=device))


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
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
        segments: the packed rows.
        scaling: factor on the scores; 1/√width if None.
        sliding_window: how many tokens back a token sees; None: all.
        softcap: bound on the scores (Gemma 2); None: none.

    Returns:
        `(1, tokens, heads, width)`, and no weights.
    """
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    if softcap is None and segments.groups:
        output: Tensor = _GroupedAttention.apply(  # type: ignore[no-untyped-call]
            query[0], key[0], value[0], segments, scale, sliding_window
        )
        return output.transpose(0, 1)[None], None
    lengths = list(segments.lengths)
    parts = zip(*(torch.split(tensor, lengths, 2) for tensor in (query, key, value)), strict=True)
    outputs = [_attend(q, k, v, scale, sliding_window, softcap) for q, k, v in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


class _GroupedAttention(torch.autograd.Function):
    """softmax(s Q Kᵀ + mask) V for each group; `(heads, tokens, width)` in and out."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None
    ) -> Tensor:
        repeats = query.shape[0] // key.shape[0]
        outputs, kept = [], []
        for group in segments.groups:
            q, k, v = _lay(query, group, 1), _lay(key, group, repeats), _lay(value, group, repeats)
            mask = _hidden(group.shape[1], window, query)
            weights = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
            outputs.append((weights @ v).view(query.shape[0], -1, v.shape[2]))
            kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.segments, ctx.scale = segments, scale
        return torch.cat(outputs, 1).index_select(1, segments.scatter)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        repeats = query.shape[0] // key.shape[0]
        parts: tuple[list[Tensor], ...] = ([], [], [])
        for group, weights in zip(ctx.segments.groups, kept, strict=True):
            q, k, v = _lay(query, group, 1), _lay(key, group, repeats), _lay(value, group, repeats)
            g = _lay(grad, group, 1, empty_padding=True)
            slope = torch._softmax_backward_data(g @ v.transpose(1, 2), weights, -1, weights.dtype).mul_(ctx.scale)
            parts[0].append((slope @ k).view(query.shape[0], -1, q.shape[2]))
            parts[1].append(_sum_repeats(slope.transpose(1, 2) @ q, query.shape[0], key.shape[0]))
            parts[2].append(_sum_repeats(weights.transpose(1, 2) @ g, query.shape[0], value.shape[0]))
        grads = [torch.cat(part, 1).index_select(1, ctx.segments.scatter) for part in parts]
        return (*grads, None, None, None)


def _lay(tensor: Tensor, group: _Group, repeats: int, *, empty_padding: bool = False) -> Tensor:
    """Lay `(heads, tokens, width)` out as `(heads · repeats · rows, row width, width)`."""
    laid = tensor.index_select(1, group.gather)
    if empty_padding:
        laid.index_fill_(1, group.padding, 0.0)
    if repeats > 1:
        laid = laid.repeat_interleave(repeats, 0)
    return laid.view(-1, group.shape[1], tensor.shape[2])


def _sum_repeats(tensor: Tensor, query_heads: int, heads: int) -> Tensor:
    """Add up what the query heads of each key head gave: `(query heads · rows, …)` to `(heads, places, width)`."""
    return tensor.view(heads, query_heads // heads, -1, tensor.shape[2]).sum(1)


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
