import math
from typing import Literal

import pytest
import torch

from client.finetuning.config import FineTuneConfig
from client.finetuning.optimizer import SGD, AdamW, learning_rate


@pytest.mark.parametrize(
    ("kind", "theirs_kind"), [(AdamW, torch.optim.AdamW), (SGD, torch.optim.SGD)], ids=["adamw", "sgd"]
)
def test_steps_without_decay_are_those_of_torch(
    kind: type[SGD | AdamW], theirs_kind: type[torch.optim.Optimizer]
) -> None:
    compare(kind, theirs_kind, weight_decay=0.0)


def test_decay_is_decoupled_as_torch_s_adamw_has_it() -> None:
    compare(AdamW, torch.optim.AdamW, weight_decay=0.1)


def test_sgd_decays_by_its_share_of_the_weights() -> None:
    weights = torch.tensor([2.0, -4.0])
    SGD(weights, weight_decay=0.1).step(torch.tensor([1.0, 0.0]), 0.5)
    assert weights.tolist() == pytest.approx([2 * 0.95 - 0.5, -4 * 0.95])  # (1 − η λ) w − η g


def compare(kind: type[SGD | AdamW], theirs_kind: type[torch.optim.Optimizer], *, weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(50, generator=generator)
    theirs = ours.clone().requires_grad_()
    optimizer = kind(ours, weight_decay=weight_decay)
    reference = theirs_kind([theirs], lr=1.0, weight_decay=weight_decay)  # type: ignore[call-arg]
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
