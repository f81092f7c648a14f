"""Buffered asynchronous rounds, with devices that take their time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.dialogue import derive_seed
from florilegium.errors import ConfigError
from florilegium.tensors import Tensors
from privacy.egress import ErrorCode
from server.config import CoordinationConfig
from server.rounds import Coordinator, TooFewRepliesError
from server.transport import Answer, Request
from strategies.staleness import Polynomial
from tests.server.toy import Post, Spoil, Toy, assert_same, coordinate, honest, play
from tests.strategies.rules.fleet import adapter, noise

K = 4


def slow(request: Request) -> float:
    """How long a device takes: from 1 to 20, another time in each round."""
    return 1.0 + derive_seed("pace", request.device, request.turn.round) % 20


def buffered(
    folder: Path,
    *,
    delay: Callable[[Request], float] = slow,
    spoil: Spoil = honest,
    devices: int = 20,
    asynchronous: dict[str, object] | None = None,
    **settings: object,
) -> tuple[Coordinator, Post]:
    config = CoordinationConfig.parse(
        {"cohort": K, "rounds": 8, "asynchronous": {"concurrency": 10} | (asynchronous or {})} | settings
    )
    post = Post(config.make_plan(), dict.fromkeys(range(devices), 3), spoil, delay=delay)
    return coordinate(folder, post, config), post


def test_the_state_moves_by_the_weighed_sum_over_k(tmp_path: Path) -> None:
    """Reference: toy devices send the same update whatever they start from, so a replay of who answered when is all."""
    made, post = buffered(tmp_path)
    logs, progress = play(made)
    start = adapter(3)
    updates = {d: {key: tensor - start[key] for key, tensor in noise(start, d).items()} for d in range(20)}
    state, ages = {key: tensor.double() for key, tensor in start.items()}, []
    for number in range(1, 9):
        answers = post.answered[K * (number - 1) : K * number]
        ages.append([number - answer.turn.round for answer in answers])
        for age, answer in zip(ages[-1], answers, strict=True):
            for key, update in updates[answer.device].items():
                state[key] = state[key] + Polynomial()(age) / K * update.double()
    for key, tensor in progress.shared.state.items():
        torch.testing.assert_close(tensor, state[key].float(), atol=1e-4, rtol=1e-4)
    assert [log.staleness for log in logs] == [sum(each) / K for each in ages]
    assert max(max(each) for each in ages) >= 2, "some were late"
    assert all(log.taken == K for log in logs)


def test_only_so_many_are_at_work_and_nobody_is_asked_twice_for_one_state(tmp_path: Path) -> None:
    made, post = buffered(tmp_path, rounds=20)
    play(made)
    assert post.most_under_way == 10
    asked = [(request.device, request.turn.round) for request in post.requests]
    assert len(asked) == len(set(asked))


def test_a_device_never_meets_an_older_round_after_a_newer_one(tmp_path: Path) -> None:
    made, post = buffered(tmp_path, rounds=20)
    play(made)
    for device in range(20):
        rounds = [request.turn.round for request in post.answered if request.device == device]
        assert rounds == sorted(set(rounds))


@pytest.mark.parametrize("plan", [{"rule": "fedit"}, {"rule": "ffa", "optimizer": "adam"}, {"rule": "fedsa"}])
def test_with_all_devices_in_step_it_is_the_round_that_waits(plan: dict[str, object], tmp_path: Path) -> None:
    made, post = buffered(
        tmp_path / "buffered", delay=lambda _: 1.0, devices=K, asynchronous={"concurrency": K}, plan=plan
    )
    logs, found = play(made)
    config = CoordinationConfig.parse({"cohort": K, "rounds": 8, "plan": plan})
    _, expected = play(coordinate(tmp_path / "waiting", Toy(post.plan, post.ranks), config))
    assert all(log.staleness == 0 for log in logs)
    for key, tensor in found.shared.state.items():
        torch.testing.assert_close(tensor, expected.shared.state[key])


@pytest.mark.parametrize(
    "plan",
    [
        {"rule": "fedit", "codec": "int8"},
        {"rule": "fedit", "codec": "topk"},
        {"rule": "ffa", "codec": "sketch"},
        {"rule": "fedkseed", "rule_options": {"seeds": 24}},
        {"rule": "fedit", "optimizer": "yogi"},
        {
            "rule": "ffa",
            "privacy": {"clip_norm": 1.0, "noise_multiplier": 0.5, "max_rounds": 9, "placement": "local"},
        },
    ],
    ids=lambda plan: "-".join(map(str, plan.values()))[:30],
)
def test_other_plans_that_fit_play_to_the_end(plan: dict[str, object], tmp_path: Path) -> None:
    made, _ = buffered(tmp_path, plan=plan)
    logs, progress = play(made)
    assert [log.taken for log in logs] == [K] * 8
    assert not any(log.refused for log in logs)
    assert all(bool(tensor.isfinite().all()) for tensor in progress.shared.state.values())


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"rule": "flora"}, "looks at the replies of one round side by side"),
        ({"rule": "trust"}, "side by side"),
        ({"rule": "sketch"}, "asked twice in a round"),
        ({"rule": "fedsb"}, "asked twice in a round"),
        ({"rule": "rolora"}, "another part in each round"),
        ({"rule": "fedit", "robust": "median"}, "compares replies that began alike"),
        ({"rule": "fedit", "weighting": "rows"}, "weights would scale the step"),
        ({"rule": "fedit", "secure_aggregation": True}, "secure aggregation shows their sum alone"),
        ({"privacy": {"clip_norm": 1, "noise_multiplier": 1, "max_rounds": 2}}, "to another buffer"),
        ({"rule": "none", "personal": "local"}, "shares nothing"),
    ],
)
def test_plans_that_cannot_be_buffered_are_refused_with_the_reason(plan: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CoordinationConfig.parse({"plan": plan, "asynchronous": {}})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"asynchronous": {"staleness": "polynomal"}}, "must be one of constant, hinge, polynomial"),
        ({"asynchronous": {"staleness_options": {"slope": 2.0}}}, "polynomial: unknown key 'slope'"),
        ({"asynchronous": {"staleness_options": {"exponent": -1.0}}}, "exponent must be finite and >= 0"),
        ({"asynchronous": {"concurency": 2}}, "unknown key 'asynchronous.concurency'"),
        ({"asynchronous": {}, "over_selection": 1.5}, "raise concurrency"),
        (
            {
                "asynchronous": {},
                "tuner": {"way": "fedex_hpo", "options": {"candidates": [{"steps": 1}, {"steps": 2}]}},
            },
            "another number when the reply comes",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CoordinationConfig.parse(settings)


def test_a_transport_that_waits_is_refused(tmp_path: Path) -> None:
    _, post = buffered(tmp_path)
    with pytest.raises(ConfigError, match="waits for each round"):
        coordinate(tmp_path, Toy(post.plan, post.ranks), CoordinationConfig.parse({"asynchronous": {}}))


def test_what_is_too_old_is_refused(tmp_path: Path) -> None:
    made, _ = buffered(
        tmp_path,
        delay=lambda request: 8.0 if request.device == 0 else 1.0,
        rounds=60,
        asynchronous={"maximum_staleness": 3},
    )
    logs, _ = play(made)
    refused = [dict(log.refused) for log in logs if log.refused]
    assert refused
    assert all(each == {0: "stale"} for each in refused)
    assert len({log.uplink_bytes / (log.taken + len(log.refused)) for log in logs}) == 1, "it was sent all the same"


def first(tensors: Tensors, make: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    key = min(tensors)
    return tensors | {key: make(tensors[key])}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: first(t, lambda x: x * math.nan), "not-finite"),
        (lambda t: first(t, lambda x: x[:1]), "wrong-shape"),
        (lambda t: {}, "missing-key"),
    ],
)
def test_bad_replies_are_refused_and_the_round_goes_on(
    change: Callable[[Tensors], Tensors], reason: str, tmp_path: Path
) -> None:
    def spoil(request: Request, answer: Answer) -> Answer:
        return replace(answer, tensors=change(answer.tensors)) if request.device < 5 else answer

    made, _ = buffered(tmp_path, spoil=spoil, rounds=12)
    logs, progress = play(made)
    refused = {device: why for log in logs for device, why in log.refused.items()}
    assert refused
    assert set(refused) <= set(range(5))
    assert set(refused.values()) == {reason}
    assert not set(progress.participations) & set(range(5))
    assert all(log.taken == K for log in logs)


@pytest.mark.parametrize("deadline", [None, 15.0])
def test_three_of_ten_drop_out_and_one_is_late_and_all_rounds_end(deadline: float | None, tmp_path: Path) -> None:
    def fate(request: Request) -> int:
        return derive_seed("fate", request.turn.round, request.device) % 10

    def spoil(request: Request, answer: Answer) -> Answer | None:
        if fate(request) == 0:
            return Answer(device=request.device, error=ErrorCode.INTERNAL)
        return None if fate(request) < 3 else answer

    made, _ = buffered(
        tmp_path,
        spoil=spoil,
        delay=lambda request: slow(request) * (20 if fate(request) == 9 else 1),
        rounds=40,
        devices=60,
        deadline_seconds=deadline,
    )
    logs, progress = play(made)
    assert [log.round for log in logs] == list(range(1, 41))
    assert sum(log.silent for log in logs) > 10
    assert sum(len(log.failed) for log in logs) > 10
    assert sum(progress.participations.values()) == sum(log.taken for log in logs)
    if deadline is None:
        assert max(log.staleness for log in logs) > 2


def test_the_answer_of_who_was_given_up_is_left_out(tmp_path: Path) -> None:
    late = set(range(5))
    made, post = buffered(
        tmp_path,
        delay=lambda request: 25.0 if request.device in late else 2.0,
        deadline_seconds=10.0,
        rounds=100,
    )
    logs, progress = play(made)
    answered = [request.device for request in post.answered if request.device in late]
    assert max(answered.count(device) for device in late) > 1, "they did answer, also when they had been asked again"
    assert not late & set(progress.participations)
    assert all(log.taken == K for log in logs)


def test_a_fleet_smaller_than_the_buffer_is_merged_as_it_is(tmp_path: Path) -> None:
    made, post = buffered(tmp_path, devices=2, minimum_replies=2, rounds=3)
    logs, _ = play(made)
    assert [log.taken for log in logs] == [2, 2, 2]
    assert post.waits == 0


def test_a_fleet_that_never_answers_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    made, post = buffered(
        tmp_path,
        spoil=lambda request, answer: answer if request.turn.round < 3 else None,
        attempts=3,
        devices=K,
    )
    with pytest.raises(TooFewRepliesError, match="round 3 had too few replies in each of 3 attempts"):
        play(made)
    assert made.progress().round == 2
    assert post.waits == 3


def test_the_cap_on_participation_is_kept(tmp_path: Path) -> None:
    made, _ = buffered(tmp_path, participation_cap=2, rounds=10)
    _, progress = play(made)
    assert sorted(progress.participations.values()) == [2] * 20


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_a_stopped_server_asks_those_again_who_were_at_work(stop: int, tmp_path: Path) -> None:
    made, post = buffered(tmp_path)
    for _, progress in made.rounds():
        if progress.round == stop:
            break
    lost = {request.device for _, _, request in post.under_way}
    assert set(progress.at_work) == lost
    second, other = buffered(tmp_path)
    other.known = post.known
    logs, end = play(second)
    assert logs[0].restarted == len(lost) > 0
    assert not any(log.restarted for log in logs[1:])
    assert lost <= set(other.asked[:10]), "they are asked before all others"
    assert {request.turn.round for request in other.requests[:10]} == {stop + 1}, "from the newest state"
    assert end.round == 8
    assert sum(end.participations.values()) == 8 * K


def test_the_same_events_give_the_same_run(tmp_path: Path) -> None:
    assert_same(play(buffered(tmp_path / "one")[0])[1], play(buffered(tmp_path / "other")[0])[1])


def test_a_schedule_goes_by_buffers(tmp_path: Path) -> None:
    schedule = {
        "way": "schedule",
        "options": {"first": {"steps": 10}, "last": {"steps": 3}, "curve": "linear", "rounds": 8},
    }
    made, post = buffered(tmp_path, tuner=schedule)
    play(made)
    asked = {request.turn.round: request.hyperparameters["steps"] for request in post.requests}
    assert asked == {number: 11.0 - number for number in range(1, 9)}
