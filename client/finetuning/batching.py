"""Batches as a pure function of the set of examples.

Epoch e visits the examples in the order of derive_id(seed, "order", e, example_id), so neither insertion order nor a
neighbour that came and went can be seen in the result. The order is cut into steps of nearly equal size, and each step
into micro-batches that are packed end to end in one row: no padding is computed, whatever the lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from client.dialogue import Example, derive_id, derive_seed
from florilegium.errors import InputError

__all__ = [
    "Batch",
    "Pack",
    "Row",
    "RowMaker",
    "epoch_batches",
    "make_rows",
    "micro_batches",
    "pack",
    "rounded",
    "steps_per_epoch",
]


class RowMaker(Protocol):
    """What turns text into tokens; a `BaseModel` and an `AdaptedModel` do."""

    def example_ids(self, question: str, response: str) -> tuple[list[int], int]:
        """Return a training row's tokens and its number of unsupervised leading ones."""


@dataclass(frozen=True, slots=True)
class Row:
    """A tokenized example.

    Attributes:
        example_id: of the example.
        ids: tokens; the last one is only ever a target.
        start: index of the first supervised token, at least 1.
    """

    example_id: str
    ids: tuple[int, ...] = field(repr=False)
    start: int

    @property
    def length(self) -> int:
        """Tokens fed to the model."""
        return len(self.ids) - 1

    @property
    def scored(self) -> int:
        """Tokens supervised."""
        return len(self.ids) - self.start


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one optimizer step, in order."""

    epoch: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows laid end to end.

    Attributes:
        rows: what is in it.
        input_ids: `(1, tokens)`.
        position_ids: `(1, tokens)`; they start anew with each row.
        lengths: tokens of each row; those that only round the shape up come last, as a row of their own.
        scored: `(scored,)`, positions whose next token is supervised.
        targets: `(scored,)`, those next tokens.
        owners: `(scored,)`, index of the row each of them belongs to.
    """

    rows: tuple[Row, ...]
    input_ids: Tensor
    position_ids: Tensor
    lengths: tuple[int, ...]
    scored: Tensor
    targets: Tensor
    owners: Tensor

    def token_weights(self, batch: Batch, normalization: Literal["example", "token"]) -> Tensor:
        """Return each scored token's share in the batch's loss, `(scored,)` float32."""
        if normalization == "token":
            share = [1.0 / sum(row.scored for row in batch.rows)] * len(self.rows)
        else:
            share = [1.0 / (len(batch.rows) * row.scored) for row in self.rows]
        return torch.tensor(share, device=self.owners.device)[self.owners]

    def seeds(self, seed: int, epoch: int) -> list[int]:
        """Return one dropout seed for each length; a row's depends on (seed, epoch, example) alone."""
        own = [derive_seed(seed, "dropout", epoch, row.example_id) for row in self.rows]
        return own + [0] * (len(self.lengths) - len(own))


def make_rows(model: RowMaker, examples: Sequence[Example]) -> tuple[Row, ...]:
    """Tokenize the examples; the result is sorted by identifier.

    Raises:
        InputError: there are none, two share an identifier, or one has nothing to supervise.
    """
    rows = sorted((_make_row(model, example) for example in examples), key=lambda row: row.example_id)
    if not rows:
        raise InputError("there is no example to train on", "annotate some dialogues first")
    for row, following in pairwise(rows):
        if row.example_id == following.example_id:
            raise InputError(f"two examples share the identifier {row.example_id}", "give each its own")
    return tuple(rows)


def _make_row(model: RowMaker, example: Example) -> Row:
    ids, prompt = model.example_ids(example.question, example.response)
    row = Row(example_id=example.example_id, ids=tuple(ids), start=max(prompt, 1))
    if row.scored < 1:
        raise InputError(f"example {example.example_id} has no supervised token", "give it a response")
    return row


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return how many steps visit all rows once."""
    return math.ceil(rows / batch_size)


def epoch_batches(rows: Sequence[Row], *, seed: int, epoch: int, batch_size: int) -> list[Batch]:
    """Order the rows for one epoch and cut them into steps whose sizes differ by one at most."""
    ordered = sorted(rows, key=lambda row: derive_id(seed, "order", epoch, row.example_id))
    steps = steps_per_epoch(len(rows), batch_size)
    cuts = [len(rows) * step // steps for step in range(steps + 1)]
    return [Batch(epoch, tuple(ordered[start:end])) for start, end in pairwise(cuts)]


def micro_batches(rows: Sequence[Row], *, max_tokens: int, packing: bool = True) -> list[tuple[Row, ...]]:
    """Cut a step's rows into runs of similar size and at most `max_tokens` tokens, or one row where it has more.

    Without `packing` (an architecture that cannot keep packed rows apart) each row stands alone.
    """
    total = sum(row.length for row in rows)
    fair = total / math.ceil(total / max_tokens)
    runs: list[list[Row]] = []
    size = 0
    for row in rows:
        fits = size + row.length <= max_tokens and size + row.length / 2 <= fair
        if not (runs and packing and fits):
            runs.append([])
            size = 0
        runs[-1].append(row)
        size += row.length
    return [tuple(run) for run in runs]


def rounded(tokens: int) -> int:
    """Round a count up to one of few: a multiple of 32, and of an eighth of the power of two below it."""
    step = max(32, 1 << max(0, tokens.bit_length() - 4))
    return -(-tokens // step) * step


def pack(rows: Sequence[Row], device: torch.device, *, rounding: bool = False) -> Pack:
    """Lay rows end to end; with `rounding`, fill up with tokens that are not scored to one of few sizes."""
    inputs: list[int] = []
    positions: list[int] = []
    scored: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for index, row in enumerate(rows):
        scored.extend(range(len(inputs) + row.start - 1, len(inputs) + row.length))
        inputs.extend(row.ids[:-1])
        positions.extend(range(row.length))
        targets.extend(row.ids[row.start :])
        owners.extend([index] * row.scored)

    filling = rounded(len(inputs)) - len(inputs) if rounding else 0
    inputs.extend([0] * filling)
    positions.extend(range(filling))

    def tensor(values: list[int]) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=np.int64)).to(device)  # five times as fast as from the list

    return Pack(
        rows=tuple(rows),
        input_ids=tensor(inputs)[None],
        position_ids=tensor(positions)[None],
        lengths=(*(row.length for row in rows), *([filling] if filling else [])),
        scored=tensor(scored),
        targets=tensor(targets),
        owners=tensor(owners),
    )
