"""What to train, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from florilegium.errors import ConfigError

__all__ = ["FineTuneConfig", "FineTuneReport", "Precision", "Progress"]

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneConfig:
    """How to fine-tune one slot.

    Attributes:
        learning_rate: the optimizer's, after the warm-up.
        optimizer: "adamw", or "sgd" without momentum.
        epochs: passes over the examples.
        batch_size: examples a step; an epoch is cut into steps of (nearly) equal size.
        max_steps: stop after so many steps, if the epochs have not ended before.
        weight_decay: decoupled; it pulls the adapter to zero, not to where it started.
        warmup_steps: steps over which the learning rate rises from zero.
        schedule: "constant", or "cosine" down to zero over all steps.
        clip_norm: bound on the gradient's norm; infinite leaves it alone.
        normalization: "example" gives each example the same weight (mean over examples of the mean over its tokens),
            "token" each supervised token of a batch.
        dtype: of the frozen weights and the activations; "auto" is bfloat16 where the processor multiplies it natively.
            The adapter, its gradient and the optimizer are float32 always.
        gradient_checkpointing: recompute activations in the backward pass; None lets the memory budget decide.
        memory_mb: bound on the process's resident memory (on a GPU: its allocated memory), in MiB.
        micro_tokens: tokens that go through the model at once; a batch of more is accumulated.
        trunk_cache_mb: bound on the cache of hidden states below the first trained layer; 0 turns it off.
        checkpoint_steps: steps between checkpoints, if there is a place for them.
        seed: where the order of examples and the dropout come from.

    Raises:
        ConfigError: a value is out of its range.
    """

    learning_rate: float = 3e-4
    optimizer: Literal["adamw", "sgd"] = "adamw"
    epochs: int = 3
    batch_size: int = 16
    max_steps: int | None = None
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    clip_norm: float = 1.0
    normalization: Literal["example", "token"] = "example"
    dtype: Precision = "auto"
    gradient_checkpointing: bool | None = None
    memory_mb: int | None = None
    micro_tokens: int = 1024
    trunk_cache_mb: int = 256
    checkpoint_steps: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs", "batch_size", "micro_tokens", "checkpoint_steps"):
            _require(name, getattr(self, name), above=0)
        for name in ("weight_decay", "warmup_steps", "trunk_cache_mb"):
            _require(name, getattr(self, name), above=-1e-300)
        if self.clip_norm != math.inf:
            _require("clip_norm", self.clip_norm, above=0)
        for name in ("max_steps", "memory_mb"):
            if getattr(self, name) is not None:
                _require(name, getattr(self, name), above=0)


def _require(name: str, value: float, *, above: float) -> None:
    if not (math.isfinite(value) and value > above):
        rule = "> 0" if above == 0 else ">= 0"
        raise ConfigError(f"{name} must be {rule}, got {value}", "leave it out for the default")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a fine-tuning is.

    Attributes:
        step: steps done.
        steps: steps in all.
        loss: of the last step's batch.
        tokens_per_second: since the start.
        eta_seconds: to the end, at that pace.
    """

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    eta_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneReport:
    """What a fine-tuning did.

    Attributes:
        steps: optimizer steps in the adapter now.
        rows: examples seen, repeats counted.
        tokens: tokens fed to the model.
        loss_first: mean training loss of the first step's batch (nats a token).
        loss_last: that of the last step's.
        seconds: wall-clock time of this call.
        peak_bytes: highest resident memory of the process during the call (on a GPU: allocated memory).
        planned_bytes: what the plan expected at most.
        choices: what was chosen to fit the memory budget, for reports.
        resumed_step: the checkpoint's step that this call went on from; 0 for a fresh start.
        stopped: why it ended early, with the adapter as before the call; empty when all went well.
    """

    steps: int
    rows: int
    tokens: int
    loss_first: float
    loss_last: float
    seconds: float
    peak_bytes: int
    planned_bytes: int
    choices: Mapping[str, str | int | bool] = field(default_factory=dict)
    resumed_step: int = 0
    stopped: str = ""
