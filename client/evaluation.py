"""Measure a model on examples.

Every measure takes a `BaseModel`; adapters injected into its module take part while they are active.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from client.dialogue import Dialogue, Example
from client.gate import Scores
from client.model import BaseModel
from client.reading import Row, read
from client.rouge import rouge, rouge1, rouge_l
from florilegium.errors import InputError

__all__ = [
    "ExampleScore",
    "Scores",
    "evaluate",
    "forgetting_probe",
    "mean_scores",
    "nll",
    "probe_texts",
    "rouge1",
    "rouge_l",
    "score_responses",
    "uncertainty",
]

Shots = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleScore:
    """How a model did on one example.

    Attributes:
        example_id: the example's.
        rouge1: ROUGE-1 F1 of its answer against the example's response.
        rouge_l: ROUGE-L F1.
        nats: −log p of the response and its end of turn.
        tokens: how many tokens that are.
    """

    example_id: str
    rouge1: float
    rouge_l: float
    nats: float
    tokens: int

    @property
    def nll_per_token(self) -> float:
        """Nats per supervised token."""
        return self.nats / self.tokens


def evaluate(
    model: BaseModel,
    examples: Sequence[Example],
    *,
    shots: Sequence[Shots] | None = None,
    max_new_tokens: int = 64,
) -> list[ExampleScore]:
    """Answer each example's question greedily and score the answer, and the likelihood of the response it should have.

    Args:
        model: what is measured.
        examples: questions with the responses they should get.
        shots: for each example, questions with answers to put before it.
        max_new_tokens: most tokens of an answer.

    Returns:
        One score per example, in the same order.
    """
    answers = model.respond(
        [example.question for example in examples], shots=shots, max_new_tokens=max_new_tokens, embed=False
    )
    overlaps = score_responses([answer.text for answer in answers], examples)
    readings = _read_responses(model, examples, shots)
    return [
        ExampleScore(example_id=example.example_id, rouge1=one, rouge_l=longest, nats=nats, tokens=tokens)
        for example, (one, longest), (nats, tokens) in zip(examples, overlaps, readings, strict=True)
    ]


def mean_scores(scores: Sequence[ExampleScore]) -> Scores:
    """Average over examples.

    Raises:
        InputError: there is none.
    """
    if not scores:
        raise InputError("there is no example to score", "give at least one held-out example")
    return Scores(
        rouge1=math.fsum(score.rouge1 for score in scores) / len(scores),
        rouge_l=math.fsum(score.rouge_l for score in scores) / len(scores),
        nll_per_token=math.fsum(score.nats for score in scores) / sum(score.tokens for score in scores),
    )


def score_responses(responses: Sequence[str], examples: Sequence[Example]) -> list[tuple[float, float]]:
    """Return ROUGE-1 and ROUGE-L F1 of each response against its example's."""
    return [rouge(response, example.response) for response, example in zip(responses, examples, strict=True)]


def nll(model: BaseModel, examples: Sequence[Example], *, shots: Sequence[Shots] | None = None) -> tuple[float, int]:
    """Return −log p, in nats, of all responses with their ends of turn, and how many tokens that are."""
    readings = _read_responses(model, examples, shots)
    return math.fsum(nats for nats, _ in readings), sum(tokens for _, tokens in readings)


def uncertainty(model: BaseModel, dialogues: Sequence[Dialogue]) -> list[float]:
    """Return how surprised the model is by each dialogue's response, nats per token with the end of turn."""
    pairs = [(dialogue.question, dialogue.response, ()) for dialogue in dialogues]
    return [nats / tokens for nats, tokens in _read_pairs(model, pairs)]


def forgetting_probe(model: BaseModel, texts: Sequence[str] | None = None) -> float:
    """Return the nats per token of texts that are not the user's; a rise since before training is forgetting.

    Args:
        model: what is measured.
        texts: `probe_texts()` if None.
    """
    rows = [model.chat.plain(text) for text in (probe_texts() if texts is None else texts)]
    readings = read(model.module, [Row(ids, 1, len(ids)) for ids in rows if len(ids) > 1])
    tokens = sum(len(reading.nats) for reading in readings)
    if not tokens:
        raise InputError("the probe texts have no token to predict", "give at least one sentence")
    return math.fsum(float(reading.nats.double().sum()) for reading in readings) / tokens


def probe_texts() -> tuple[str, ...]:
    """Return the built-in probe: general English sentences that are nobody's dialogue."""
    text = (resources.files("florilegium") / "texts" / "probe.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)


def _read_responses(
    model: BaseModel, examples: Sequence[Example], shots: Sequence[Shots] | None
) -> list[tuple[float, int]]:
    given = shots or [()] * len(examples)
    return _read_pairs(
        model, [(each.question, each.response, before) for each, before in zip(examples, given, strict=True)]
    )


def _read_pairs(model: BaseModel, pairs: Sequence[tuple[str, str, Shots]]) -> list[tuple[float, int]]:
    rows = []
    for question, response, before in pairs:
        ids, prompt = model.chat.example(question, response, shots=before)
        rows.append(Row(ids, len(prompt.ids), len(ids)))
    return [(float(reading.nats.double().sum()), len(reading.nats)) for reading in read(model.module, rows)]
