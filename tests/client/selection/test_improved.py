from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.selection.held import Held
from client.selection.metrics import Vector
from client.selection.policies.improved import Improved, ImprovedConfig, share_of_rank
from client.selection.policies.paper import Paper
from client.selection.policy import Action, Decision, Policy, Scored
from client.selection.scoring import pack_vector, unpack_vector

RNG = np.random.default_rng(0)


def stored(vector: Vector) -> Vector:
    return unpack_vector(pack_vector((vector / np.linalg.norm(vector)).astype(np.float32)))


def make_scored(key: int, seed: int, *, shared: float = 0.0, eoe: float = 0.5, words: int = 8, own: int = 0) -> Scored:
    """Make a set in a direction of its own; `shared` adds a direction that all sets have in common."""
    vector = np.random.default_rng(seed).normal(size=32) + shared
    return Scored(
        dialogue_id=f"d{key}",
        vector=stored(vector.astype(np.float32)),
        domain="unknown",
        eoe=eoe,
        dss=0.0,
        question_words=words,
        possessives=own,
    )


def feed(policy: Policy, held: Held, stream: list[Scored]) -> list[Decision]:
    decisions = []
    for scored in stream:
        newcomer = replace(scored, idd=held.idd_of(scored.vector, scored.domain))
        decision = policy.decide(newcomer, held, RNG)
        if decision.action is Action.KEEP:
            held.add(newcomer, held.seen)
        elif decision.victim_id is not None:
            held.replace(held.ids.index(decision.victim_id), newcomer, held.seen)
        held.seen += 1
        decisions.append(decision)
    return decisions


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=30))
def test_ranks_equal_the_naive_count(values: list[float]) -> None:
    others = max(1, len(values) - 1)
    naive = [
        (sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2) / others
        for value in values
    ]
    assert share_of_rank(np.array(values)).tolist() == pytest.approx(naive)


@pytest.mark.parametrize("shared", [0.0, 3.0, 30.0])
def test_a_newer_twin_takes_the_bin_whatever_the_spread_of_the_embeddings(shared: float) -> None:
    held = Held(20)
    feed(Improved(), held, [make_scored(key, key, shared=shared) for key in range(10)])
    assert len(held) == 10, "sets that only share what all share are no twins"
    nearly = np.random.default_rng(3).normal(size=32) + shared + 1e-3
    newcomer = replace(make_scored(99, 0), vector=stored(nearly.astype(np.float32)))
    (decision,) = feed(Improved(), held, [newcomer])
    assert (decision.action, decision.victim_id, decision.reason) == (Action.REPLACE, "d3", "newer-twin")
    assert len(held) == 10


def test_of_equals_only_the_last_is_held() -> None:
    held = Held(20)
    feed(Improved(), held, [make_scored(key, 7) for key in range(10)])
    assert held.ids == ["d9"]


def test_what_is_the_users_own_stays_and_small_talk_goes() -> None:
    held = Held(10)
    own = [make_scored(key, key, words=10, own=1) for key in range(10)]
    talk = [make_scored(100 + key, 100 + key, words=4) for key in range(10)]
    feed(Improved(), held, talk + own)
    assert sum(key in {scored.dialogue_id for scored in own} for key in held.ids) >= 8


def test_a_long_stream_does_not_freeze_the_buffer_as_the_printed_rule_does() -> None:
    rng = np.random.default_rng(1)
    drawn = [
        make_scored(key, key, eoe=rng.random(), words=int(rng.integers(3, 20)), own=int(rng.integers(2)))
        for key in range(600)
    ]
    stream = [replace(scored, dss=rng.random()) for scored in drawn]
    late = {}
    for policy in (Improved(), Paper()):
        decisions = feed(policy, Held(16), stream)
        late[type(policy)] = sum(decision.action is Action.REPLACE for decision in decisions[300:])
    assert late[Improved] > 5 * late[Paper], late


def test_of_two_equals_the_older_leaves() -> None:
    held = Held(4)
    feed(Improved(config=ImprovedConfig(twin_share=0.0)), held, [make_scored(key, key) for key in range(4)])
    pair = np.random.default_rng(2).normal(size=32) + 0.2 * np.random.default_rng(50).normal(size=32)
    near_the_third = replace(make_scored(9, 0), vector=stored(pair.astype(np.float32)))
    (decision,) = feed(Improved(config=ImprovedConfig(twin_share=0.0)), held, [near_the_third])
    assert decision.victim_id == "d2"


def test_only_the_order_of_the_qualities_counts() -> None:
    rng = np.random.default_rng(2)
    stream = [
        make_scored(key, key, eoe=rng.random(), words=int(rng.integers(3, 20)), own=int(rng.integers(3)))
        for key in range(80)
    ]
    changed = [
        replace(
            scored,
            eoe=scored.eoe**5 / 1000,
            question_words=scored.question_words**2,
            possessives=scored.possessives * 7,
        )
        for scored in stream
    ]
    original = [(decision.action, decision.victim_id) for decision in feed(Improved(), Held(9), stream)]
    assert [(decision.action, decision.victim_id) for decision in feed(Improved(), Held(9), changed)] == original


def test_the_value_by_hand() -> None:
    # Two held sets and a newcomer, all at right angles: distances 1, ranks of distance 1/2 each.
    axes = np.eye(3, dtype=np.float32)
    held = Held(2)
    for key, (eoe, words, own) in enumerate([(0.9, 5, 0), (0.1, 5, 1)]):
        held.add(replace(make_scored(key, 0, eoe=eoe, words=words, own=own), vector=axes[key]), key)
    newcomer = replace(make_scored(2, 0, eoe=0.5, words=9, own=0), vector=axes[2])
    decision = Improved().decide(newcomer, held, RNG)
    # Ranks (eoe, words, possessives): d0 1, 1/4, 1/4; d1 0, 1/4, 1; newcomer 1/2, 1, 1/4. Arrivals 0, 1/2, 1.
    assert decision.evidence["value"] == pytest.approx((1 / 2 + 1 + 1 / 4) / 3 + 0.3 / 2 + 0.2)
    # d0 has (1 + 1/4 + 1/4) / 3 + 0.3 / 2 + 0 = 0.650, d1 (0 + 1/4 + 1) / 3 + 0.3 / 2 + 0.2 / 2 = 0.667.
    assert decision.evidence["lowest_value"] == pytest.approx(0.65)
    assert decision.victim_id == "d0"


def test_a_twin_that_its_user_answered_about_stays() -> None:
    held = Held(20)
    feed(Improved(), held, [make_scored(key, key) for key in range(10)])
    held.note_answer("d3", answered=True)
    (decision,) = feed(Improved(), held, [replace(make_scored(99, 3), dialogue_id="d99")])
    assert (decision.action, decision.reason) == (Action.DROP, "answered-twin")
    assert "d3" in held.ids


def test_what_was_answered_outlasts_its_equals() -> None:
    held = Held(4)
    stream = [make_scored(key, key) for key in range(4)]
    feed(Improved(config=ImprovedConfig(recency=0.0)), held, stream)
    for key in range(4):
        held.note_answer(f"d{key}", answered=key != 2)
    decisions = feed(Improved(config=ImprovedConfig(recency=0.0)), held, [make_scored(9, 9, words=20)])
    assert [decision.victim_id for decision in decisions] == ["d2"]
