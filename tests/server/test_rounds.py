"""The server's rounds, with devices that are functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.dialogue import derive_seed
from florilegium.errors import BusyError, ConfigError, StorageError
from florilegium.tensors import Tensors
from privacy.egress import ErrorCode
from server.config import CoordinationConfig
from server.rounds import TooFewRepliesError
from server.transport import Answer, Request
from strategies.rules import RULES
from tests.server.toy import SMALL, Spoil, Toy, assert_same, coordinator, honest, play
from tests.strategies.rules.fleet import adapter, noise

PLANS: list[dict[str, object]] = [
    *[dict[str, object](rule=name) for name in sorted(RULES)],
    {"rule": "rolora", "optimizer": "adam"},
    {"rule": "fedit", "codec": "int8"},
    {"rule": "fedit", "codec": "topk"},
    {"rule": "fedit", "robust": "median"},
    {"rule": "ffa", "privacy": {"clip_norm": 1.0, "noise_multiplier": 0.5, "max_rounds": 4}},
]


def name_of(plan: dict[str, object]) -> str:
    return "-".join(str(value) for value in plan.values())[:30]


every_plan = pytest.mark.parametrize("plan", PLANS, ids=name_of)


@every_plan
def test_a_run_of_every_plan_ends(plan: dict[str, object], tmp_path: Path) -> None:
    made, _ = coordinator(tmp_path, plan=plan, minimum_replies=3)
    logs, progress = play(made)
    assert [log.round for log in logs] == [1, 2, 3, 4]
    assert all(log.taken == 3 and not log.refused and not log.failed and log.silent == 0 for log in logs)
    assert sum(progress.participations.values()) == 12
    assert all(log.uplink_bytes > 0 and log.downlink_bytes > 0 for log in logs)


# But for noise: it is drawn anew after a stop, as it must not be the same twice.
@pytest.mark.parametrize("plan", [plan for plan in PLANS if "privacy" not in plan], ids=name_of)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_that_was_stopped_ends_the_same(plan: dict[str, object], stop: int, tmp_path: Path) -> None:
    whole, _ = coordinator(tmp_path / "whole", plan=plan, minimum_replies=3)
    _, expected = play(whole)
    first, toy = coordinator(tmp_path / "cut", plan=plan, minimum_replies=3)
    for log, _ in first.rounds():
        if log.round == stop:
            break
    second, other = coordinator(tmp_path / "cut", plan=plan, minimum_replies=3)
    other.known = toy.known  # devices outlive the server
    logs, found = play(second)
    assert [log.round for log in logs] == list(range(stop + 1, 5))
    assert_same(found, expected)


def broken(change: Callable[[Tensors], Tensors]) -> Spoil:
    def spoil(request: Request, answer: Answer) -> Answer:
        return replace(answer, tensors=change(answer.tensors)) if request.device == 0 else answer

    return spoil


def first(tensors: Tensors, make: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    key = min(tensors)
    return tensors | {key: make(tensors[key])}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: first(t, lambda x: x * float("nan")), "not-finite"),
        (lambda t: first(t, lambda x: x / 0), "not-finite"),
        (lambda t: first(t, lambda x: x[:1]), "wrong-shape"),
        (lambda t: first(t, lambda x: x.double()), "wrong-type"),
        (lambda t: dict(sorted(t.items())[1:]), "missing-key"),
        (lambda t: t | {"more": torch.zeros(1)}, "unknown-key"),
        (lambda t: first(t, lambda x: torch.zeros(1_000, 1_000)), "too-large"),
        (lambda t: {}, "missing-key"),
        (lambda t: first(t, lambda x: torch.full_like(x, 2.0**31)), "huge"),
        (lambda t: first(t, lambda x: torch.full_like(x, 3e38)), "huge"),
    ],
)
def test_a_bad_reply_is_refused_with_its_reason_and_the_round_goes_on(
    change: Callable[[Tensors], Tensors], reason: str, tmp_path: Path
) -> None:
    made, _ = coordinator(tmp_path / "bad", spoil=broken(change), cohort=4, ranks=dict.fromkeys(range(4), 3))
    logs, progress = play(made)
    assert [dict(log.refused) for log in logs] == [{0: reason}] * 4
    assert all(log.taken == 3 for log in logs)
    assert 0 not in progress.participations
    without, _ = coordinator(tmp_path / "good", cohort=3, ranks=dict.fromkeys((1, 2, 3), 3))
    for key, tensor in play(without)[1].shared.state.items():
        torch.testing.assert_close(progress.shared.state[key], tensor)


def test_errors_and_silence_are_counted(tmp_path: Path) -> None:
    def spoil(request: Request, answer: Answer) -> Answer | None:
        if request.device == 0:
            return Answer(device=0, error=ErrorCode.NO_DATA)
        return None if request.device == 1 else answer

    made, _ = coordinator(tmp_path, spoil=spoil, cohort=4, ranks=dict.fromkeys(range(4), 3))
    logs, _ = play(made)
    assert all(log.failed == {0: "NO_DATA"} and log.silent == 1 and log.taken == 2 for log in logs)


def test_a_round_with_too_few_replies_asks_others(tmp_path: Path) -> None:
    dead = {0, 1, 2, 3, 4}

    def spoil(request: Request, answer: Answer) -> Answer | None:
        return None if request.device in dead else answer

    made, toy = coordinator(tmp_path, spoil=spoil, attempts=8)
    logs, progress = play(made)
    assert len(logs) == 4
    assert set(progress.participations) <= {5, 6, 7}
    assert any(log.asked > 3 for log in logs)
    assert set(toy.asked) > {5, 6, 7}


def test_a_round_that_nobody_answers_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    made, _ = coordinator(
        tmp_path, spoil=lambda request, answer: answer if request.turn.round < 3 else None, attempts=3
    )
    with pytest.raises(TooFewRepliesError, match="round 3 had too few replies in each of 3 attempts"):
        play(made)
    assert made.progress().round == 2


def test_answers_of_nobody_and_second_answers_do_not_count(tmp_path: Path) -> None:
    class Echo(Toy):
        def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
            for answer in super().ask(requests, seconds=seconds):
                yield answer
                yield replace(answer, tensors={key: 100 * tensor for key, tensor in answer.tensors.items()})
                yield replace(answer, device=999)

    plain, _ = coordinator(tmp_path / "plain")
    echoing, toy = coordinator(tmp_path / "echo")
    echoing._transport = Echo(toy.plan, toy.ranks)
    assert_same(play(plain)[1], play(echoing)[1])


@pytest.mark.parametrize("rule", sorted(name for name, rule in RULES.items() if rule.mixed_ranks))
def test_devices_of_lower_ranks_take_part(rule: str, tmp_path: Path) -> None:
    made, _ = coordinator(tmp_path, plan={"rule": rule}, ranks={0: 1, 1: 2, 2: 3, 3: 3})
    logs, _ = play(made)
    assert all(log.taken == 3 for log in logs)


@pytest.mark.parametrize(("rule", "rank"), [("fedit", 2), ("flora", 4)])
def test_a_rank_that_the_rule_cannot_take_is_refused(rule: str, rank: int, tmp_path: Path) -> None:
    made, _ = coordinator(tmp_path, plan={"rule": rule}, ranks={0: 3, 1: rank, 2: 3})
    with pytest.raises(ConfigError, match=f"rank {rank}, the server's 3"):
        play(made)


def test_the_cap_on_participation_is_kept(tmp_path: Path) -> None:
    made, _ = coordinator(tmp_path, cohort=2, participation_cap=1, rounds=4)
    _, progress = play(made)
    assert sorted(progress.participations.values()) == [1] * 8


def test_rows_weigh_where_they_are_told_to(tmp_path: Path) -> None:
    def weigh(request: Request, answer: Answer) -> Answer:
        return replace(answer, metrics={"rows": 1.0 + 9.0 * (request.device == 0)})

    states = []
    for weighting, spoil in (("uniform", honest), ("rows", weigh)):
        made, _ = coordinator(
            tmp_path / weighting,
            spoil=spoil,
            rounds=1,
            cohort=2,
            ranks={0: 3, 1: 3},
            plan={"rule": "fedit", "weighting": weighting},
        )
        states.append(play(made)[1].shared.state)
    moved = [noise(adapter(3), device) for device in (0, 1)]
    for key in states[0]:
        torch.testing.assert_close(states[0][key], (moved[0][key] + moved[1][key]) / 2)
        torch.testing.assert_close(states[1][key], (10 * moved[0][key] + moved[1][key]) / 11)


@pytest.mark.parametrize("rows", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(rows: float, tmp_path: Path) -> None:
    def spoil(request: Request, answer: Answer) -> Answer:
        return replace(answer, metrics={"rows": rows if request.device == 0 else 2.0})

    made, _ = coordinator(
        tmp_path, spoil=spoil, rounds=1, cohort=4, ranks=dict.fromkeys(range(4), 3), plan={"weighting": "rows"}
    )
    (log,), progress = play(made)
    assert log.refused == {0: "bad-metric"}
    assert all(bool(tensor.isfinite().all()) for tensor in progress.shared.state.values())


def test_another_run_in_the_same_place_is_refused(tmp_path: Path) -> None:
    play(coordinator(tmp_path)[0])
    with pytest.raises(ConfigError, match="other settings or another model"):
        play(coordinator(tmp_path, local_steps=9)[0])
    longer, _ = coordinator(tmp_path, rounds=6)
    assert [log.round for log in play(longer)[0]] == [5, 6], "a run can be made longer"


def test_a_damaged_checkpoint_is_named_and_another_run_can_be_begun(tmp_path: Path) -> None:
    made, toy = coordinator(tmp_path, rounds=1)
    first = play(made)[1].run
    file = tmp_path / "coordination.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StorageError, match="cannot be read: SafetensorError; delete it to start the run anew"):
        made.progress()
    file.unlink()
    second = play(made)[1].run
    assert first != second, "devices are past the first one's rounds, and refuse them"
    assert [request.run for request in toy.requests] == 3 * [first] + 3 * [second]


def test_a_run_has_its_number_before_a_device_can_know_it(tmp_path: Path) -> None:
    class GoneError(Exception):
        """The server is."""

    def spoil(request: Request, answer: Answer) -> Answer:
        raise GoneError

    made, toy = coordinator(tmp_path, spoil=spoil)
    with pytest.raises(GoneError):
        play(made)
    assert [request.run for request in toy.requests] == [coordinator(tmp_path)[0].progress().run]


def test_two_servers_cannot_be_at_work_in_one_directory(tmp_path: Path) -> None:
    (one, _), (other, _) = coordinator(tmp_path), coordinator(tmp_path)
    rounds = one.rounds()
    next(rounds)
    with pytest.raises(BusyError, match=f"{tmp_path} is in use by another server; stop that one"):
        next(other.rounds())
    assert one.progress().round == 1
    rounds.close()
    assert [log.round for log in play(other)[0]] == [2, 3, 4]
    assert [log.round for log in play(coordinator(tmp_path, rounds=5)[0])[0]] == [5]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"plan": {"rule": "fedti"}}, "must be one of"),
        ({"minimum_replies": 5}, "more than the cohort of 3"),
        ({"cohrot": 3}, "did you mean 'cohort'"),
        ({"learning_rate": math.inf}, "learning_rate = inf is refused"),
        ({"over_selection": math.inf}, "over_selection = inf is refused"),
        ({"seed": 2**63}, "seed = 9223372036854775808 is refused"),
        ({"seed": -1}, "seed = -1 is refused"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CoordinationConfig.parse(SMALL | settings)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"rule": "flora", "secure_aggregation": True}, "looks at every reply"),
        ({"rule": "fedit", "robust": "median", "secure_aggregation": True}, "a robust rule looks at every reply"),
        ({"rule": "fedit", "codec": "int8", "secure_aggregation": True}, "cannot be summed before they are decoded"),
        ({"rule": "fedex", "robust": "median"}, "merges whole adapters"),
        ({"rule": "trust", "codec": "int8"}, "sends whole adapters"),
        ({"rule": "flora", "personal": "finetune"}, "would count twice"),
        ({"rule": "hetlora", "optimizer": "adam"}, "no mean update"),
        ({"rule": "none"}, "needs a shared adapter"),
        ({"rule": "none", "personal": "local"}, "local shares nothing that a server could coordinate"),
        (
            {"robust": "multi_krum", "robust_options": {"byzantine": 3}},
            "multi_krum needs 9 replies, more than the cohort of 3",
        ),
        ({"secure_aggregation": True}, "not available yet: every update reaches the server in the clear"),
        ({"rule": "fedit", "personal": "local"}, "leaves no local steps"),
        ({"rule": "sketch", "rule_options": {"wdith": 3}}, "sketch: unknown key 'wdith'; did you mean 'width'"),
        ({"rule": "sketch", "rule_options": {"width": 3.5}}, "sketch: width = 3.5 is refused: .* valid integer"),
        ({"robust": "multi_krum", "robust_options": {"byzantine": "two"}}, "byzantine = 'two' is refused"),
        ({"personal": "dual", "personal_options": {"shaer": 0.2}}, "dual: unknown key 'shaer'"),
        (
            {"rule": "fedit", "weighting": "rows", "privacy": {"clip_norm": 1, "noise_multiplier": 1, "max_rounds": 2}},
            "weights by rows",
        ),
        (
            {"rule": "fedex", "privacy": {"clip_norm": 1, "noise_multiplier": 1, "max_rounds": 2}},
            "no sum of updates",
        ),
    ],
)
def test_plans_that_cannot_work_are_refused_with_the_reason(plan: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CoordinationConfig.parse(SMALL | {"plan": plan}).make_plan()


def test_three_of_ten_drop_out_and_one_is_late_and_all_rounds_end(tmp_path: Path) -> None:
    def spoil(request: Request, answer: Answer) -> Answer | None:
        fate = derive_seed("fate", request.turn.round, request.device) % 10
        if fate < 2:
            return None
        return Answer(device=request.device, error=ErrorCode.INTERNAL) if fate == 2 else answer

    class Late(Toy):
        def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
            answers = list(super().ask(requests, seconds=seconds))
            yield from answers[: max(1, len(answers) * 9 // 10)]

    made, toy = coordinator(
        tmp_path, spoil=spoil, ranks=dict.fromkeys(range(40), 3), cohort=10, over_selection=1.5, rounds=30
    )
    made._transport = Late(toy.plan, toy.ranks, spoil)
    logs, progress = play(made)
    assert [log.round for log in logs] == list(range(1, 31))
    assert all(log.taken >= 2 for log in logs)
    waited = [log for log in logs if log.taken < 10]  # else the round has enough, and nobody is silent
    assert all(log.taken + log.silent + len(log.failed) == log.asked for log in waited)
    assert not any(log.silent for log in logs if log not in waited)
    assert sum(log.silent for log in logs) > 30
    assert all(bool(tensor.isfinite().all()) for tensor in progress.shared.state.values())


def huge(request: Request, answer: Answer) -> Answer:
    if request.device != 0:
        return answer
    return replace(answer, tensors={key: torch.full_like(tensor, 1e30) for key, tensor in answer.tensors.items()})


@pytest.mark.parametrize(
    "plan",
    [*({"rule": rule} for rule in RULES), {"optimizer": "adam"}, {"optimizer": "yogi"}, {"robust": "median"}],
    ids=str,
)
def test_what_would_overflow_on_the_server_is_refused_by_name(plan: dict[str, object], tmp_path: Path) -> None:
    """Everybody is asked in every round: without a name to leave out, none would come about."""
    made, _ = coordinator(tmp_path, spoil=huge, plan=plan, cohort=4, ranks=dict.fromkeys(range(4), 3))
    logs, progress = play(made)
    assert [dict(log.refused) for log in logs] == [{0: "huge"}] * 4
    assert 0 not in progress.participations


def test_what_overflows_on_the_server_is_not_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should numbers ever overflow in the merge, the round is tried with others, and the state stays whole."""
    monkeypatch.setattr("strategies.gathering._LARGEST_NORM", math.inf)
    made, _ = coordinator(tmp_path, spoil=huge, plan={"rule": "fedex"}, ranks=dict.fromkeys(range(6), 3))
    logs, progress = play(made)
    assert len(logs) == 4
    assert 0 not in progress.participations
    assert any(log.asked > 3 for log in logs)


