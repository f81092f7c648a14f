"""Measure held-out bits per byte.

bits per byte = (sum of the negative log-likelihoods, in nats, of every token after `<|bos|>`: the text's tokens and
all turn markers) / ln 2 / (UTF-8 bytes of the text alone, without markers).

A document longer than the window is read in windows that overlap by half; every token is counted once, with at least
half a window of context (or all there is).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaForCausalLM

from training.corpora import Document
from training.tokenizer import encode

IGNORED = -100


def windows(ids: Sequence[int], window: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (inputs, targets) that count every token of `ids` but the first exactly once.

    Targets that an earlier window counted are `IGNORED`.
    """
    counted = 1
    start = 0
    while counted < len(ids):
        piece = list(ids[start : start + window + 1])
        targets = [token if start + offset >= counted else IGNORED for offset, token in enumerate(piece[1:], start=1)]
        yield piece[:-1], targets
        counted = start + len(piece)
        start = counted - window // 2 - 1


@torch.inference_mode()
def nats(model: LlamaForCausalLM, pieces: Sequence[tuple[list[int], list[int]]]) -> float:
    """Return the summed negative log-likelihood of the targets of a batch of windows."""
    longest = max(len(inputs) for inputs, _ in pieces)
    inputs = torch.zeros(len(pieces), longest, dtype=torch.long)
    targets = torch.full((len(pieces), longest), IGNORED)
    for row, (ids, wanted) in enumerate(pieces):
        # Padding stands on the right, where causal attention never looks.
        inputs[row, : len(ids)] = torch.tensor(ids)
        targets[row, : len(wanted)] = torch.tensor(wanted)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)
    loss = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return float(loss)


def bits_per_byte(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    window: int,
    batch: int = 16,
) -> float:
    """Return the bits per byte of documents, each read from its own start."""
    listed = list(documents)
    pieces = [piece for ids in encode(tokenizer, listed) for piece in windows(ids, window)]
    # Windows of like length share a batch, so little of it is padding.
    pieces.sort(key=lambda piece: len(piece[0]))
    total = sum(nats(model, pieces[i : i + batch]) for i in range(0, len(pieces), batch))
    return total / math.log(2) / sum(document.text_bytes for document in listed)
