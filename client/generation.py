"""Batched generation with a key-value cache.

Rows are sorted by length and padded on the left; equal prompts are read once and share what was read. Finished rows
leave the batch when they are half of it. A sampled token is where the row's own cumulative distribution passes a number
that depends on the row's seed and the step alone, so a row's text does not depend on the rows it is computed with, up
to the rounding of logits.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from client.reading import device_of

__all__ = ["Generated", "Request", "generate"]

_BATCH_ROWS: Final = 64
_BATCH_TOKENS: Final = 16_384  # rows times longest sequence: bounds the cache
_ROOM: Final = 32  # spare positions by which a cache grows
_CUDA_STEPS: Final = 8  # steps between two looks at which rows are finished: a look waits for the device


@dataclass(frozen=True, slots=True)
class Request:
    """One row to generate.

    Attributes:
        ids: the prompt.
        limit: most tokens to generate, at least 1.
        seed: where the row's draws come from.
    """

    ids: Sequence[int] = field(repr=False)
    limit: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generated:
    """What became of one row.

    Attributes:
        ids: generated tokens, without the one that ended the answer.
        prompt_states: final hidden states of the prompt, (prompt, hidden), float32, on the CPU; None unless asked for.
        states: those of `ids`, (tokens, hidden).
    """

    ids: list[int] = field(repr=False)
    prompt_states: Tensor | None = field(default=None, repr=False)
    states: Tensor | None = field(default=None, repr=False)


@torch.inference_mode()
def generate(
    module: PreTrainedModel,
    requests: Sequence[Request],
    *,
    stop_ids: frozenset[int],
    temperature: float = 0.0,
    with_states: bool = False,
) -> list[Generated]:
    """Continue each prompt until it ends or has its limit of tokens.

    Args:
        module: a causal model in evaluation mode, with or without adapters.
        requests: what to continue.
        stop_ids: tokens that end an answer.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and a token is drawn.
        with_states: collect hidden states in the same pass.

    Returns:
        One result per request, in the same order.
    """
    results: dict[int, Generated] = {}
    for chosen in _batches(requests):
        batch = [requests[at] for at in chosen]
        results.update(zip(chosen, _generate_batch(module, batch, stop_ids, temperature, with_states), strict=True))
    return [results[at] for at in range(len(requests))]


def _batches(requests: Sequence[Request]) -> Iterator[list[int]]:
    chosen: list[int] = []
    longest = 0
    for at in sorted(range(len(requests)), key=lambda at: (len(requests[at].ids), list(requests[at].ids))):
        length = len(requests[at].ids) + requests[at].limit
        tokens = (len(chosen) + 1) * max(longest, length)
        if chosen and (len(chosen) == _BATCH_ROWS or tokens > _BATCH_TOKENS):
            yield chosen
            chosen, longest = [], 0
        chosen.append(at)
        longest = max(longest, length)
    if chosen:
        yield chosen


def _generate_batch(
    module: PreTrainedModel,
    requests: Sequence[Request],
    stop_ids: frozenset[int],
    temperature: float,
    with_states: bool,
) -> list[Generated]:
    prompts = list(dict.fromkeys(tuple(request.ids) for request in requests))
    row_of = {prompt: row for row, prompt in enumerate(prompts)}
    rows = [row_of[tuple(request.ids)] for request in requests]
    reader = _Reader(module, prompts, max(request.limit for request in requests))
    logits, prompt_states = reader.prefill(with_states)
    if len(rows) > len(prompts):
        expand = torch.tensor(rows, device=reader.device)
        reader.select(expand)
        logits = logits[expand]
    tokens, states = _decode(reader, logits, requests, stop_ids, temperature, with_states)
    results = []
    for at, (request, row) in enumerate(zip(requests, rows, strict=True)):
        ids = tokens[at][: request.limit]
        ids = ids[: next((step for step, token in enumerate(ids) if token in stop_ids), len(ids))]
        if states is None:
            results.append(Generated(ids))
        else:
            results.append(Generated(ids, prompt_states[row], states[at, : len(ids)]))
    return results


def _decode(
    reader: _Reader,
    logits: Tensor,
    requests: Sequence[Request],
    stop_ids: frozenset[int],
    temperature: float,
    with_states: bool,
) -> tuple[list[list[int]], Tensor | None]:
    """Pick and read token after token; what a row picked after it was finished is left for the caller to cut."""
    device = reader.device
    limits = torch.tensor([request.limit for request in requests], device=device)
    stops = torch.tensor(sorted(stop_ids), device=device)
    steps = max(request.limit for request in requests)
    draws = _draws(requests, steps).to(device) if temperature > 0 else None
    running = torch.arange(len(requests), device=device)
    finished = torch.zeros(len(requests), dtype=torch.bool, device=device)
    tokens = torch.zeros(len(requests), steps, dtype=torch.long, device=device)
    states = torch.zeros(len(requests), steps, reader.hidden_size, device=device) if with_states else None
    look_every = _CUDA_STEPS if device.type == "cuda" else 1
    for step in range(steps):
        picked = logits.argmax(-1) if draws is None else _draw(logits, draws[running, step], temperature)
        tokens[running, step] = picked
        # With states, a row's last token still has to be read.
        finished |= torch.isin(picked, stops) | (limits[running] <= step + (not with_states))
        if step % look_every == 0 or step == steps - 1:
            alive = (~finished).nonzero()[:, 0]
            if not len(alive):
                break
            if 2 * len(alive) <= len(running):
                reader.select(alive)
                running, picked, finished = running[alive], picked[alive], finished[alive]
        logits, last = reader.step(picked, with_states)
        if states is not None and last is not None:
            states[running, step] = last.float()
    return tokens.tolist(), None if states is None else states.cpu()


def _draws(requests: Sequence[Request], steps: int) -> Tensor:
    """Return each row's numbers in [0, 1), (rows, steps)."""
    rows = []
    for request in requests:
        generator = torch.Generator().manual_seed(request.seed)
        rows.append(torch.rand(steps, generator=generator))
    return torch.stack(rows)


