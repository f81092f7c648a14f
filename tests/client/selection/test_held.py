from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from client.selection.held import Held
from client.selection.metrics import idd
from client.selection.policy import Scored
from client.selection.scoring import pack_vector, unpack_vector

DOMAINS = ("food", "health", "unknown")


def make_scored(key: int, direction: int, domain: str) -> Scored:
    """Make a set; equal directions have equal vectors, so that ties and duplicates occur."""
    vector = np.random.default_rng(direction).normal(size=8).astype(np.float32)
    vector = unpack_vector(pack_vector(vector / np.linalg.norm(vector)))
    return Scored(dialogue_id=f"d{key}", vector=vector, domain=domain, eoe=direction / 10, dss=key / 100)


SETS = st.tuples(st.integers(0, 8), st.sampled_from(DOMAINS))
CHANGES = st.lists(st.tuples(st.integers(0, 10_000), SETS), max_size=40)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), CHANGES)
def test_the_index_equals_the_naive_reference_after_any_changes(
    capacity: int, changes: list[tuple[int, tuple[int, str]]]
) -> None:
    held, kept = Held(capacity), list[Scored]()
    for number, (place, description) in enumerate(changes):
        scored = make_scored(number, *description)
        if held.has_room:
            held.add(scored, number)
            kept.append(scored)
        else:
            row = place % capacity
            held.replace(row, scored, number)
            kept[row] = scored
        if place % 3 == 0:
            held.note_answer(scored.dialogue_id, answered=True)
            kept[kept.index(scored)] = replace(scored, answered=True)
        check_against_naive(held, kept)
    rebuilt = Held.build(capacity, list(zip(kept, held.arrived.tolist(), strict=True)))
    assert rebuilt.idd.tolist() == held.idd.tolist(), "to the bit"
    assert rebuilt.nearest_cosine.tolist() == held.nearest_cosine.tolist()


def check_against_naive(held: Held, kept: list[Scored]) -> None:
    assert held.ids == [scored.dialogue_id for scored in kept]
    for row, scored in enumerate(kept):
        others = [other for other in kept if other is not scored]
        peers = [other.vector for other in others if other.domain == scored.domain]
        assert abs(held.idd[row] - idd(scored.vector, np.array(peers))) < 1e-5
        cosines = [float(other.vector @ scored.vector) for other in others]
        assert abs(held.nearest_cosine[row] - max(cosines, default=-1.0)) < 1e-5
        if others:
            nearest = kept[held.nearest[row]]
            assert nearest is not scored
            assert abs(float(nearest.vector @ scored.vector) - max(cosines)) < 1e-5
        else:
            assert held.nearest[row] == -1
    assert held.eoe.tolist() == [scored.eoe for scored in kept]
    assert held.dss.tolist() == [scored.dss for scored in kept]
    assert held.answered.tolist() == [scored.answered for scored in kept]
    oldest = min(range(len(kept)), key=lambda row: (kept[row].answered, held.arrived[row]), default=None)
    assert held.oldest_unanswered == (None if oldest is None else kept[oldest].dialogue_id)


@settings(max_examples=30, deadline=None)
@given(st.lists(SETS, min_size=1, max_size=30), SETS)
def test_a_newcomer_costs_what_the_definition_says(
    descriptions: list[tuple[int, str]], newcomer: tuple[int, str]
) -> None:
    kept = [make_scored(number, *each) for number, each in enumerate(descriptions)]
    held = Held.build(40, ((scored, number) for number, scored in enumerate(kept)), seen=7)
    scored = make_scored(99, *newcomer)
    peers = np.array([each.vector for each in kept if each.domain == scored.domain])
    assert abs(held.idd_of(scored.vector, scored.domain) - idd(scored.vector, peers)) < 1e-5
    assert np.allclose(held.cosines(scored.vector), [each.vector @ scored.vector for each in kept], atol=1e-6)
    assert held.seen == 7
    distances = [float(np.square(each.vector - scored.vector).sum()) / 2 for each in kept]
    assert np.allclose(held.distances(scored.vector), distances, atol=1e-6)
    assert (held.distances(scored.vector) == 0).tolist() == [distance == 0 for distance in distances]


def test_building_at_once_equals_adding_one_by_one() -> None:
    kept = [make_scored(number, number % 9, DOMAINS[number % 3]) for number in range(300)]  # more than one block
    built = Held.build(300, ((scored, number) for number, scored in enumerate(kept)))
    added = Held(300)
    for number, scored in enumerate(kept):
        added.add(scored, number)
    assert built.ids == added.ids
    assert built.idd.tolist() == added.idd.tolist(), "to the bit"
    assert built.nearest_cosine.tolist() == added.nearest_cosine.tolist()
    assert built.arrived.tolist() == added.arrived.tolist() == list(range(300))


def test_a_row_of_equal_sets_has_no_common_neighbour() -> None:
    held = Held(200)
    for number in range(200):
        held.add(make_scored(number, 0, "food"), number)
    assert np.bincount(held.nearest).max() <= 3, "replacing any of them must not cost a search for all others"


def test_an_empty_index_answers() -> None:
    held = Held(3)
    scored = make_scored(0, 0, "food")
    assert held.cosines(scored.vector).shape == held.idd.shape == held.distances(scored.vector).shape == (0,)
    assert held.idd_of(scored.vector, "food") == 1.0
    assert held.hidden_size is None
    assert held.has_room


def test_asked_again_for_the_same_newcomer_nothing_is_computed() -> None:
    held = Held(3)
    held.add(make_scored(0, 0, "food"), 0)
    vector = make_scored(1, 1, "food").vector
    assert held.cosines(vector) is held.cosines(vector)
    first = held.cosines(vector)
    held.add(make_scored(2, 2, "food"), 2)
    assert len(first) == 1
    assert len(held.cosines(vector)) == 2, "a change is seen"
