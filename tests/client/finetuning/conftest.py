from collections.abc import Callable, Sequence

import pytest

from client.adapters import PERSONAL, SHARED, AdaptedModel, AdapterConfig
from client.dialogue import Example
from client.finetuning import FineTuneConfig
from client.model import BaseModel

WORDS = ("rain", "tea", "garden", "letter", "window", "bread", "seven", "uncle", "north", "candle", "bicycle", "soup")


def example(number: int) -> Example:
    """One row whose lengths and words depend on its number alone."""
    question = " ".join(WORDS[(number * 5 + k) % 12] for k in range(1 + number % 7)) + "?"
    response = " ".join(WORDS[(number * 7 + k * k) % 12] for k in range(1 + number % 4)) + "."
    return Example(question=question, response=response, source_id=f"{number:04d}", example_id=f"{number:04d}")


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    return [example(number) for number in range(11)]


@pytest.fixture
def wrap(tiny_model: BaseModel) -> Callable[..., AdaptedModel]:
    """Adapters on a fresh copy of the tiny model; the shared slot is not blank, so that it takes part."""

    def make(
        *, slots: Sequence[str] = (SHARED, PERSONAL), dropout: float = 0.2, top_layers: int | None = None
    ) -> AdaptedModel:
        model = AdaptedModel(tiny_model, AdapterConfig(rank=4, dropout=dropout, top_layers=top_layers), slots=slots)
        if SHARED in slots:
            model.flat(SHARED).normal_(std=0.05)
        return model

    return make


@pytest.fixture
def adapted(wrap: Callable[..., AdaptedModel]) -> AdaptedModel:
    return wrap()


@pytest.fixture
def config() -> FineTuneConfig:
    """Small steps of float32, so that what is equal in theory is equal to the bit."""
    return FineTuneConfig(
        learning_rate=1e-2, epochs=2, batch_size=4, micro_tokens=48, dtype="float32", checkpoint_steps=1, seed=3
    )
