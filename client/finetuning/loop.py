"""finetune: train one slot's adapter on a set of examples.

The result is a function of (the slot's start, the set of examples, the configuration, the plan, the machine's
arithmetic): not of the examples' order, and not of how often the run was interrupted. Training without an example gives
bit for bit what it would have given had the example never been there. On any failure the adapter is as before.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from client.dialogue import Example, derive_id
from client.finetuning.batching import Batch, Row, epoch_batches, make_rows, micro_batches, steps_per_epoch
from client.finetuning.checkpoint import Checkpoint, discard_checkpoint, read_checkpoint, write_checkpoint
from client.finetuning.config import FineTuneConfig, FineTuneReport, Progress
from client.finetuning.head import weighted_nll
from client.finetuning.interrupt import InterruptGate
from client.finetuning.memory import PeakMeter, make_plan, resident_bytes
from client.finetuning.network import Network, recomputed_activations, training_network
from client.finetuning.optimizer import Optimizer, learning_rate, make_optimizer
from client.finetuning.plan import Plan
from client.finetuning.precision import base_dtype, resolve_precision
from client.finetuning.trainable import Target, Trainable, trainable
from client.finetuning.trunk import TrunkCache
from florilegium.errors import MemoryBudgetError
from florilegium.heap import keep_freed_memory

if TYPE_CHECKING:
    from client.adapters import AdaptedModel

__all__ = ["finetune", "mean_gradient"]

_PERSONAL = Target(slot="personal")


def finetune(
    model: AdaptedModel,
    examples: Sequence[Example],
    *,
    target: Target = _PERSONAL,
    config: FineTuneConfig | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> FineTuneReport:
    """Train a slot on the examples' responses, other slots active and frozen beside it.

    Args:
        model: the base with its adapters; nothing else may use it meanwhile.
        examples: what to learn; their order is of no account.
        target: what to train, from the state it is in.
        config: how; the defaults if None.
        checkpoint: a file to save the state in now and then and when interrupted. A later call for the same work goes
            on from there, to the same result bit for bit. It is deleted at the end.
        progress: called after each step.

    Returns:
        What was done. If the loss or the gradient was not finite, `stopped` says so and the adapter is as before.

    Raises:
        InputError: the examples cannot be used.
        MemoryBudgetError: the work does not fit `config.memory_mb`.
        StorageError: a checkpoint cannot be written or read.
        KeyboardInterrupt: Ctrl-C; the state is in the checkpoint, the adapter is as before.
    """
    began = time.monotonic()
    config = config or FineTuneConfig()
    rows = make_rows(model, examples)
    flat = model.flat(target.slot)
    start = flat.clone()
    kept = False
    if config.memory_mb is None:
        keep_freed_memory()
    try:
        with PeakMeter(flat.device) as meter, InterruptGate() as gate:
            with _prepared(model, target, rows, config, checkpoint) as run:
                stopped = _train(run, gate, checkpoint, progress)
            gate.check()
            kept = not stopped
            if checkpoint is not None:
                discard_checkpoint(checkpoint)
    finally:
        if not kept:
            flat.copy_(start)
    return run.report(time.monotonic() - began, meter.peak_bytes, stopped)


def mean_gradient(
    model: AdaptedModel,
    examples: Sequence[Example],
    *,
    target: Target = _PERSONAL,
    config: FineTuneConfig | None = None,
) -> dict[str, Tensor]:
    """Return the gradient of the mean loss over all examples, without dropout and without a step.

    Returns:
        It, in main memory, keyed as the slot's state is.

    Raises:
        InputError: the examples cannot be used.
        MemoryBudgetError: the work does not fit `config.memory_mb`.
    """
    rows = make_rows(model, examples)
    with InterruptGate() as gate, _prepared(model, target, rows, config or FineTuneConfig(), None) as run:
        run.backward(Batch(0, rows), gate, dropout=False)
        flat = run.slot_gradient.to("cpu", copy=True)
        gate.check()
    parameters = model.parameters(target.slot)
    parts = torch.split(flat, [parameter.numel() for parameter in parameters.values()])
    return {key: part.view_as(parameter) for (key, parameter), part in zip(parameters.items(), parts, strict=True)}


@contextmanager
def _prepared(
    model: AdaptedModel, target: Target, rows: Sequence[Row], config: FineTuneConfig, checkpoint: Path | None
) -> Iterator[_Run]:
    work, saved = "", None
    if checkpoint is not None:
        work = _fingerprint(model, target, rows, config)
        saved = read_checkpoint(checkpoint, work)
    with ExitStack() as stack:
        network, plan = _fitting(stack, model, target, rows, config, checkpoint is not None, saved)
        if plan.recompute:
            stack.enter_context(recomputed_activations(network))
        gradient = stack.enter_context(_flat_gradient(model, target.slot))
        yield _Run(network, plan, rows, config, _Moved.of(model, target, config), gradient, work, saved)


def _fitting(
    stack: ExitStack,
    model: AdaptedModel,
    target: Target,
    rows: Sequence[Row],
    config: FineTuneConfig,
    saves: bool,
    saved: Checkpoint | None,
) -> tuple[Network, Plan]:
    """Enter the network of the first precision in which the work fits the budget, and return it with its plan."""
    preferred = Plan.of_checkpoint(saved.notes) if saved is not None else None
    slot = target.slot
    precisions = _precisions(model, slot, config, saved)
    for dtype in precisions:
        with ExitStack() as attempt:
            network = attempt.enter_context(training_network(model, slot, dtype, beside=target.beside))
            size = model.flat(slot).numel()
            try:
                plan = make_plan(network, rows, config, parameters=size, saves=saves, preferred=preferred)
            except MemoryBudgetError:
                if dtype == precisions[-1]:
                    raise
                continue
            stack.push(attempt.pop_all())
            return network, plan
    raise AssertionError("there is always a precision")


def _precisions(model: AdaptedModel, slot: str, config: FineTuneConfig, saved: Checkpoint | None) -> list[torch.dtype]:
    """Return the precisions to try: a checkpoint's own, the best, and under a budget that of the weights themselves."""
    device = model.flat(slot).device
    present = base_dtype(model.frozen)
    best = resolve_precision(config.dtype, present, device)
    if config.dtype != "auto" or config.memory_mb is None or best == present:
        return [best]
    copied = sum(parameter.numel() for parameter in model.frozen) * best.itemsize
    room = (config.memory_mb << 20) - resident_bytes(device)
    ordered = [best, present] if 2 * copied <= room else [present]
    return sorted(ordered, key=lambda dtype: saved is None or str(dtype) != saved.notes["dtype"])


