"""Train seedling in stages, each killable at any moment and resumed where its last checkpoint stood.

Hidden matrices are optimised by Muon, which needs clearly fewer tokens than AdamW at this size; embeddings and norms
by AdamW. The learning rate warms up, stays, and falls linearly to zero over the last `decay_steps` of a stage
(warmup-stable-decay): a stage without decay can be followed by another with other data.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypedDict

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from training.corpora import Document
from training.data import Rows
from training.evaluate import bits_per_byte
from training.export import export

CHECKPOINT: Final = "checkpoint.pt"
LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The dials of one stage.

    Attributes:
        stage: The name of the stage; a checkpoint of the same name is resumed, one of another name is continued.
        steps: Optimiser steps of the stage.
        row_tokens: Tokens per row.
        micro_rows: Rows per forward pass.
        accumulation: Forward passes per optimiser step.
        warmup_steps: Steps of linear warm-up.
        decay_steps: Last steps of the stage, over which the learning rates fall to zero.
        muon_lr: Learning rate of the hidden matrices.
        adamw_lr: Learning rate of embeddings and norms.
        weight_decay: Decoupled weight decay of all matrices.
        clip_norm: Largest norm of the gradient.
        seed: Decides the initial weights.
        checkpoint_seconds: Time between checkpoints.
        report_seconds: Time between held-out measurements and snapshots.
        compiled: Whether the loss is compiled.
    """

    stage: str
    steps: int
    row_tokens: int = 256
    micro_rows: int = 16
    accumulation: int = 2
    warmup_steps: int = 100
    decay_steps: int = 0
    muon_lr: float = 0.02
    adamw_lr: float = 4e-3
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    seed: int = 1
    checkpoint_seconds: float = 180.0
    report_seconds: float = 600.0
    compiled: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.decay_steps <= self.steps:
            raise ValueError(f"decay_steps must be between 0 and steps={self.steps}, got {self.decay_steps}")

    def rate(self, step: int) -> float:
        """Return the factor on the learning rates at a step, counted from zero."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        if not self.decay_steps:
            return warm
        return min(warm, (self.steps - step) / self.decay_steps)


@dataclass(slots=True)
class Trained:
    """What a run carries from step to step."""

    stage: str = ""
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stages: list[str] = field(default_factory=list)


class Checkpoint(TypedDict):
    """The file that a run resumes from."""

    model: dict[str, Tensor]
    optimizers: list[dict[str, object]]
    trained: dict[str, object]
    torch_rng: Tensor


def optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for the hidden matrices and AdamW for the embeddings and norms."""
    hidden, embeddings, gains = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            gains.append(parameter)
        elif "embed" in name or "lm_head" in name:
            embeddings.append(parameter)
        else:
            hidden.append(parameter)
    muon = torch.optim.Muon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay, momentum=0.95)
    adamw = torch.optim.AdamW(
        [
            {"params": embeddings, "weight_decay": config.weight_decay},
            {"params": gains, "weight_decay": 0.0},
        ],
        lr=config.adamw_lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    return [muon, adamw]


def loss_function(model: LlamaForCausalLM, *, compiled: bool) -> LossFunction:
    """Return the mean cross entropy of a batch, compiled if asked for."""

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden)
        return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return torch.compile(loss) if compiled else loss


def save_checkpoint(
    path: Path,
    model: LlamaForCausalLM,
    opts: list[torch.optim.Optimizer],
    trained: Trained,
) -> None:
    """Write everything that the next step depends on; the old file stays until the new one is whole."""
    state = Checkpoint(
        model=model.state_dict(),
        optimizers=[opt.state_dict() for opt in opts],
        trained={name: getattr(trained, name) for name in Trained.__slots__},
        torch_rng=torch.get_rng_state(),
    )
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path, model: LlamaForCausalLM, opts: list[torch.optim.Optimizer]) -> Trained:
    """Restore a checkpoint into model and optimisers, and return where the run stood."""
    state: Checkpoint = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["optimizers"], strict=True):
        opt.load_state_dict(saved)
    torch.set_rng_state(state["torch_rng"])
    return _trained(state)


def load_weights(path: Path, model: LlamaForCausalLM) -> Trained:
    """Restore only the weights of a checkpoint, and return where the run stood."""
    state: Checkpoint = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    return _trained(state)


def _trained(state: Checkpoint) -> Trained:
    trained = Trained()
    for name, value in state["trained"].items():
        setattr(trained, name, value)
    return trained


def set_rates(opts: list[torch.optim.Optimizer], config: TrainConfig, step: int) -> None:
    """Give every optimiser its learning rate and weight decay for a step."""
    for opt, peak in zip(opts, (config.muon_lr, config.adamw_lr), strict=True):
        for group in opt.param_groups:
            group["lr"] = peak * config.rate(step)