def test_an_int8_payload_that_overflows_is_refused(tmp_path: Path) -> None:
    def spoil(request: Request, answer: Answer) -> Answer:
        tensors = {
            key: torch.tensor(3e38) if key.endswith("/step") else tensor for key, tensor in answer.tensors.items()
        }
        return replace(answer, tensors=tensors) if request.device == 0 else answer

    made, _ = coordinator(
        tmp_path, spoil=spoil, plan={"codec": "int8"}, cohort=4, ranks=dict.fromkeys(range(4), 3), rounds=1
    )
    (log,), _ = play(made)
    assert log.refused == {0: "not-finite"}


def test_what_rested_in_a_round_still_has_a_last_change(tmp_path: Path) -> None:
    """RoLoRA trains A and B in turn: a mask of what changed most must know of both."""
    made, _ = coordinator(tmp_path, plan={"rule": "rolora", "codec": "topk"})
    changes = [{key: bool(each.any()) for key, each in progress.shared.change.items()} for _, progress in made.rounds()]
    assert not all(changes[0].values())
    assert all(all(each.values()) for each in changes[1:])


@pytest.mark.parametrize("metrics", [{"x": 1.0}, {"improvement": 0.5}, {"rows": 3.0}])
def test_a_metric_that_nobody_asked_for_is_refused(metrics: dict[str, float], tmp_path: Path) -> None:
    def spoil(request: Request, answer: Answer) -> Answer:
        return replace(answer, metrics=metrics) if request.device == 0 else answer

    made, _ = coordinator(tmp_path, spoil=spoil, cohort=4, ranks=dict.fromkeys(range(4), 3), rounds=1)
    (log,), _ = play(made)
    assert log.refused == {0: "bad-metric"}
