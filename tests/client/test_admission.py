from __future__ import annotations

import copy
import random
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.admission import Admission, Arrival, Mirror, text_bytes
from client.dialogue import Dialogue
from client.selection.held import Held
from client.selection.policies import make_policy
from client.selection.policy import Action, Scored
from florilegium.errors import InputError

RULES = Admission(policy=make_policy("fifo"), bin_bytes=1024, holdout_share=0.0, holdout_bins=2, seed=3)
HOLDOUT = replace(RULES, holdout_share=0.999999)


def arrival(key: int, *, hidden: int = 4, response: str = "fine", wanted: bool = False) -> Arrival:
    scored = Scored(
        dialogue_id=f"d{key}",
        vector=np.random.default_rng(key).normal(size=hidden).astype(np.float32),
        domain="food",
        eoe=0.5,
        dss=0.5,
        question_words=3,
        possessives=0,
    )
    dialogue = Dialogue(question=f"how is soup {key}", response=response, dialogue_id=f"d{key}")
    return Arrival(dialogue, scored, date(2030, 1, 2), wanted=wanted)


def play(rules: Admission, keys: list[int]) -> Mirror:
    mirror = Mirror(held=Held(2), heldout=[], queued=0)
    for number, key in enumerate(keys, start=1):
        each = arrival(key)
        part, decision = rules.decide(each, mirror, frozen=False)
        mirror.follow(each, part, decision, mirror.bin_for(part, decision), number)
    return mirror


@given(keys=st.lists(st.integers(0, 200), min_size=3, max_size=12, unique=True), order=st.randoms())
def test_what_is_held_out_does_not_depend_on_the_order(keys: list[int], order: random.Random) -> None:
    shuffled = sorted(keys, key=lambda _: order.random())
    smallest = sorted((f"d{key}" for key in keys), key=HOLDOUT.rank)[:2]
    assert sorted(play(HOLDOUT, keys).heldout) == sorted(play(HOLDOUT, shuffled).heldout) == sorted(smallest)


@pytest.mark.parametrize("rules", [RULES, HOLDOUT])
def test_deciding_changes_nothing_and_following_does(rules: Admission) -> None:
    mirror = play(rules, [1, 2])
    before = (list(mirror.held.ids), list(mirror.heldout), mirror.held.seen)
    decisions = [rules.decide(arrival(5, wanted=True), mirror, frozen=False) for _ in range(2)]
    assert decisions[0] == decisions[1]
    assert (mirror.held.ids, mirror.heldout, mirror.held.seen) == before
    part, decision = decisions[0]
    assert decision.action is Action.REPLACE
    mirror.follow(arrival(5), part, decision, mirror.bin_for(part, decision), 3)
    ids = mirror.held.ids if part == "train" else mirror.heldout
    assert "d5" in ids
    assert decision.victim_id not in ids


def test_reasons_to_refuse() -> None:
    mirror = play(RULES, [1])
    cases = {
        "too-large": arrival(2, response="x" * 1024),
        "bad-embedding": arrival(2, hidden=5),
    }
    for reason, each in cases.items():
        part, decision = RULES.decide(each, mirror, frozen=False)
        assert (part, decision.action, decision.reason) == ("refused", Action.DROP, reason)
    part, decision = RULES.decide(replace(arrival(2), scored=None), mirror, frozen=False)
    assert (part, decision.reason) == ("refused", "bad-embedding")


def test_a_frozen_buffer_lets_newcomers_wait() -> None:
    mirror = play(RULES, [1])
    part, decision = RULES.decide(arrival(2), mirror, frozen=True)
    assert (part, decision.action) == ("queue", Action.QUEUE)
    waiting = copy.copy(mirror)
    waiting.follow(arrival(2), part, decision, mirror.bin_for(part, decision), 2)
    assert (waiting.queued, waiting.held.ids) == (1, ["d1"])


def test_bytes_are_those_of_utf_8() -> None:
    assert text_bytes("aä", "€") == 3 + 3
    with pytest.raises(InputError, match="half of a surrogate pair"):
        text_bytes("\ud800")
