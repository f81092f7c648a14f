"""TrunkCache: what enters the first trained layer, computed once for each example.

With adapters on the top layers only, nothing below them changes while they are trained, frozen adapters included. So
each example's hidden states there are kept, as far as the bound allows; the others are computed again when they are
needed. Dropout acts above and is fresh at each visit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from client.finetuning.batching import Pack, Row, micro_batches
from client.finetuning.network import Network

__all__ = ["TrunkCache"]


class TrunkCache:
    """Hidden states of rows, `(tokens, hidden)` each.

    Args:
        network: what computes them.
        rows: all rows of the training, in an order that depends on nothing else.
        max_bytes: bound on what is kept.
        micro_tokens: tokens computed at once.
    """

    def __init__(self, network: Network, rows: Sequence[Row], *, max_bytes: int, micro_tokens: int) -> None:
        self._network = network
        self._states: dict[str, Tensor] = {}
        room = max_bytes
        kept: list[Row] = []
        for row in rows:
            room -= row.length * network.width * network.dtype.itemsize
            if room < 0:
                break
            kept.append(row)
        for run in micro_batches(kept, max_tokens=micro_tokens, packing=network.packs):
            self._states |= self._compute(run)

    def __len__(self) -> int:
        """Return how many rows are kept."""
        return len(self._states)

    def entering(self, packed: Pack) -> Tensor:
        """Return the hidden states of the packed rows, `(tokens, hidden)`."""
        missing = [row for row in packed.rows if row.example_id not in self._states]
        known = self._states | self._compute(missing) if missing else self._states
        states = [known[row.example_id] for row in packed.rows]
        filling = packed.input_ids.shape[1] - sum(row.length for row in packed.rows)
        return torch.cat([*states, states[0].new_zeros(filling, self._network.width)])

    def _compute(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        packed = self._network.pack(rows)
        states = torch.split(self._network.trunk(packed), list(packed.lengths))
        return {row.example_id: state for row, state in zip(rows, states, strict=False)}
