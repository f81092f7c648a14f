"""LoRA dropout whose masks depend on (seed, epoch, example, layer) and on nothing else.

A mask is drawn from a generator seeded for its row and layer, so it is the same whoever shares the batch, however the
batch is cut, in a resumed run, and when a checkpointed layer is computed again; no generator state needs saving.
Layers that read the very same tensor (query, key and value, say) drop the same entries of it, as they would if they
were one fused layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["DropoutSource"]

_RESOLUTION = 1 << 16  # a mask compares 16 random bits an entry


class DropoutSource:
    """Draws the masks of the batch at hand.

    Args:
        rate: share of entries dropped, to 1/65536.
    """

    def __init__(self, rate: float) -> None:
        self._threshold = round(rate * _RESOLUTION)
        self.keep = 1.0 - self._threshold / _RESOLUTION
        self._rows: list[tuple[int, int]] = []
        self._last: tuple[Tensor, Tensor, Tensor] | None = None  # input, dropped, mask
        self._generator = torch.Generator()

    def begin(self, seeds: Sequence[int], lengths: Sequence[int]) -> None:
        """Start a packed batch of rows with these seeds and lengths; no seeds: nothing is dropped."""
        self._rows = list(zip(seeds, lengths, strict=True)) if self._threshold else []
        self._last = None

    @property
    def is_active(self) -> bool:
        """Whether entries are dropped now."""
        return bool(self._rows)

    @torch.no_grad()
    def drop(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return x with entries set to zero (not rescaled: divide by `keep`), and the mask of kept entries, bool.

        Args:
            x: `(tokens, inputs)`.
            layer: the layer's number.
        """
        if self._last is None or self._last[0].data_ptr() != x.data_ptr() or self._last[0].shape != x.shape:
            kept = self.mask(x.shape[1], layer).to(x.device)
            self._last = (x, x * kept.to(x.dtype), kept)
        return self._last[1], self._last[2]

    def mask(self, width: int, layer: int) -> Tensor:
        """Return the mask of kept entries, `(tokens, width)` bool."""
        kept = torch.empty(sum(length for _, length in self._rows), width, dtype=torch.bool)
        start = 0
        for seed, length in self._rows:
            self._generator.manual_seed(_mix(seed, layer))
            size = length * width
            bits = torch.empty((size + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=self._generator)
            entries = bits.view(torch.int16)[:size].view(length, width)
            torch.ge(entries, self._threshold - _RESOLUTION // 2, out=kept[start : start + length])
            start += length
        return kept

    def forget_input(self) -> None:
        """Let go of the last tensor, which is kept for the layers that read the same one."""
        self._last = None


def _mix(seed: int, layer: int) -> int:
    """Scramble (seed, layer) into 63 bits (the finalizer of SplitMix64; the generator reads the low 32)."""
    value = (seed + (layer + 1) * 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return (value ^ (value >> 31)) >> 1
