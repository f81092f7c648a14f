"""A memory budget that is kept: estimate first, then choose how to cut the work.

What a step needs above what the process holds already is

    optimizer   16 bytes a parameter: gradient, two moments, one temporary; with a checkpoint its copies as well
    activations micro_tokens × bytes a token, counted on this very model by a forward pass over a few tokens
    one layer   its activations thrice more, as gradients and temporaries
    head        head_rows × vocabulary × bytes of logits, their softmax and its slope
    code        0.65 MiB for each shape of a bfloat16 product on a processor (oneDNN generates it and keeps it)
    cache       the trunk's hidden states

times a factor for the allocator. Of the ways to cut the work, the fastest that fits is taken.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from client.finetuning.batching import Batch, Row, epoch_batches, micro_batches
from client.finetuning.config import FineTuneConfig
from client.finetuning.head import weighted_nll
from client.finetuning.network import Network
from client.finetuning.plan import Plan
from florilegium.errors import MemoryBudgetError

__all__ = ["PeakMeter", "make_plan", "resident_bytes"]

_HEAD_ROWS = (256, 64, 16)
_PROBE_TOKENS = 32
_ALLOCATOR = 1.2  # measured: fragments and rounding add less than a fifth
_SLACK_BYTES = 48 << 20  # measured: scratch space of the matrix library, code loaded at the first step
_CODE_BYTES = 650 << 10  # measured
_EPOCHS_LOOKED_AT = 3
_STATUS = Path("/proc/self/status")


def resident_bytes(device: torch.device) -> int:
    """Return the memory in use now: the process's resident memory, or what is allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS") or _highest()


class PeakMeter:
    """Measures the highest memory in use inside its block, in `peak_bytes`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the whole process
            Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self.peak_bytes = _status("VmHWM") or _highest()


def _status(field: str) -> int:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) << 10
    return 0


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True, slots=True)
class _Costs:
    """Bytes, as counted on the model."""

    fixed: int
    token: int  # activations kept for the backward pass, all trained layers
    token_layer: int  # of one of them
    entering: int  # one hidden state
    layers: int
    logit: int
    vocabulary: int
    shapes: int  # of products whose code is generated, for one size of a pack

    def peak(self, plan: Plan, sizes: Set[int]) -> int:
        """Return what `plan`, with packs of these `sizes`, takes above what is held already."""
        tokens = max(sizes)
        kept = self.layers * self.entering + self.token_layer if plan.recompute else self.token
        head = plan.head_rows * self.vocabulary * self.logit
        backward = tokens * (kept + 3 * self.token_layer)
        forward = tokens * (kept + 4 * self.entering) + head
        code = self.shapes * (len(sizes) + 1) * _CODE_BYTES
        return int(_ALLOCATOR * (self.fixed + max(backward, forward)) + plan.cache_bytes + code) + _SLACK_BYTES


def make_plan(
    network: Network,
    rows: Sequence[Row],
    config: FineTuneConfig,
    *,
    parameters: int,
    saves: bool,
    preferred: Plan | None = None,
) -> Plan:
    """Choose how to cut the work.

    Args:
        network: ready to train.
        rows: what to train on.
        config: the wishes, and the bound.
        parameters: how many are trained.
        saves: whether checkpoints are written.
        preferred: taken before any other, if it fits.

    Raises:
        MemoryBudgetError: no way of cutting fits `config.memory_mb`; the message says what would.
    """
    plans = [*([preferred] if preferred is not None else []), *_plans(network, rows, config)]
    if config.memory_mb is None:
        return plans[0]
    held = resident_bytes(network.device)
    longest = max(row.length for row in rows)
    costs = _count(network, longest, parameters, saves)
    sized = [replace(plan, peak_bytes=held + costs.peak(plan, _sizes(network, rows, config, plan))) for plan in plans]
    for plan in sized:
        if plan.peak_bytes <= config.memory_mb << 20:
            return plan
    least = -(-min(plan.peak_bytes for plan in sized) >> 20)
    raise MemoryBudgetError(
        f"fine-tuning on rows of up to {longest} tokens needs {least} MiB, {held >> 20} of them in use already, "
        f"and memory_mb is {config.memory_mb}",
        f"set memory_mb to {least} or more, or use shorter rows, a lower rank, fewer top_layers or a smaller model",
    )


def _plans(network: Network, rows: Sequence[Row], config: FineTuneConfig) -> Iterator[Plan]:
    """Iterate over the ways to cut the work, the fastest first."""
    longest = max(row.length for row in rows)
    size = sum(row.length for row in rows) * network.width * network.dtype.itemsize
    most = math.inf if config.max_steps is None else config.max_steps * config.batch_size / len(rows)
    visits = min(config.epochs, most)
    useful = network.depth > 0 and config.trunk_cache_mb > 0 and visits > 1
    caches = [min(size, config.trunk_cache_mb << 20), 0] if useful else [0]
    wish = config.gradient_checkpointing
    recomputing = [False, True] if wish is None else [wish]
    micro = [max(config.micro_tokens >> halving, longest) for halving in range(8)]
    for cache, recompute, tokens, head_rows in product(caches, recomputing, dict.fromkeys(micro), _HEAD_ROWS):
        yield Plan(micro_tokens=tokens, head_rows=head_rows, recompute=recompute, cache_bytes=cache)


def _count(network: Network, longest: int, parameters: int, saves: bool) -> _Costs:
    tokens = min(longest, _PROBE_TOKENS)
    row = Row("", tuple(range(1, tokens + 2)), 1)
    saved = _saved_bytes(network, row) / tokens
    config: Any = network.module.config.get_text_config()
    layers = len(network.layers) - network.depth
    size = network.dtype.itemsize
    return _Costs(
        fixed=parameters * (48 if saves else 16),
        token=int(saved),
        token_layer=int(saved / layers),
        entering=network.width * size,
        layers=layers,
        logit=size + 8 + (size if size < 4 else 0),
        vocabulary=int(config.vocab_size),
        shapes=_shapes(network) if network.rounds else 0,
    )


def _shapes(network: Network) -> int:
    """Count the products of one pack: of each shape of layer the weight's two and the factors' five, at the most."""
    linear = (part for layer in network.layers for part in layer.modules() if isinstance(part, LoraLayer))
    return 6 * len({(layer.in_features, layer.out_features) for layer in linear})


def _sizes(network: Network, rows: Sequence[Row], config: FineTuneConfig, plan: Plan) -> set[int]:
    """Return the sizes that packs will have (of the first epochs; later ones add few)."""
    sizes = set()
    for epoch in range(min(config.epochs, _EPOCHS_LOOKED_AT)):
        for batch in epoch_batches(rows, seed=config.seed, epoch=epoch, batch_size=config.batch_size):
            runs = micro_batches(batch.rows, max_tokens=plan.micro_tokens, packing=network.packs)
            sizes |= {network.size(run) for run in runs}
    return sizes


def _saved_bytes(network: Network, row: Row) -> int:
    """Return what autograd keeps of one row's forward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        alone = tensor.detach()  # with its graph, which holds what is returned, it would never be freed
        kept[tensor.untyped_storage().data_ptr()] = alone
        return alone

    packed = network.pack([row])
    weights = packed.token_weights(Batch(0, (row,)), "example")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = network.hidden(packed, seeds=packed.seeds(0, 0))
        weighted_nll(hidden[packed.scored], packed.targets, weights, network.head, chunk=row.scored)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
