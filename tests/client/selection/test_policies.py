"""The contract that every selection policy keeps, and what each one promises beyond it."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.selection import policies
from client.selection.held import Held
from client.selection.policies import POLICIES, make_policy
from client.selection.policies.paper import Paper
from client.selection.policy import Action, Decision, Policy, Scored
from client.selection.scoring import pack_vector, unpack_vector
from florilegium.errors import ConfigError

DOMAINS = ("food", "health", "unknown")


def make_scored(key: int, direction: int = 0, domain: str = "food", eoe: float = 0.5, dss: float = 0.1) -> Scored:
    vector = np.random.default_rng(direction).normal(size=8).astype(np.float32)
    vector = unpack_vector(pack_vector(vector / np.linalg.norm(vector)))
    return Scored(dialogue_id=f"d{key}", vector=vector, domain=domain, eoe=eoe, dss=dss)


def make_stream(length: int, seed: int = 0) -> list[Scored]:
    """Draw a stream with repeats, several domains and text without a lexicon word."""
    rng = np.random.default_rng(seed)
    return [
        make_scored(
            key,
            direction=int(rng.integers(length)),
            domain=DOMAINS[rng.integers(3)],
            eoe=float(rng.random()),
            dss=float(rng.random() * (rng.random() < 0.7)),
        )
        for key in range(length)
    ]


def feed(policy: Policy, held: Held, stream: list[Scored], seed: int = 0) -> list[Decision]:
    """Do what the buffer does with a policy's decisions, and check each against the contract."""
    decisions = []
    for number, scored in enumerate(stream):
        newcomer = replace(scored, idd=held.idd_of(scored.vector, scored.domain))
        before = (list(held.ids), held.vectors.tolist(), held.idd.tolist())
        decision = policy.decide(newcomer, held, np.random.default_rng((seed, number)))
        assert (held.ids, held.vectors.tolist(), held.idd.tolist()) == before, "a policy looks and does not touch"
        assert all(math.isfinite(value) for value in decision.evidence.values())
        assert decision.reason
        assert decision.action is not Action.QUEUE
        held.seen += 1
        if decision.action is Action.KEEP:
            assert held.has_room
            held.add(newcomer, number)
        elif decision.action is Action.REPLACE:
            assert decision.victim_id in held.ids
            held.replace(held.ids.index(decision.victim_id), newcomer, number)
        assert len(held) <= held.capacity
        decisions.append(decision)
    return decisions


def with_scores(scored: Scored, scores: Mapping[str, float]) -> Scored:
    return replace(
        scored,
        eoe=scores.get("eoe", scored.eoe),
        dss=scores.get("dss", scored.dss),
        idd=scores.get("idd", scored.idd),
    )


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> Policy:
    return make_policy(request.param)


@pytest.mark.parametrize("capacity", [1, 2, 7])
def test_contract_over_a_mixed_stream(policy: Policy, capacity: int) -> None:
    feed(policy, Held(capacity), make_stream(80))


def test_the_first_newcomer_is_kept_and_the_buffer_fills(policy: Policy) -> None:
    held = Held(8)
    first, *_ = feed(policy, held, [make_scored(key, direction=key) for key in range(8)])
    assert first.action is Action.KEEP
    assert len(held) == 8, "dialogues that differ are all kept while there is room"


def test_decisions_depend_on_newcomer_buffer_and_seed_alone(policy: Policy) -> None:
    stream = make_stream(60)
    assert feed(policy, Held(5), stream) == feed(policy, Held(5), stream)


def test_a_rebuilt_index_changes_no_decision(policy: Policy) -> None:
    stream = make_stream(60)
    held = Held(6)
    feed(policy, held, stream[:30])
    by_id = {scored.dialogue_id: scored for scored in stream}
    rebuilt = Held.build(
        6, [(by_id[key], int(n)) for key, n in zip(held.ids, held.arrived, strict=True)], seen=held.seen
    )
    assert feed(policy, held, stream[30:]) == feed(policy, rebuilt, stream[30:])


def test_one_unknown_domain_is_no_trouble(policy: Policy) -> None:
    """A user whose language meets no lexicon: every DSS is 0 and every domain unknown."""
    held = Held(4)
    stream = [make_scored(key, direction=key, domain="unknown", eoe=key % 7 / 7, dss=0.0) for key in range(40)]
    feed(policy, held, stream)
    assert len(held) == 4


def test_identical_items_are_no_trouble(policy: Policy) -> None:
    held = Held(4)
    feed(policy, held, [make_scored(key) for key in range(20)])
    assert 1 <= len(held) <= 4


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(POLICIES)),
    st.integers(1, 5),
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(DOMAINS), st.floats(0, 7), st.floats(0, 1)),
        min_size=1,
        max_size=25,
    ),
)
def test_contract_over_drawn_streams(name: str, capacity: int, drawn: list[tuple[int, str, float, float]]) -> None:
    feed(make_policy(name), Held(capacity), [make_scored(key, *each) for key, each in enumerate(drawn)])


