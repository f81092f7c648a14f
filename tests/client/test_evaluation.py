from __future__ import annotations

import math

import pytest
import torch

from client.dialogue import Dialogue, Example
from client.evaluation import (
    ExampleScore,
    evaluate,
    forgetting_probe,
    mean_scores,
    nll,
    probe_texts,
    score_responses,
    uncertainty,
)
from client.model import BaseModel
from client.rouge import rouge
from florilegium.errors import InputError

ROWS = (
    ("What should I cook for dinner tonight?", "You could make the lentil soup."),
    ("Why?", "It takes two hours."),
    ("My sister is coming. What shall we do?", "Water the plants."),
    ("How long does the train to the coast take, and do I like the seats by the window?", "Yes."),
)
EXAMPLES = tuple(
    Example(question=question, response=response, source_id=f"s{at}", example_id=f"e{at}")
    for at, (question, response) in enumerate(ROWS)
)
SHOTS = [[("Where is the key?", "Under the mat.")], [], [("Who?", "Me."), ("When?", "Now.")], []]


def loss(model: BaseModel, prompt: list[int], response: str) -> tuple[float, int]:
    """Return what transformers' own loss says of a response and its end, behind a prompt."""
    answer = [*model.tokenizer(response, add_special_tokens=False)["input_ids"], 5]
    labels = torch.tensor([[-100] * len(prompt) + answer])
    with torch.inference_mode():
        mean = float(model.module(torch.tensor([prompt + answer]), labels=labels).loss)
    return mean * len(answer), len(answer)


def test_uncertainty_is_the_loss_of_the_own_response(shared_tiny_model: BaseModel) -> None:
    dialogues = [Dialogue(question=question, response=response) for question, response in ROWS]
    for dialogue, found in zip(dialogues, uncertainty(shared_tiny_model, dialogues), strict=True):
        nats, tokens = loss(shared_tiny_model, shared_tiny_model.prompt_ids(dialogue.question), dialogue.response)
        assert found == pytest.approx(nats / tokens, rel=1e-4)


@pytest.mark.parametrize("shots", [None, SHOTS])
def test_evaluate_equals_one_by_one(shared_tiny_model: BaseModel, shots: list[list[tuple[str, str]]] | None) -> None:
    model = shared_tiny_model
    scores = evaluate(model, EXAMPLES, shots=shots, max_new_tokens=6)
    for at, (example, score) in enumerate(zip(EXAMPLES, scores, strict=True)):
        prompt = model.prompt_ids(example.question, shots=shots[at] if shots else ())
        (answer,) = model.generate([prompt], max_new_tokens=6)
        nats, tokens = loss(model, prompt, example.response)
        assert (score.example_id, score.tokens) == (example.example_id, tokens)
        assert (score.rouge1, score.rouge_l) == rouge(answer.text, example.response)
        assert score.nats == pytest.approx(nats, rel=1e-4)
        assert score.nll_per_token == pytest.approx(nats / tokens, rel=1e-4)
    total, count = nll(model, EXAMPLES, shots=shots)
    assert total == pytest.approx(sum(score.nats for score in scores))
    assert count == sum(score.tokens for score in scores)


def test_responses_are_scored_against_their_own_example() -> None:
    overlaps = score_responses([response for _, response in ROWS], EXAMPLES)
    assert overlaps == [(1.0, 1.0)] * len(ROWS)
    assert score_responses(["Yes."] * 4, EXAMPLES) == [(0.0, 0.0)] * 3 + [(1.0, 1.0)]


def test_means_by_hand() -> None:
    """(0.2 + 0.6) / 2 = 0.4 and (0.1 + 0.5) / 2 = 0.3 per example; (3 + 9) nats over (2 + 4) tokens = 2."""
    scores = [
        ExampleScore(example_id="a", rouge1=0.2, rouge_l=0.1, nats=3.0, tokens=2),
        ExampleScore(example_id="b", rouge1=0.6, rouge_l=0.5, nats=9.0, tokens=4),
    ]
    mean = mean_scores(scores)
    assert (mean.rouge1, mean.rouge_l, mean.nll_per_token) == pytest.approx((0.4, 0.3, 2.0))


def test_no_example_has_no_mean(shared_tiny_model: BaseModel) -> None:
    assert evaluate(shared_tiny_model, []) == []
    assert nll(shared_tiny_model, []) == (0.0, 0)
    with pytest.raises(InputError, match="there is no example to score"):
        mean_scores([])


def test_the_probe_is_the_mean_loss_of_plain_text(shared_tiny_model: BaseModel) -> None:
    model = shared_tiny_model
    texts = ["The river is high.", "Bread needs salt and water."]
    nats, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([[1, *model.tokenizer(text)["input_ids"]]])
        with torch.inference_mode():
            nats += float(model.module(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert forgetting_probe(model, texts) == pytest.approx(nats / tokens, rel=1e-4)
    assert math.isfinite(forgetting_probe(model))
    with pytest.raises(InputError, match="no token to predict"):
        forgetting_probe(model, [])


def test_the_built_in_probe() -> None:
    texts = probe_texts()
    assert len(texts) == len(set(texts)) == 40
    assert all(text.endswith(".") and text == text.strip() for text in texts)


def test_forgetting_raises_the_probe(tiny_model: BaseModel) -> None:
    before = forgetting_probe(tiny_model)
    with torch.no_grad():
        for parameter in tiny_model.module.get_input_embeddings().parameters():
            parameter.mul_(5.0)
    assert forgetting_probe(tiny_model) > before + 1.0
