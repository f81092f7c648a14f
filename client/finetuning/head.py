"""The loss, with the vocabulary projected only where a token is supervised, and a few rows at a time.

For a chunk of supervised positions the logits, their softmax and the gradient of the hidden states are computed in the
forward pass and the logits are dropped at once: never more than `chunk × vocabulary` of them exist, and each is
computed once. The output head must be frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from client.head import Head

__all__ = ["weighted_nll"]

_MULTIPLE = 32


class _WeightedNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, weights: Tensor, head: Head, chunk: int
    ) -> tuple[Tensor, Tensor]:
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = torch.empty(len(targets), device=hidden.device)
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            part_grad = _chunk(hidden[part], targets[part], weights[part], head, losses[part], grad is not None)
            if grad is not None and part_grad is not None:
                grad[part] = part_grad
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(losses)
        return losses @ weights, losses

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad.mul_(grad_loss.to(grad.dtype)), None, None, None, None


def _chunk(
    hidden: Tensor, targets: Tensor, weights: Tensor, head: Head, losses: Tensor, needs_grad: bool
) -> Tensor | None:
    leaf = hidden.detach().requires_grad_(needs_grad)
    with torch.set_grad_enabled(needs_grad):
        logits = head(leaf)
    scores, column = logits.detach(), targets[:, None]
    slope = torch.softmax(scores, -1, dtype=torch.float32)
    # The greatest share is never below 1 / vocabulary: its logarithm says exactly how far the sum is above the top.
    torch.sub(scores.amax(1).float(), scores.gather(1, column)[:, 0], out=losses).sub_(slope.amax(1).log_())
    if not needs_grad:
        return None
    slope.scatter_add_(1, column, slope.new_full((1, 1), -1.0).expand(len(targets), 1))
    return torch.autograd.grad(logits, leaf, slope.to(logits.dtype))[0].mul_(weights[:, None])


def weighted_nll(hidden: Tensor, targets: Tensor, weights: Tensor, head: Head, *, chunk: int) -> tuple[Tensor, Tensor]:
    """Return Σ w · nll, differentiable in `hidden` once, and each token's nll.

    Args:
        hidden: `(scored, hidden)`, final states of the positions whose next token is supervised.
        targets: `(scored,)`, those tokens.
        weights: `(scored,)` float32.
        head: from hidden states to logits.
        chunk: rows whose logits exist at one time.

    Returns:
        A scalar, and `(scored,)` float32 in nats.
    """
    filling = -len(targets) % _MULTIPLE if hidden.dtype == torch.bfloat16 else 0
    if filling:  # each new shape of a bfloat16 product costs time and memory; see `Network.rounds`
        hidden, targets, weights = (_filled(tensor, filling) for tensor in (hidden, targets, weights))
    loss, losses = _WeightedNll.apply(  # type: ignore[no-untyped-call]
        hidden, targets, weights, head, chunk
    )
    return loss, losses[: len(losses) - filling]


def _filled(tensor: Tensor, rows: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(rows, *tensor.shape[1:])])
