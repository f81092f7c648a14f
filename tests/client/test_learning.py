from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from client.adapters import PERSONAL, AdaptedModel, AdapterConfig
from client.dialogue import Example
from client.evaluation import nll
from client.finetuning import FineTuneConfig
from client.gate import Gate, Scores
from client.learning import Adapter, judge, train, wearing
from client.model import BaseModel

CONFIG = FineTuneConfig(epochs=6, batch_size=4, learning_rate=0.02)
IDS = torch.tensor([[1, 9, 30, 7, 12]])


def example(number: int, response: str) -> Example:
    return Example(
        question=f"Where is box {number}?", response=response, source_id=f"s{number}", example_id=f"e{number}"
    )


ROWS = [example(number, "It is the red box by the door.") for number in range(4)]
HELDOUT = [example(number, "It is the blue box.") for number in range(4, 6)]


@pytest.fixture
def model(tiny_model: BaseModel) -> Iterator[AdaptedModel]:
    model = AdaptedModel(tiny_model, AdapterConfig(rank=2), slots=(PERSONAL,))
    yield model
    model.detach()


def scores(nll_per_token: float) -> Scores:
    return Scores(rouge1=0.5, rouge_l=0.5, nll_per_token=nll_per_token)


def measure(model: AdaptedModel, adapter: Adapter) -> Scores:
    with wearing(model, adapter) as base:
        nats, tokens = nll(base, HELDOUT)
    return scores(nats / tokens)


def logits(model: AdaptedModel, adapter: Adapter) -> torch.Tensor:
    with wearing(model, adapter) as base, torch.inference_mode():
        found: torch.Tensor = base.module(IDS).logits
        return found


def test_an_adapter_is_worn_whatever_the_slot_held_before(model: AdaptedModel) -> None:
    bare, trained = Adapter.of(model), train(model, ROWS, CONFIG)
    assert bare.state is None
    for _ in range(2):
        assert torch.equal(logits(model, trained), logits(model, Adapter.of(model)))
        assert not torch.equal(logits(model, bare), logits(model, trained))
    with torch.inference_mode():
        assert torch.equal(model.module(IDS).logits, logits(model, bare)), "outside a block none is worn"


def test_training_says_where_it_started(model: AdaptedModel) -> None:
    first = train(model, ROWS, CONFIG)
    assert first.start is None
    assert first.rows == frozenset(ROWS)
    assert first.training is not None
    assert not first.diverged
    second = train(model, ROWS, CONFIG)
    assert first.state is not None
    assert second.start is not None
    assert all(torch.equal(tensor, second.start[key]) for key, tensor in first.state.items())


def test_training_that_runs_away_leaves_the_beginning(model: AdaptedModel) -> None:
    before = model.state(PERSONAL)
    trained = train(model, ROWS, FineTuneConfig(epochs=6, batch_size=4, learning_rate=1e30, clip_norm=1e30))
    assert trained.diverged
    assert trained.state is not None
    assert all(torch.equal(tensor, before[key]) for key, tensor in trained.state.items())


def test_the_candidate_is_the_likeliest_part_of_what_was_trained(model: AdaptedModel) -> None:
    strengths = (1.0, 0.5, 0.25, 0.125)
    trained = train(model, ROWS, CONFIG)
    measured = {strength: measure(model, trained.at(strength)).nll_per_token for strength in strengths}
    best = min(measured, key=measured.__getitem__)
    assert best < 1.0, "with nothing learned too much this test shows nothing"
    seen: list[Adapter] = []

    def score(adapter: Adapter) -> Scores:
        seen.append(adapter)
        return measure(model, adapter)

    trial = judge(model, trained, Adapter(), Gate(strengths=strengths), HELDOUT, score=score)
    assert trial.candidate.strength == best
    assert trial.scores.nll_per_token == measured[best]
    assert trial.present.nll_per_token == measure(model, Adapter()).nll_per_token
    assert [adapter.strength for adapter in seen] == [best, 1.0]
    assert seen[1] is not trained
    assert trial.promoted == (measured[best] <= trial.present.nll_per_token)


@pytest.mark.parametrize(("candidate", "promoted"), [(1.0, True), (3.0, False)])
def test_the_gate_decides_by_the_scores_that_it_is_given(model: AdaptedModel, candidate: float, promoted: bool) -> None:
    trained, present = train(model, ROWS, CONFIG), Adapter()
    trial = judge(
        model,
        trained,
        present,
        Gate(strengths=(0.5,)),
        HELDOUT,
        score=lambda adapter: scores(2.0 if adapter is present else candidate),
    )
    assert trial.promoted == promoted
    assert (trial.scores.nll_per_token, trial.present.nll_per_token) == (candidate, 2.0)


def test_shots_stand_before_the_held_out_questions(model: AdaptedModel) -> None:
    """The strength that is best with examples before the questions is chosen with them there."""
    strengths = (1.0, 0.5, 0.25, 0.125)
    trained = train(model, ROWS, CONFIG)
    shots = [[(each.question, each.response)] for each in HELDOUT]
    found = {}
    for given in (None, shots):
        values = {}
        for strength in strengths:
            with wearing(model, trained.at(strength)) as base:
                values[strength] = nll(base, HELDOUT, shots=given)[0]
        trial = judge(
            model, trained, Adapter(), Gate(strengths=strengths), HELDOUT, score=lambda _: scores(1.0), shots=given
        )
        assert trial.candidate.strength == min(values, key=values.__getitem__)
        found[given is None] = values
    assert found[True] != found[False]
