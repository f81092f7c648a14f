"""Plan: how the work is cut so that it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the memory budget decides.

    Attributes:
        micro_tokens: tokens that go through the model at once (a longer row goes alone).
        head_rows: supervised tokens whose logits exist at once.
        recompute: whether activations are recomputed in the backward pass.
        cache_bytes: bound on the trunk cache; 0: none.
        peak_bytes: the most memory this is expected to take.
    """

    micro_tokens: int
    head_rows: int
    recompute: bool
    cache_bytes: int
    peak_bytes: int = 0

    @classmethod
    def of_checkpoint(cls, notes: Mapping[str, Any]) -> Self:
        """Return the plan that a checkpoint was made under: under it the arithmetic is the same to the last bit."""
        return cls(
            micro_tokens=int(notes["micro_tokens"]),
            head_rows=int(notes["head_rows"]),
            recompute=bool(notes["recompute"]),
            cache_bytes=int(notes["cache_bytes"]),
        )