def _draw(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Invert each row's cumulative distribution at its number: logits (rows, vocabulary), uniform (rows,)."""
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).cumsum(dim=-1)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


class _Output(Protocol):
    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None


class _Reader:
    """A model with what it has read so far: one row per sequence, padded on the left.

    Args:
        module: a causal model.
        prompts: what is read first.
        room: tokens that may follow.
    """

    def __init__(self, module: PreTrainedModel, prompts: Sequence[Sequence[int]], room: int) -> None:
        self.module, self.prompts = module, prompts
        self.device = device_of(module)
        self.hidden_size = int(module.config.get_text_config().hidden_size)
        lengths = [len(prompt) for prompt in prompts]
        self._length = max(lengths)
        self._cache = _new_cache(module)
        self._positions = torch.tensor(lengths, device=self.device)[:, None]
        self._takes_positions = "position_ids" in inspect.signature(module.forward).parameters
        padding = self._length - self._positions
        self._mask = torch.arange(self._length + room, device=self.device) >= padding
        self._is_padded = min(lengths) < self._length
        positions = getattr(module.config.get_text_config(), "max_position_embeddings", None)
        self._last_position = sys.maxsize if positions is None else int(positions) - 1

    def prefill(self, with_states: bool) -> tuple[Tensor, list[Tensor]]:
        """Read the prompts.

        Returns:
            The logits that follow, (prompts, vocabulary), and each prompt's states, if asked for.
        """
        ids = torch.zeros(len(self.prompts), self._length, dtype=torch.long)
        for row, prompt in enumerate(self.prompts):
            ids[row, self._length - len(prompt) :] = torch.as_tensor(prompt)
        positions = torch.arange(self._length, device=self.device) - (self._length - self._positions)
        output = self._forward(ids.to(self.device), positions.clamp(min=0), with_states=with_states)
        if output.hidden_states is None:
            return output.logits[:, -1], []
        states = output.hidden_states[-1].float().cpu()
        return output.logits[:, -1], [row[-len(prompt) :] for row, prompt in zip(states, self.prompts, strict=True)]

    def step(self, tokens: Tensor, with_states: bool) -> tuple[Tensor, Tensor | None]:
        """Read one token a row; return the logits that follow and, if asked for, the token's states, (rows, hidden)."""
        self._length += 1
        # A row that is finished stays for a while, and must not run past the last position there is.
        positions = self._positions.clamp(max=self._last_position)
        output = self._forward(tokens[:, None], positions, with_states=with_states)
        self._positions = self._positions + 1
        return output.logits[:, -1], output.hidden_states[-1][:, -1] if output.hidden_states is not None else None

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be asked for more than once."""
        self._cache.reorder_cache(rows)  # type: ignore[arg-type]
        self._positions, self._mask = self._positions[rows], self._mask[rows]
        self._is_padded = not bool(self._mask.all())

    def _forward(self, ids: Tensor, positions: Tensor, *, with_states: bool) -> _Output:
        extra: dict[str, object] = {"position_ids": positions} if self._takes_positions else {}
        if with_states:
            extra["output_hidden_states"] = -1  # an index keeps the other layers from being collected
        mask = self._mask[:, : self._length] if self._is_padded else None
        output: _Output = self.module(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **extra,
        )
        return output


def _new_cache(module: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache(config=module.config)
    cache.layers = [
        _RoomyLayer() if type(layer) is DynamicLayer else layer  # type: ignore[no-untyped-call]
        for layer in cache.layers
    ]
    return cache


class _RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer that writes into spare room instead of copying all keys and values at every step."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append along the sequence; return all keys and values so far."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            self._spare: tuple[Tensor, Tensor] | None = None
            return key_states, value_states
        held = self.keys.shape[2]
        length = held + key_states.shape[2]
        if self._spare is None or length > self._spare[0].shape[2]:
            self._spare = _with_room(self.keys, length + _ROOM), _with_room(self.values, length + _ROOM)
        keys, values = self._spare
        keys[:, :, held:length] = key_states
        values[:, :, held:length] = value_states
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Keep these rows, in this order."""
        super().reorder_cache(beam_idx)
        self._spare = None


def _with_room(states: Tensor, length: int) -> Tensor:
    batch, heads, held, width = states.shape
    larger = states.new_empty(batch, heads, length, width)
    larger[:, :, :held] = states
    return larger
