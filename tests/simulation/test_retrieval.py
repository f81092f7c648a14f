"""Retrieval puts the most similar annotated dialogues before a question."""

import numpy as np
import pytest

from client.dialogue import Example
from client.model import BaseModel, Embedding
from simulation.retrieval import retrieve


def _pool(*questions: str) -> list[Example]:
    return [
        Example(question=text, response=f"answer {index}", source_id=f"{index:032x}", example_id=f"{index:032x}")
        for index, text in enumerate(questions)
    ]


def test_the_same_question_comes_last_and_its_answer_with_it(shared_tiny_model: BaseModel) -> None:
    pool = _pool("When does the train leave?", "What is my cat called?", "How do I boil an egg?")
    (shots,) = retrieve(shared_tiny_model, pool, ["What is my cat called?"], count=2)
    assert len(shots) == 2
    assert shots[-1] == ("What is my cat called?", "answer 1")


def test_a_rare_shared_word_counts_more_than_a_common_one(
    shared_tiny_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All vectors alike leaves the words to decide. Unweighted, each would share one of four, and the first be nearest.
    alike = Embedding(vector=np.full(4, 0.5, np.float32), eoe_histogram=0.0, eoe_energy=0.0)
    monkeypatch.setattr(BaseModel, "embed", lambda _, dialogues: [alike] * len(dialogues))
    pool = _pool("So it is called.", "Here it is called.", "Now it is Vorwick.")
    (shots,) = retrieve(shared_tiny_model, pool, ["Vorwick called"], count=3)
    assert [question for question, _ in shots] == ["Here it is called.", "So it is called.", "Now it is Vorwick."]


def test_counts_are_bounded_by_the_pool(shared_tiny_model: BaseModel) -> None:
    assert retrieve(shared_tiny_model, [], ["a", "b"], count=3) == [[], []]
    (shots,) = retrieve(shared_tiny_model, _pool("one", "two"), ["one"], count=5)
    assert sorted(question for question, _ in shots) == ["one", "two"]


def test_the_other_questions_are_of_no_account(shared_tiny_model: BaseModel) -> None:
    pool = _pool("When does the train leave?", "What is my cat called?", "How do I boil an egg?", "Is it late?")
    together = retrieve(shared_tiny_model, pool, ["Is the train late?", "My cat?"], count=2)
    assert together == [
        retrieve(shared_tiny_model, pool, [text], count=2)[0] for text in ("Is the train late?", "My cat?")
    ]