def train_step(
    loss: LossFunction,
    parameters: list[nn.Parameter],
    opts: list[torch.optim.Optimizer],
    rows: Rows,
    config: TrainConfig,
    step: int,
) -> float:
    """Take one optimiser step and return its mean loss in nats per token."""
    set_rates(opts, config, step)
    total = 0.0
    for part in range(config.accumulation):
        first = (step * config.accumulation + part) * config.micro_rows
        inputs, targets = rows.batch(first, config.micro_rows)
        value = loss(inputs, targets) / config.accumulation
        value.backward()  # type: ignore[no-untyped-call]
        total += value.item()
    nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    for opt in opts:
        opt.step()
        opt.zero_grad(set_to_none=True)
    return total


class Reporter:
    """Measures held-out text and writes a snapshot for others every few minutes."""

    def __init__(
        self,
        console: Console,
        tokenizer: Tokenizer,
        held_out: Mapping[str, list[Document]],
        snapshot: Path,
        window: int,
    ) -> None:
        self._console = console
        self._tokenizer = tokenizer
        self._held_out = held_out
        self._snapshot = snapshot
        self._window = window

    def __call__(self, model: LlamaForCausalLM, trained: Trained) -> None:
        """Report on the model as it is now."""
        model.train(mode=False)
        found = {
            name: bits_per_byte(model, self._tokenizer, documents, window=self._window)
            for name, documents in self._held_out.items()
        }
        model.train()
        line = "  ".join(f"{name} {bits:.3f}" for name, bits in found.items())
        self._console.print(
            f"{trained.stage} step {trained.step}, {trained.tokens / 1e6:.2f} M tokens, bits per byte: {line}",
            soft_wrap=True,
        )
        export(model, self._tokenizer, self._snapshot)


def sample_held_out(
    documents: Mapping[str, list[Document]], largest_bytes: int, seed: int = 0
) -> dict[str, list[Document]]:
    """Draw a small fixed sample of held-out documents per corpus, for quick measurements."""
    drawn: dict[str, list[Document]] = {}
    for name, listed in documents.items():
        order = random.Random(seed).sample(listed, len(listed))
        left = largest_bytes
        drawn[name] = []
        for document in order:
            if left <= 0:
                break
            drawn[name].append(document)
            left -= document.text_bytes
    return drawn


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:.0f} tokens/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        # A log file gets a line now and then from `log_every` instead of a redrawn bar.
        disable=not console.is_terminal,
    )


def train(
    model: LlamaForCausalLM,
    rows: Rows,
    config: TrainConfig,
    folder: Path,
    *,
    report: Callable[[LlamaForCausalLM, Trained], None] | None = None,
    console: Console | None = None,
    log_every: int = 20,
    stop_at: int | None = None,
) -> Trained:
    """Run a stage to its end, from `folder`'s checkpoint if there is one.

    Args:
        model: The model to train, in place.
        rows: The stage's data.
        config: The stage's dials.
        folder: Holds the checkpoint.
        report: Called every `report_seconds` and at the end.
        console: Where progress goes.
        log_every: Steps between lines of the log.
        stop_at: End the stage, with a checkpoint, at this step: the schedule is the one of `config.steps`.

    Returns:
        Where the run stands.
    """
    console = console or Console(quiet=True)
    opts = optimizers(model, config)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CHECKPOINT
    trained = load_checkpoint(path, model, opts) if path.exists() else Trained()
    if trained.stage != config.stage:
        trained.stage, trained.step = config.stage, 0
        trained.stages.append(config.stage)
    for opt in opts:
        # A checkpoint brings the earlier stage's weight decay along; the stage's own counts.
        for group in opt.param_groups:
            group["weight_decay"] = config.weight_decay if group["weight_decay"] else 0.0
    loss = loss_function(model, compiled=config.compiled)
    parameters = list(model.parameters())
    step_tokens = config.row_tokens * config.micro_rows * config.accumulation
    last = config.steps if stop_at is None else min(config.steps, stop_at)
    model.train()
    saved = reported = mark = time.monotonic()
    smooth = speed = 0.0
    with _progress(console) as progress:
        task = progress.add_task(config.stage, total=config.steps, loss=0.0, speed=0.0)
        while trained.step < last:
            value = train_step(loss, parameters, opts, rows, config, trained.step)
            now = time.monotonic()
            trained.step += 1
            trained.tokens += step_tokens
            trained.seconds += now - mark
            speed = 0.9 * speed + 0.1 * step_tokens / (now - mark) if speed else step_tokens / (now - mark)
            smooth = 0.9 * smooth + 0.1 * value if smooth else value
            mark = now
            progress.update(task, completed=trained.step, loss=smooth, speed=speed)
            if trained.step % log_every == 0 and not console.is_terminal:
                left = (config.steps - trained.step) * step_tokens / speed / 60
                console.print(
                    f"{time.strftime('%H:%M:%S')} {config.stage} {trained.step}/{config.steps} "
                    f"loss {smooth:.3f} {speed:.0f} tokens/s {left:.0f} minutes left",
                    soft_wrap=True,
                )
            if now - saved > config.checkpoint_seconds:
                save_checkpoint(path, model, opts, trained)
                saved = time.monotonic()
            if report and now - reported > config.report_seconds:
                report(model, trained)
                reported = time.monotonic()
            mark = time.monotonic()
    save_checkpoint(path, model, opts, trained)
    if report:
        report(model, trained)
    return trained
