from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.dialogue import Dialogue
from client.selection.lexicons import Lexicons
from client.selection.metrics import Vector
from client.selection.scoring import pack_vector, score, unpack_vector

LEXICONS = Lexicons.of({"food": ["soup"], "health": ["doctor"]})


@dataclass(frozen=True)
class Embedded:
    vector: Vector
    eoe_energy: float = 0.25
    eoe_histogram: float = 1.25


def unit_vectors(count: int, hidden: int, seed: int) -> Vector:
    vectors = np.random.default_rng(seed).normal(size=(count, hidden))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def test_scores_are_of_question_and_response() -> None:
    dialogue = Dialogue(question="Soup, please", response="No soup; ask the doctor!", dialogue_id="d")
    scored = score(dialogue, Embedded(np.array([0, 5], np.float32)), LEXICONS)
    assert scored is not None
    assert (scored.dialogue_id, scored.domain, scored.eoe) == ("d", "food", 0.25)
    # Of 7 words 2 are in the first of two lexicons and 1 in the second.
    assert scored.dss == pytest.approx(3 / 7 / 2)
    assert scored.vector.tolist() == [0, 1]
    other = score(dialogue, Embedded(np.array([0, 5], np.float32)), LEXICONS, "histogram")
    assert other is not None
    assert other.eoe == 1.25


@pytest.mark.parametrize("vector", [[0, 0], [np.nan, 1], [np.inf, 0], []])
def test_an_embedding_without_a_direction_has_no_score(vector: list[float]) -> None:
    assert score(Dialogue(question="q", response=""), Embedded(np.array(vector, np.float32)), LEXICONS) is None


def test_the_largest_and_smallest_floats_have_a_direction() -> None:
    for size in (1e38, 1e-38):
        scored = score(Dialogue(question="q", response=""), Embedded(np.array([size, 0], np.float32)), LEXICONS)
        assert scored is not None
        assert scored.vector.tolist() == [1, 0]


@given(st.sampled_from([2, 8, 256, 896, 4096]), st.integers(0, 1000))
def test_storage_keeps_cosines(hidden: int, seed: int) -> None:
    left, right = unit_vectors(2, hidden, seed)
    stored_left, stored_right = (unpack_vector(pack_vector(vector)) for vector in (left, right))
    assert abs(float(stored_left @ stored_right) - float(left @ right)) < 0.001
    assert abs(float(stored_left @ stored_left) - 1) < 0.001
    assert np.array_equal(unpack_vector(pack_vector(stored_left)), stored_left), "storing again changes nothing"


@given(st.sampled_from([8, 256, 896, 4096]), st.integers(0, 1000))
def test_cosines_of_stored_vectors_are_exact_in_any_order(hidden: int, seed: int) -> None:
    vectors = np.stack([unpack_vector(pack_vector(vector)) for vector in unit_vectors(5, hidden, seed)])
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    assert np.array_equal((vectors @ vectors.T).astype(np.float64), exact)
    order = np.random.default_rng(seed).permutation(hidden)
    for row in range(5):
        assert np.array_equal(vectors[:, order] @ vectors[row, order], exact[row].astype(np.float32))
