import math
from typing import Literal

import pytest
import torch

from client.finetuning.config import FineTuneConfig
from client.finetuning.optimizer import AdamW, learning_rate


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_those_of_torch(weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(50, generator=generator)
    theirs = ours.clone().requires_grad_()
    optimizer = AdamW(ours, weight_decay=weight_decay)
    reference = torch.optim.AdamW([theirs], lr=1.0, weight_decay=weight_decay)
    for rate in (1e-2, 3e-3, 1e-1, 1e-2):
        gradient = torch.randn(50, generator=generator)
        optimizer.step(gradient, rate)
        theirs.grad = gradient
        reference.param_groups[0]["lr"] = rate
        reference.step()
        assert torch.allclose(ours, theirs.detach(), atol=1e-6)


@pytest.mark.parametrize(
    ("warmup", "schedule", "expected"),
    [
        (0, "constant", [1.0, 1.0, 1.0, 1.0]),
        (2, "constant", [0.5, 1.0, 1.0, 1.0]),
        (0, "cosine", [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),  # (1 + cos(π k/4)) / 2
        (2, "cosine", [0.5, 1.0, 1.0, 0.5]),
    ],
)
def test_the_learning_rate_warms_up_and_falls(
    warmup: int, schedule: Literal["constant", "cosine"], expected: list[float]
) -> None:
    config = FineTuneConfig(learning_rate=1.0, warmup_steps=warmup, schedule=schedule)
    assert [learning_rate(config, step, 4) for step in range(4)] == pytest.approx(expected)
