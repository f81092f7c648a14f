"""Turn sources of documents into one memory-mapped array of tokens per training stage.

A stage is planned once: every source gets a share of the tokens, its documents are repeated in whole shuffled epochs
until the share is full, everything is shuffled together and written end to end as uint16. A row of the batch is then
a slice, and the position in the data is one number: the step.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from training.corpora import Document
from training.tokenizer import encode

Tokens: TypeAlias = npt.NDArray[np.uint16]
ENCODE_BATCH: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSummary:
    """What one source gives to a stage."""

    share: float
    documents: int
    unique_tokens: int
    used_tokens: int

    @property
    def epochs(self) -> float:
        """How many times the source is read."""
        return self.used_tokens / max(self.unique_tokens, 1)


def encode_all(tokenizer: Tokenizer, documents: Iterable[Document]) -> list[Tokens]:
    """Encode documents, each to an array of its own."""
    listed = list(documents)
    arrays: list[Tokens] = []
    for start in range(0, len(listed), ENCODE_BATCH):
        batch = encode(tokenizer, listed[start : start + ENCODE_BATCH])
        arrays.extend(np.asarray(ids, dtype=np.uint16) for ids in batch)
    return arrays


def fill_share(arrays: list[Tokens], quota: int, rng: random.Random) -> list[Tokens]:
    """Draw documents epoch by epoch, each epoch in a new order, until `quota` tokens are reached."""
    chosen: list[Tokens] = []
    left = quota
    while left > 0 and arrays:
        for index in rng.sample(range(len(arrays)), len(arrays)):
            if left <= 0:
                break
            chosen.append(arrays[index])
            left -= len(arrays[index])
    return chosen


def plan_stage(
    sources: Mapping[str, Callable[[], Iterable[Document]]],
    shares: Mapping[str, float],
    tokens: int,
    tokenizer: Tokenizer,
    seed: int,
) -> tuple[Tokens, dict[str, SourceSummary]]:
    """Return the tokens of a stage, about `tokens` of them, and what each source gave.

    Args:
        sources: Makes the documents of each source.
        shares: The relative weight of each source in tokens.
        tokens: How many tokens the stage has.
        tokenizer: Encodes the documents.
        seed: Decides all orders.
    """
    total_share = sum(shares.values())
    everything: list[Tokens] = []
    summaries: dict[str, SourceSummary] = {}
    for name, share in shares.items():
        arrays = encode_all(tokenizer, sources[name]())
        quota = round(tokens * share / total_share)
        chosen = fill_share(arrays, quota, random.Random(f"{seed} {name}"))
        everything.extend(chosen)
        summaries[name] = SourceSummary(
            share=share / total_share,
            documents=len(arrays),
            unique_tokens=sum(map(len, arrays)),
            used_tokens=sum(map(len, chosen)),
        )
    random.Random(seed).shuffle(everything)
    return np.concatenate(everything), summaries


def write_stage(path: Path, tokens: Tokens, summaries: Mapping[str, SourceSummary]) -> None:
    """Write a stage's tokens to `path` and the summary of its sources beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens.tofile(path)
    facts = {name: {**asdict(summary), "epochs": round(summary.epochs, 2)} for name, summary in summaries.items()}
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


class Rows:
    """The rows of a stage: slices of `row_tokens` inputs and their targets, one token later."""

    def __init__(self, path: Path, row_tokens: int) -> None:
        self._tokens: Tokens = np.memmap(path, dtype=np.uint16, mode="r")
        self._row_tokens = row_tokens

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._row_tokens

    def batch(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets, each `(count, row_tokens)`; rows past the end start anew."""
        size = self._row_tokens
        starts = [(row % len(self)) * size for row in range(first, first + count)]
        rows = np.stack([self._tokens[start : start + size + 1] for start in starts])
        window = torch.from_numpy(rows.astype(np.int64))
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()
