"""Optimizers of one flat tensor: AdamW (Kingma & Ba 1412.6980; Loshchilov & Hutter 1711.05101) and SGD.

    AdamW   m ← β₁ m + (1−β₁) g      v ← β₂ v + (1−β₂) g²      w ← (1 − η λ) w − η m̂ / (√v̂ + ε)
    SGD     w ← (1 − η λ) w − η g

What is trained lies in one piece of memory, so a step is a handful of passes over it, and AdamW's whole state is two
tensors and a count. SGD has none: what federated averaging was first described with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from client.finetuning.config import FineTuneConfig

__all__ = ["SGD", "AdamW", "Optimizer", "learning_rate", "make_optimizer"]

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class Optimizer(Protocol):
    """Move one flat tensor against its gradients.

    Attributes:
        steps: updates made.
    """

    steps: int

    @property
    def moments(self) -> Mapping[str, Tensor]:
        """The state beside the count, by name; of the parameters' shape, moved in place."""
        ...

    def step(self, gradient: Tensor, rate: float) -> None:
        """Move the parameters against `gradient`, at learning rate `rate`."""
        ...


def make_optimizer(parameters: Tensor, config: FineTuneConfig) -> Optimizer:
    """Return the optimizer that the config names."""
    kind = SGD if config.optimizer == "sgd" else AdamW
    return kind(parameters, weight_decay=config.weight_decay)


class SGD:
    """Gradient descent without momentum."""

    def __init__(self, parameters: Tensor, *, weight_decay: float) -> None:
        self._parameters = parameters
        self._weight_decay = weight_decay
        self.steps = 0

    @property
    def moments(self) -> Mapping[str, Tensor]:
        """There are none."""
        return {}

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float) -> None:
        """Move the parameters against `gradient`, at learning rate `rate`."""
        self.steps += 1
        self._parameters.mul_(1 - rate * self._weight_decay).sub_(gradient, alpha=rate)


class AdamW:
    """Adam with decoupled weight decay.

    Attributes:
        mean: first moment, shape of the parameters.
        square: second moment.
    """

    def __init__(self, parameters: Tensor, *, weight_decay: float) -> None:
        self._parameters = parameters
        self._weight_decay = weight_decay
        self.mean = torch.zeros_like(parameters)
        self.square = torch.zeros_like(parameters)
        self.steps = 0

    @property
    def moments(self) -> Mapping[str, Tensor]:
        """The moments by name."""
        return {"mean": self.mean, "square": self.square}

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float) -> None:
        """Move the parameters against `gradient`, at learning rate `rate`."""
        self.steps += 1
        self.mean.lerp_(gradient, 1 - _BETA1)
        self.square.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        scale = math.sqrt(1 - _BETA2**self.steps)
        denominator = self.square.sqrt().div_(scale).add_(_EPSILON)
        self._parameters.mul_(1 - rate * self._weight_decay)
        self._parameters.addcdiv_(self.mean, denominator, value=-rate / (1 - _BETA1**self.steps))


def learning_rate(config: FineTuneConfig, step: int, steps: int) -> float:
    """Return the learning rate of `step` (from 0) of `steps`."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant" or step < config.warmup_steps:
        return config.learning_rate * warm
    share = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))
