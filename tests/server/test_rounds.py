"""The server's rounds, with devices that are functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest
import torch

from florilegium.errors import ConfigError, StorageError
from florilegium.tensors import Tensors
from privacy.egress import ErrorCode
from privacy.noise import SeededSource
from server.checkpoint import Progress, RoundLog
from server.config import CoordinationConfig
from server.rounds import Coordinator, TooFewRepliesError
from server.transport import Answer, Request
from strategies.codecs import encode_with_feedback
from strategies.plan import Plan
from strategies.rule import Rule
from strategies.rules import RULES
from tests.strategies.rules.fleet import ALPHA_PER_RANK, Device, adapter, gradient, noise

Spoil = Callable[[Request, Answer], Answer | None]
SMALL = {"cohort": 3, "rounds": 4, "minimum_replies": 2}


def honest(_: Request, answer: Answer) -> Answer | None:
    return answer


@dataclass
class Toy:
    """A fleet of toy devices behind a transport; `spoil` may change or swallow an answer."""

    plan: Plan
    ranks: Mapping[int, int]
    spoil: Spoil = honest
    asked: list[int] = field(default_factory=list)
    waits: int = 0
    known: dict[int, Device] = field(default_factory=dict)

    def devices(self) -> Mapping[int, int]:
        return self.ranks

    def wait(self) -> None:
        self.waits += 1

    def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
        for request in requests:
            self.asked.append(request.device)
            answer = self.spoil(request, self._answer(request))
            if answer is not None:
                yield answer

    def _answer(self, request: Request) -> Answer:
        assert self.plan.rule is not None
        device = self.known.setdefault(request.device, Device(request.device, rank=self.ranks[request.device]))
        held = cast(Rule, _Held(self.plan.rule, request.down))
        update = device.answer(held, {}, request.turn, noise, gradient).tensors
        payload, _ = encode_with_feedback(
            self.plan.codec,
            update,
            residual=None,
            agreement=request.agreement,
            generator=torch.Generator().manual_seed(request.device),
        )
        return Answer(device=request.device, tensors=payload)


class _Held:
    """A rule whose way down has been gone already."""

    def __init__(self, rule: object, down: Tensors) -> None:
        self._rule, self._down = rule, down

    def down(self, *_: object) -> Tensors:
        return self._down

    def __getattr__(self, name: str) -> object:
        return getattr(self._rule, name)


def coordinator(
    folder: Path, *, spoil: Spoil = honest, ranks: Mapping[int, int] | None = None, **settings: object
) -> tuple[Coordinator, Toy]:
    config = CoordinationConfig.parse(SMALL | settings)
    toy = Toy(config.make_plan(), ranks or dict.fromkeys(range(8), 3), spoil)
    made = Coordinator(
        config, adapter(3), rank=3, scale=ALPHA_PER_RANK, transport=toy, directory=folder, noise=SeededSource(4)
    )
    return made, toy


def play(made: Coordinator) -> tuple[list[RoundLog], Progress]:
    logs = [log for log, _ in made.rounds()]
    return logs, made.progress()


def assert_same(one: Progress, other: Progress) -> None:
    assert (one.round, one.participations) == (other.round, other.participations)
    for mine, its in (
        (one.shared.state, other.shared.state),
        (one.shared.moments, other.shared.moments),
        (one.shared.change, other.shared.change),
    ):
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[key], its[key]) for key in mine)


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
    def spoil(request: Request, answer: Answer) -> Answer:
        return replace(answer, metrics={"rows": 1.0 + 9.0 * (request.device == 0)})

    states = []
    for weighting in ("uniform", "rows"):
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


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    made, _ = coordinator(tmp_path)
    play(made)
    file = tmp_path / "coordination.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StorageError, match="no readable checkpoint"):
        made.progress()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"plan": {"rule": "fedti"}}, "must be one of"),
        ({"minimum_replies": 5}, "more than the cohort of 3"),
        ({"cohrot": 3}, "did you mean 'cohort'"),
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
        ({"rule": "hetlora", "optimizer": "adam"}, "no mean update"),
        ({"rule": "none"}, "needs a shared adapter"),
        ({"rule": "fedit", "personal": "local"}, "leaves no local steps"),
        ({"rule": "sketch", "rule_options": {"wdith": 3}}, "cannot be made with"),
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
