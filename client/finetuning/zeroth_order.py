"""zeroth_order: move a slot along random directions, by losses alone (MeZO, Malladi et al., arXiv 2305.17333).

    ρ = (L(θ + ε zₖ) − L(θ − ε zₖ)) / 2ε,   θ ← θ − η ρ zₖ      k uniform in K, the same batch for both losses

A step is two forward passes. Nothing is kept for a backward one and there is no optimizer state, so the memory is that
of inference and a few vectors of the adapter's size. The mean of ρ² is the gradient's squared norm: `clip_norm`
bounds ρ as elsewhere it bounds that norm. There is no dropout: it would be the difference between the two losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from client.dialogue import Example, derive_seed
from client.finetuning.batching import Batch, Row, epoch_batches, make_rows, micro_batches
from client.finetuning.config import FineTuneConfig
from client.finetuning.head import weighted_nll
from client.finetuning.interrupt import InterruptGate
from client.finetuning.memory import make_plan
from client.finetuning.network import Network, training_network
from client.finetuning.optimizer import learning_rate
from client.finetuning.precision import base_dtype, resolve_precision
from client.finetuning.trainable import Anchor, Target, trainable
from client.finetuning.trunk import TrunkCache
from florilegium.errors import ConfigError, InputError
from strategies.directions import Directions

if TYPE_CHECKING:
    from client.adapters import AdaptedModel

__all__ = ["zeroth_order"]


@torch.no_grad()
def zeroth_order(
    model: AdaptedModel,
    examples: Sequence[Example],
    *,
    target: Target,
    directions: Directions,
    steps: int,
    config: FineTuneConfig | None = None,
) -> Tensor:
    """Take steps from the state that the slot is in; on any failure it is as before.

    Args:
        model: the base with its adapters; nothing else may use it meanwhile.
        examples: what to learn; their order is of no account.
        target: the slot, and B as its part.
        directions: to move along; their scalars are of no account.
        steps: how many.
        config: rate, schedule, clip and batches; its optimizer, epochs and steps are of no account, and "auto" is the
            precision of the weights, since a difference of two losses needs more of it than a gradient.

    Returns:
        Σ η ρ of the steps along each direction, `(K,)` float32.

    Raises:
        InputError: the examples cannot be used, or a loss was not finite.
        ConfigError: there is weight decay.
        MemoryBudgetError: the work does not fit `config.memory_mb`.
        KeyboardInterrupt: Ctrl-C.
    """
    if steps < 1:
        return torch.zeros(len(directions.scalars))
    config = replace(config or FineTuneConfig(), epochs=steps, max_steps=steps)
    if config.weight_decay > 0:
        raise ConfigError("weight decay is no step along one of the directions", "give weight_decay = 0")
    rows = make_rows(model, examples)
    flat = model.flat(target.slot)
    start = flat.clone()
    present = base_dtype(model.frozen)
    dtype = present if config.dtype == "auto" else resolve_precision(config.dtype, present, flat.device)
    try:
        with InterruptGate() as gate, training_network(model, target.slot, dtype, beside=target.beside) as network:
            loss = _Loss(network, rows, config, gate, parameters=flat.numel())
            return _walk(model, target, directions, loss, list(islice(_batches(rows, config), steps)), config)
    except BaseException:
        flat.copy_(start)
        raise


def _walk(
    model: AdaptedModel,
    target: Target,
    directions: Directions,
    loss: _Loss,
    batches: Sequence[Batch],
    config: FineTuneConfig,
) -> Tensor:
    blank = {key: torch.zeros(tensor.shape) for key, tensor in model.parameters(target.slot).items()}
    moving, anchor = trainable(model, target), target.anchor or Anchor(weight=0.0)
    place = moving.values.clone()
    point = place.clone() if anchor.point is None else moving.at(anchor.point)
    moved = torch.zeros(len(directions.scalars))
    draw = torch.Generator().manual_seed(derive_seed(config.seed, "direction"))

    def measure(values: Tensor, batch: Batch) -> float:
        moving.values.copy_(values)
        moving.push()
        return loss(batch)

    for step, batch in enumerate(batches):
        number = int(torch.randint(len(moved), (), generator=draw))
        z = moving.at(blank | directions.along(number, blank))
        ahead, behind = (measure(place + side * directions.epsilon * z, batch) for side in (1, -1))
        slope = (ahead - behind) / (2 * directions.epsilon) + anchor.weight * float((place - point) @ z)
        if not math.isfinite(slope):
            raise InputError(f"the loss was not finite at step {step + 1} of {len(batches)}", "lower the learning rate")
        length = learning_rate(config, step, len(batches)) * min(max(slope, -config.clip_norm), config.clip_norm)
        place.sub_(z, alpha=length)
        moved[number] += length
    moving.values.copy_(place)
    moving.push()
    return moved


class _Loss:
    """The loss of a batch with the slot as it is."""

    def __init__(
        self, network: Network, rows: Sequence[Row], config: FineTuneConfig, gate: InterruptGate, *, parameters: int
    ) -> None:
        self._network, self._gate, self._normalization = network, gate, config.normalization
        # Nothing is kept for a backward pass: of what can be planned for, computing all again comes nearest.
        lean = replace(config, gradient_checkpointing=True)
        self._plan = make_plan(network, rows, lean, parameters=parameters, saves=False)
        self._cache: TrunkCache | None = None
        if self._plan.cache_bytes:
            room, tokens = self._plan.cache_bytes, self._plan.micro_tokens
            self._cache = TrunkCache(network, rows, max_bytes=room, micro_tokens=tokens)

    def __call__(self, batch: Batch) -> float:
        network, total = self._network, 0.0
        for run in micro_batches(batch.rows, max_tokens=self._plan.micro_tokens, packing=network.packs):
            self._gate.check()
            packed = network.pack(run)
            hidden = network.hidden(packed, entering=self._cache.entering(packed) if self._cache is not None else None)
            weights = packed.token_weights(batch, self._normalization)
            scored = hidden[packed.scored]
            loss, _ = weighted_nll(scored, packed.targets, weights, network.head, chunk=self._plan.head_rows)
            total += float(loss)
        return total


def _batches(rows: Sequence[Row], config: FineTuneConfig) -> Iterator[Batch]:
    for epoch in count():
        yield from epoch_batches(rows, seed=config.seed, epoch=epoch, batch_size=config.batch_size)