def test_a_policy_is_one_file_and_one_line() -> None:
    modules = [
        importlib.import_module(f"client.selection.policies.{module.name}")
        for module in pkgutil.iter_modules(policies.__path__)
    ]
    factories = [getattr(module, name) for module in modules for name in module.__all__ if not name.endswith("Config")]
    assert len(factories) == len(modules) == len(POLICIES)
    assert all(factory in POLICIES.values() for factory in factories)


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match="no selection policy 'improve'; did you mean 'improved'"):
        make_policy("improve")


def test_paper_replaces_only_what_it_beats_on_all_three() -> None:
    held = Held(3)
    held.add(make_scored(0, direction=1, eoe=0.2, dss=0.2), 0)
    held.add(make_scored(1, direction=1, eoe=0.9, dss=0.2), 1)
    held.add(make_scored(2, direction=1, eoe=0.2, dss=0.9), 2)
    # Only the first is weaker in EOE and in DSS; all three are duplicates of one another, so that IDD 0 is beaten.
    newcomer = replace(make_scored(3, direction=2, eoe=0.5, dss=0.5), idd=0.7)
    decision = Paper().decide(newcomer, held, np.random.default_rng(0))
    assert decision.victim_id == "d0"
    assert decision.evidence["beaten"] == 1
    for weaker in ({"eoe": 0.2}, {"dss": 0.2}, {"idd": -0.1}):
        dropped = Paper().decide(with_scores(newcomer, weaker), held, np.random.default_rng(0))
        assert dropped.action is Action.DROP, "a tie is not a win"


def test_paper_draws_uniformly_among_the_beaten() -> None:
    held = Held(3)
    for key in range(3):
        held.add(make_scored(key, direction=1, eoe=0.1, dss=0.1), key)
    newcomer = replace(make_scored(9, direction=2, eoe=0.5, dss=0.5), idd=0.7)
    victims = Counter(Paper().decide(newcomer, held, np.random.default_rng(seed)).victim_id for seed in range(3000))
    # Each count is binomial(3000, 1/3): standard deviation 26; five of them.
    assert all(abs(count - 1000) < 130 for count in victims.values())
    assert len(victims) == 3


@pytest.mark.parametrize("metric", ["eoe", "dss", "idd"])
def test_single_metric_ablations_look_at_their_metric_alone(metric: str) -> None:
    held = Held(2)
    held.add(make_scored(0, direction=1, eoe=0.4, dss=0.4), 0)
    held.add(make_scored(1, direction=2, eoe=0.4, dss=0.4), 1)
    worst = {"eoe": 0.0, "dss": 0.0, "idd": -1.0}
    newcomer = with_scores(make_scored(2), {**worst, metric: 2.0})
    assert make_policy(metric).decide(newcomer, held, np.random.default_rng(0)).action is Action.REPLACE
    best = {"eoe": 2.0, "dss": 2.0, "idd": 2.0}
    newcomer = with_scores(make_scored(3), {**best, metric: -1.0})
    assert make_policy(metric).decide(newcomer, held, np.random.default_rng(0)).action is Action.DROP


def test_random_is_a_uniform_sample_of_the_stream() -> None:
    counts: Counter[str] = Counter()
    policy, stream = make_policy("random"), [make_scored(key, direction=key) for key in range(20)]
    for seed in range(500):
        held, rng = Held(5), np.random.default_rng(seed)
        for scored in stream:
            decision = policy.decide(scored, held, rng)
            held.seen += 1
            if decision.action is Action.KEEP:
                held.add(scored, held.seen)
            elif decision.victim_id is not None:
                held.replace(held.ids.index(decision.victim_id), scored, held.seen)
        counts.update(held.ids)
    # Each of 20 is held with probability 1/4: mean 125, standard deviation 9.7; five of them.
    assert all(abs(counts[f"d{key}"] - 125) < 49 for key in range(20))


def test_fifo_holds_the_newest() -> None:
    held = Held(4)
    feed(make_policy("fifo"), held, make_stream(30))
    assert sorted(held.ids) == ["d26", "d27", "d28", "d29"]


def test_k_center_never_lets_the_closest_pair_come_closer() -> None:
    held, smallest = Held(6), 0.0
    stream = make_stream(100)
    feed(make_policy("k-center"), held, stream[:6])
    for number, scored in enumerate(stream[6:]):
        smallest = 1 - held.nearest_cosine.max()
        feed(make_policy("k-center"), held, [scored], seed=number)
        assert 1 - held.nearest_cosine.max() >= smallest - 1e-6


def test_a_decision_is_checked() -> None:
    with pytest.raises(ValueError, match="victim"):
        Decision(action=Action.KEEP, victim_id="x", reason="room")
    with pytest.raises(ValueError, match="victim"):
        Decision(action=Action.REPLACE, reason="beats")
    with pytest.raises(ValueError, match="not finite"):
        Decision(action=Action.DROP, reason="odd", evidence={"eoe": math.nan})
