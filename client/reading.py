"""Read texts in one pass: how surprised the model is by some of their tokens, and their final hidden states.

Rows are sorted by length and padded on the right, where causal attention never looks, so no mask is needed. The output
head, the widest layer of a small model, sees only the positions whose next token is asked for, a bounded number at a
time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from client.head import output_head

__all__ = ["Reading", "Row", "device_of", "read"]

_BATCH_TOKENS: Final = 4096
_LOGITS: Final = 2**26  # 256 MiB of float32 exist at one time


@dataclass(frozen=True, slots=True)
class Row:
    """A text, and the tokens from `start` (at least 1) to before `stop` whose surprisal is asked for; may be none."""

    ids: Sequence[int] = field(repr=False)
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read.

    Attributes:
        nats: −log p of each asked token, (tokens,), float32.
        states: final hidden states of the whole row, (tokens, hidden), float32; None unless asked for.
    """

    nats: Tensor
    states: Tensor | None = None


def device_of(module: PreTrainedModel) -> torch.device:
    """Return the device that token ids must be on."""
    weight = module.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.device


@torch.inference_mode()
def read(module: PreTrainedModel, rows: Sequence[Row], *, with_states: bool = False) -> list[Reading]:
    """Read each row on its own, in batches; results are on the CPU, in the order of `rows`."""
    readings: dict[int, Reading] = {}
    for chosen in _batches(rows):
        batch = [rows[at] for at in chosen]
        readings.update(zip(chosen, _read_batch(module, batch, with_states), strict=True))
    return [readings[at] for at in range(len(rows))]


def _batches(rows: Sequence[Row]) -> Iterator[list[int]]:
    chosen: list[int] = []
    for at in sorted(range(len(rows)), key=lambda at: len(rows[at].ids)):
        if chosen and (len(chosen) + 1) * len(rows[at].ids) > _BATCH_TOKENS:
            yield chosen
            chosen = []
        chosen.append(at)
    if chosen:
        yield chosen


def _read_batch(module: PreTrainedModel, rows: Sequence[Row], with_states: bool) -> list[Reading]:
    ids = torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.long)
    asked = torch.zeros_like(ids, dtype=torch.bool)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = torch.as_tensor(row.ids)
        asked[at, row.start - 1 : row.stop - 1] = True
    device = device_of(module)
    decoder: Any = module.get_decoder()  # type: ignore[no-untyped-call]
    states: Tensor = decoder(input_ids=ids.to(device), use_cache=False).last_hidden_state
    nats = _surprisal(module, states[asked.to(device)], ids[:, 1:][asked[:, :-1]].to(device))
    split = torch.split(nats, [row.stop - row.start for row in rows])
    if not with_states:
        return [Reading(part) for part in split]
    states = states.float().cpu()
    return [Reading(part, states[at, : len(row.ids)]) for at, (row, part) in enumerate(zip(rows, split, strict=True))]


def _surprisal(module: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    head = output_head(module)
    chunk = max(1, _LOGITS // int(module.config.get_text_config().vocab_size))
    parts = zip(torch.split(states, chunk), torch.split(targets, chunk), strict=True)
    return torch.cat([F.cross_entropy(head(part).float(), goal, reduction="none") for part, goal in parts]).cpu()