@contextmanager
def _flat_gradient(model: AdaptedModel, slot: str) -> Iterator[Tensor]:
    """Give the slot's parameters one piece of memory to collect their gradients in."""
    gradient = torch.zeros_like(model.flat(slot))
    start = 0
    parameters = model.parameters(slot).values()
    for parameter in parameters:
        parameter.grad = gradient[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    try:
        yield gradient
    finally:
        for parameter in parameters:
            parameter.grad = None


def _fingerprint(model: AdaptedModel, target: Target, rows: Sequence[Row], config: FineTuneConfig) -> str:
    settings = replace(config, checkpoint_steps=1)  # when it is saved changes nothing
    states = [_digest(model.flat(name)) for name in model.slots]
    shapes = [repr(model.config(name)) for name in model.slots]
    points = [target.core or {}, (target.anchor and target.anchor.point) or {}]
    given = [f"{key}:{_digest(tensor)}" for tensors in points for key, tensor in tensors.items()]
    content = [f"{row.example_id}:{row.start}:{row.ids}" for row in rows]
    return derive_id(
        "finetune", model.base.name, repr(target), repr(settings), *shapes, *states, *given, "rows", *content
    )


def _digest(tensor: Tensor) -> str:
    return hashlib.blake2b(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _train(run: _Run, gate: InterruptGate, checkpoint: Path | None, progress: Callable[[Progress], None] | None) -> str:
    began, before = time.monotonic(), run.tally.tokens
    try:
        for batch in run.remaining():
            if stopped := run.advance(batch, gate):
                return stopped
            if checkpoint is not None and run.step % run.config.checkpoint_steps == 0 and run.step < run.steps:
                write_checkpoint(checkpoint, run.state())
            if progress is not None:
                progress(run.progress(time.monotonic() - began, before))
    except KeyboardInterrupt:
        if checkpoint is not None and run.is_whole:
            write_checkpoint(checkpoint, run.state())
        raise
    return ""


@dataclass(slots=True)
class _Tally:
    """What the report counts; it travels with the checkpoint."""

    rows: int = 0
    tokens: int = 0
    loss_first: float = math.nan
    loss_last: float = math.nan


@dataclass(frozen=True, slots=True)
class _Moved:
    """What moves, what moves it, and what it stays near to."""

    trainable: Trainable
    optimizer: Optimizer
    anchor: Tensor | None
    anchor_weight: float

    @classmethod
    def of(cls, model: AdaptedModel, target: Target, config: FineTuneConfig) -> Self:
        """Prepare the slot in the state it is in; a checkpoint may be put over it afterwards."""
        moving = trainable(model, target)
        weight = target.anchor.weight if target.anchor is not None else 0.0
        point = None
        if target.anchor is not None and weight > 0:
            given = target.anchor.point
            point = moving.values.clone() if given is None else moving.at(given)
        return cls(moving, make_optimizer(moving.values, config), point, weight)

    def gradient(self, of_slot: Tensor) -> Tensor:
        """Return the gradient of the loss and the anchor, `(size,)`."""
        pulled = self.trainable.pull(of_slot)
        if self.anchor is None:
            return pulled
        return torch.add(pulled, self.trainable.values - self.anchor, alpha=self.anchor_weight)

    def step(self, gradient: Tensor, rate: float) -> None:
        """Move the values, and the slot with them."""
        self.optimizer.step(gradient, rate)
        self.trainable.push()

    def tensors(self) -> dict[str, Tensor]:
        """Return all that changes, by name; writing into these is restoring."""
        return {"parameters": self.trainable.values, **self.optimizer.moments}


class _Run:
    """One fine-tuning on its way: where it is, and how it takes a step."""

    def __init__(
        self,
        network: Network,
        plan: Plan,
        rows: Sequence[Row],
        config: FineTuneConfig,
        moved: _Moved,
        gradient: Tensor,
        work: str,
        saved: Checkpoint | None,
    ) -> None:
        self.network, self.plan, self.rows, self.config = network, plan, rows, config
        self.moved, self.slot_gradient, self.work = moved, gradient, work
        self.per_epoch = steps_per_epoch(len(rows), config.batch_size)
        self.steps = self.per_epoch * config.epochs
        if config.max_steps is not None:
            self.steps = min(self.steps, config.max_steps)
        self.step = self.resumed_step = 0
        self.is_whole = True
        self.tally = _Tally()
        if saved is not None:
            self._restore(saved)
        self.cache: TrunkCache | None = None
        if plan.cache_bytes:
            self.cache = TrunkCache(network, rows, max_bytes=plan.cache_bytes, micro_tokens=plan.micro_tokens)

    def remaining(self) -> Iterator[Batch]:
        """Iterate over the batches of the steps still to do."""
        while self.step < self.steps:
            epoch, done = divmod(self.step, self.per_epoch)
            batches = epoch_batches(self.rows, seed=self.config.seed, epoch=epoch, batch_size=self.config.batch_size)
            yield from islice(batches, done, done + self.steps - self.step)

    def advance(self, batch: Batch, gate: InterruptGate) -> str:
        """Take one step; return why it could not be taken, if so."""
        loss = self.backward(batch, gate)
        gradient = self.moved.gradient(self.slot_gradient)
        norm = float(gradient.norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "loss" if not math.isfinite(loss) else "gradient"
            return f"the {what} was not finite at step {self.step + 1} of {self.steps}; lower the learning rate"
        if norm > self.config.clip_norm:
            gradient.mul_(self.config.clip_norm / norm)
        self.is_whole = False
        self.moved.step(gradient, learning_rate(self.config, self.step, self.steps))
        self._count(batch, loss)
        self.is_whole = True
        return ""

    def backward(self, batch: Batch, gate: InterruptGate, *, dropout: bool = True) -> float:
        """Collect the slot's gradient of the batch's loss and return the loss."""
        self.slot_gradient.zero_()
        total = 0.0
        for run in micro_batches(batch.rows, max_tokens=self.plan.micro_tokens, packing=self.network.packs):
            gate.check()
            packed = self.network.pack(run)
            entering = self.cache.entering(packed) if self.cache is not None else None
            seeds = packed.seeds(self.config.seed, batch.epoch) if dropout else None
            hidden = self.network.hidden(packed, seeds=seeds, entering=entering)
            weights = packed.token_weights(batch, self.config.normalization)
            loss, _ = weighted_nll(
                hidden[packed.scored], packed.targets, weights, self.network.head, chunk=self.plan.head_rows
            )
            torch.autograd.backward(loss)
            total += float(loss.detach())
        return total

    def _count(self, batch: Batch, loss: float) -> None:
        if self.step == 0:
            self.tally.loss_first = loss
        self.tally.loss_last = loss
        self.tally.rows += len(batch.rows)
        self.tally.tokens += sum(row.length for row in batch.rows)
        self.step += 1

    def state(self) -> Checkpoint:
        """Return everything a later call needs to go on from here."""
        notes = asdict(self.tally) | asdict(self.plan) | {"dtype": str(self.network.dtype)}
        return Checkpoint(fingerprint=self.work, step=self.step, tensors=self.moved.tensors(), notes=notes)

    def _restore(self, saved: Checkpoint) -> None:
        for name, tensor in self.moved.tensors().items():
            tensor.copy_(saved.tensors[name])
        self.moved.trainable.push()
        self.step = self.resumed_step = self.moved.optimizer.steps = saved.step
        for item in fields(_Tally):
            setattr(self.tally, item.name, saved.notes[item.name])

    def progress(self, seconds: float, tokens_before: int) -> Progress:
        """Return where the run is, `seconds` after this call's first step began."""
        done = self.step - self.resumed_step
        return Progress(
            step=self.step,
            steps=self.steps,
            loss=self.tally.loss_last,
            tokens_per_second=(self.tally.tokens - tokens_before) / max(seconds, 1e-9),
            eta_seconds=seconds / done * (self.steps - self.step),
        )

    def report(self, seconds: float, peak_bytes: int, stopped: str) -> FineTuneReport:
        """Return what was done."""
        return FineTuneReport(
            steps=self.step,
            rows=self.tally.rows,
            tokens=self.tally.tokens,
            loss_first=self.tally.loss_first,
            loss_last=self.tally.loss_last,
            seconds=seconds,
            peak_bytes=peak_bytes,
            planned_bytes=self.plan.peak_bytes,
            choices=self._choices(),
            resumed_step=self.resumed_step,
            stopped=stopped,
        )

    def _choices(self) -> dict[str, str | int | bool]:
        return {
            "dtype": str(self.network.dtype).removeprefix("torch."),
            "micro_tokens": self.plan.micro_tokens,
            "head_rows": self.plan.head_rows,
            "gradient_checkpointing": self.plan.recompute,
            "cached_rows": len(self.cache) if self.cache is not None else 0,
            "packed": self.network.packs,
        }
