"""Whole comparisons of ways of sharing on a tiny model: equal rows, resumption, unseen devices, no text in files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

import client.app as client_app
import server.app as server_app
from client.adapters import PERSONAL, AdaptedModel
from client.bounds import LocalBounds
from client.dialogue import Example, derive_seed
from client.finetuning import FineTuneConfig, FineTuneReport, Target, finetune
from client.serving import Way
from florilegium.errors import ConfigError, InputError
from simulation.identity import run_name
from simulation.records import RoundRecord
from simulation.runtimes.inprocess import run_in_process
from simulation.sharing import learning
from simulation.sharing.compare import SharingProgress, run_sharing
from simulation.sharing.config import SharingConfig
from simulation.summary import Summary
from strategies.settings import PlanSettings
from tests.simulation.test_compare import make_user

ARMS = ("none", "retrieval", "local", "fedit", "dual+fedsa", "central", "mine")
USERS = {
    seed: [make_user(name, turns=turns) for name, turns in (("ada", 14), ("bob", 16), ("cleo", 15))] for seed in (0, 1)
}


def make_config(model: Path, **changes: object) -> SharingConfig:
    values: dict[str, object] = {
        "model": str(model), "arms": ARMS, "plans": {"mine": PlanSettings(rule="ffa", codec="int8")}, "unseen": 1,
        "stages": 2, "rounds": 4, "evaluate_every": 2, "local_steps": 2, "bins": 4, "annotations_per_stage": 2,
        "holdout_share": 0.3, "synthesis_count": 1, "batch_size": 4, "rank": 2, "max_new_tokens": 6,
        "bootstrap_draws": 200, "workers": 1,
    }  # fmt: skip
    return SharingConfig.parse({**values, **changes})


def read_records(run: Path) -> list[RoundRecord]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [RoundRecord.model_validate_json(line) for line in lines]


def without_seconds(run: Path) -> list[dict[str, object]]:
    return [record.model_dump(exclude={"seconds"}) for record in read_records(run)]


Finished = tuple[Path, Summary, list[SharingProgress]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Finished:
    """Run all arms once."""
    run = tmp_path_factory.mktemp("runs") / "run"
    seen: list[SharingProgress] = []
    summary = run_sharing(USERS, make_config(tiny_model_folder), run, progress=seen.append)
    return run, summary, seen


def test_every_device_is_measured_under_every_arm(finished: Finished) -> None:
    run, summary, _ = finished
    keys = {(record.seed, record.user, record.arm, record.round) for record in read_records(run)}
    assert keys == {
        (seed, user.user_id, arm, number)
        for seed in USERS
        for user in USERS[seed]
        for arm in ARMS
        for number in (0, 2, 4)
    }
    assert list(summary.arms) == list(ARMS)
    assert summary.users == 4
    assert summary.unseen is not None
    assert summary.unseen.users == 2


def test_every_arm_has_the_same_rows_and_steps(finished: Finished) -> None:
    run, summary, _ = finished
    spent: dict[tuple[int, str, int], list[tuple[int, int, int]]] = defaultdict(list)
    for record in read_records(run):
        if record.arm in ("local", "fedit", "dual+fedsa", "mine") and not record.unseen:
            spent[record.seed, record.user, record.round].append((record.annotations, record.rows, record.steps))
    assert all(len(set(each)) == 1 for each in spent.values())
    assert summary.budgets_equal.annotations
    assert summary.budgets_equal.training_rows
    # A measurement comes after the two rounds of a stage, and sees the rows of both.
    assert all(record.original_rows == 2 * record.annotations for record in read_records(run) if record.arm == "local")
    assert {record.annotations for record in read_records(run) if record.round == 4 and record.arm == "local"} == {0, 4}
    assert summary.arms["central"].budget.outside_budget
    assert summary.arms["fedit"].budget.steps == 4 * 4 * 2  # devices, rounds, steps


def test_only_arms_that_share_move_bytes(finished: Finished) -> None:
    summary = finished[1]
    up = {name: arm.budget.uplink_bytes for name, arm in summary.arms.items()}
    assert {name for name, count in up.items() if count} == {"fedit", "dual+fedsa", "mine"}
    assert up["mine"] < up["dual+fedsa"] < up["fedit"]


def test_a_device_before_the_first_round_answers_as_the_base_model(finished: Finished) -> None:
    for record in read_records(finished[0]):
        if record.round == 0:
            assert record.way == "none"
            assert record.candidate == {}
            assert record.scores["forgetting"] == 0


def test_devices_that_take_no_part_train_nothing_and_may_use_what_is_shared(finished: Finished) -> None:
    strangers = [record for record in read_records(finished[0]) if record.unseen]
    assert {record.user for record in strangers} == {"cleo"}
    assert all(record.annotations == record.rows == record.steps == record.uplink_bytes == 0 for record in strangers)
    offered = {record.arm for record in strangers if record.candidate and record.round == 4}
    assert offered == {"fedit", "dual+fedsa", "mine", "central"}


def test_ways_are_those_that_a_plan_has(finished: Finished) -> None:
    ways = defaultdict(set)
    for record in read_records(finished[0]):
        ways[record.arm].add(record.way)
    assert ways["none"] == ways["retrieval"] == {"none"}
    assert ways["local"] <= {"none", "personal"}
    assert ways["fedit"] <= {"none", "shared"}
    assert ways["dual+fedsa"] <= {"none", "shared", "personal"}


def test_a_device_that_answers_in_another_way_than_its_plan_s_has_turned_the_candidate_back(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(*_: object, **__: object) -> Way:
        return "shared"

    monkeypatch.setattr("simulation.sharing.play.choose_way", choose)
    config = make_config(tiny_model_folder, arms=("dual+fedsa",), rounds=2)
    run_sharing({0: USERS[0]}, config, tmp_path)
    last = {record.user: record for record in read_records(tmp_path) if record.round == 2}
    assert {record.way for record in last.values()} == {"shared"}
    # Who takes no part has no personal adapter: the shared one is all that it could answer with.
    assert {user: record.promoted for user, record in last.items()} == {"ada": False, "bob": False, "cleo": True}


def test_nothing_that_a_user_said_is_left_behind(finished: Finished) -> None:
    run = finished[0]
    assert not (run / ".work").exists()
    for path in run.rglob("*"):
        if path.is_file():
            assert b"CANARY" not in path.read_bytes(), path


def test_progress_counts_devices_and_rounds(finished: Finished) -> None:
    seen = finished[2]
    total = 6 + 2 * len(ARMS) * 5
    assert {progress.total for progress in seen} == {total}
    counts = [progress.done for progress in seen]
    assert counts == sorted(counts)
    assert counts[-1] == total
    assert seen[-1].summary is not None


def test_the_report_shows_whom_sharing_harms(finished: Finished) -> None:
    report = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert "4 learning rounds" in report
    for heading in ("Whom it helps, whom it harms", "What crosses the network", "Devices that took no part"):
        assert heading in report
    assert re.search(r"<svg[^>]*aria-label=\"ROUGE-1 against uplink\"", report)


class StoppedError(Exception):
    """Ctrl-C, as far as a run can tell."""


@pytest.mark.parametrize("stop", [2, 7, 12, 16])
def test_a_run_that_was_stopped_goes_on_and_ends_the_same(
    stop: int, finished: Finished, tmp_path: Path, tiny_model_folder: Path
) -> None:
    arms = ("local", "fedit", "dual+fedsa")
    config = make_config(tiny_model_folder, arms=arms)
    users = {0: USERS[0]}

    def follow(progress: SharingProgress) -> None:
        if progress.done == stop:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_sharing(users, config, tmp_path / "run", progress=follow)
    run_sharing(users, config, tmp_path / "run")
    expected = [record for record in without_seconds(finished[0]) if record["arm"] in arms and record["seed"] == 0]
    assert without_seconds(tmp_path / "run") == expected


@pytest.mark.parametrize(("arm", "key"), [("local", "device-0"), ("central", "device-3")])
def test_a_device_that_diverges_keeps_what_it_had_and_the_others_go_on(
    arm: str, key: str, finished: Finished, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = {derive_seed(0, key, number, PERSONAL) for number in (3, 4)}

    def diverge(
        model: AdaptedModel, examples: Sequence[Example], *, target: Target, config: FineTuneConfig
    ) -> FineTuneReport:
        report = finetune(model, examples, target=target, config=config)
        return replace(report, stopped="the loss is not finite") if config.seed in doomed else report

    def follow(progress: SharingProgress) -> None:
        if progress.doing == f"{arm}, seed 0, round 3":
            raise StoppedError

    monkeypatch.setattr("client.participant.finetune", diverge)
    config = make_config(tiny_model_folder, arms=(arm,))
    with pytest.raises(StoppedError):
        run_sharing({0: USERS[0]}, config, tmp_path, progress=follow)
    run_sharing({0: USERS[0]}, config, tmp_path)
    found = {(record.user, record.round): record.candidate for record in read_records(tmp_path)}
    whole = {
        (record.user, record.round): record.candidate
        for record in read_records(finished[0])
        if record.arm == arm and record.seed == 0
    }
    assert whole["ada", 4] != whole["ada", 2]
    assert found["ada", 4] == found["ada", 2] == whole["ada", 2]
    if arm == "local":
        assert found["bob", 4] == whole["bob", 4]


@pytest.mark.parametrize("arms", [("fedit", "mine"), ("local", "dual+fedsa")], ids=["an-arm-each", "a-device-each"])
def test_workers_change_nothing(
    arms: tuple[str, ...], finished: Finished, tmp_path: Path, tiny_model_folder: Path
) -> None:
    config = make_config(tiny_model_folder, arms=arms, workers=2)
    run_sharing({0: USERS[0]}, config, tmp_path / "run")
    expected = [r for r in without_seconds(finished[0]) if r["arm"] in arms and r["seed"] == 0]
    assert without_seconds(tmp_path / "run") == expected


def test_a_finished_run_can_be_given_more_arms(tmp_path: Path, tiny_model_folder: Path) -> None:
    run_sharing({0: USERS[0]}, make_config(tiny_model_folder, arms=("none",)), tmp_path / "run")
    summary = run_sharing({0: USERS[0]}, make_config(tiny_model_folder, arms=("none", "local")), tmp_path / "run")
    assert list(summary.arms) == ["none", "local"]


def test_a_finished_run_is_given_more_seeds_and_no_other_fleet(tmp_path: Path, tiny_model_folder: Path) -> None:
    config, (ada, bob, cleo) = make_config(tiny_model_folder, arms=("none",)), USERS[0]
    run_sharing({0: [ada, bob, cleo]}, config, tmp_path / "run")
    assert run_sharing(USERS, config, tmp_path / "run").seeds == [0, 1]
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    dan = make_user("dan")
    for others in ([ada, bob, cleo, dan], [bob, ada, cleo], [ada, bob, dan]):
        with pytest.raises(ConfigError, match="other users in the fleet of seed 0"):
            run_sharing({0: others, 1: USERS[1]}, config, tmp_path / "run")
        assert run_name({0: others}, config) != run_name({0: [ada, bob, cleo]}, config)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_runtime_plays_from_one_measurement_to_the_next(
    finished: Finished, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, calls = list(learning._RUNTIMES.values()), []

    def play(fleet: Path, devices: int, **named: Any) -> None:
        for engine in engines:
            signature(engine).bind(fleet, devices, **named)
        calls.append(devices)
        run_config = {**named["run_config"], "directory": str(named["directory"])}
        run_in_process(server_app.app, client_app.app, fleet, devices, run_config=run_config)

    monkeypatch.setattr(learning, "_RUNTIMES", {"ray": play})
    config = make_config(tiny_model_folder, arms=("dual+fedsa",), runtime="ray")
    run_sharing({0: USERS[0]}, config, tmp_path / "run")
    assert calls == [2, 2]
    expected = [r for r in without_seconds(finished[0]) if r["arm"] == "dual+fedsa" and r["seed"] == 0]
    assert without_seconds(tmp_path / "run") == expected


@pytest.mark.slow
def test_flower_s_engine_comes_to_the_same(finished: Finished, tmp_path: Path, tiny_model_folder: Path) -> None:
    config = make_config(tiny_model_folder, arms=("fedit", "dual+fedsa"), runtime="ray")
    run_sharing({0: USERS[0]}, config, tmp_path / "run")
    expected = [r for r in without_seconds(finished[0]) if r["arm"] in ("fedit", "dual+fedsa") and r["seed"] == 0]
    assert without_seconds(tmp_path / "run") == expected


def test_cohorts_and_who_learns_alone_take_as_many_steps(tiny_model_folder: Path) -> None:
    config = make_config(tiny_model_folder, rounds=10, local_steps=3, cohort=4)
    assert sum(config.steps_of(number, 10) for number in range(1, 11)) == 10 * 3 * 4 // 10
    assert sum(config.steps_of(number, 3) for number in range(1, 11)) == 30


@pytest.mark.parametrize(("over_selection", "asked"), [(1.0, 4), (1.3, 6), (3.0, 10)])
def test_devices_asked_in_excess_train_as_well(over_selection: float, asked: int, tiny_model_folder: Path) -> None:
    config = make_config(tiny_model_folder, rounds=10, local_steps=3, cohort=4, over_selection=over_selection)
    assert sum(config.steps_of(number, 10) for number in range(1, 11)) == 3 * asked  # of 10 devices, in 10 rounds


def test_who_learns_alone_keeps_the_bounds_that_a_device_keeps(tiny_model_folder: Path) -> None:
    config = make_config(
        tiny_model_folder, local_steps=300, batch_size=128, learning_rate=0.5, learning_rates={"central": 1e-2}
    )
    local, central = (config.finetuning_of(arm) for arm in ("local", "central"))
    bounds = LocalBounds()
    assert config.steps_of(1, 2) == bounds.steps[1]
    assert (local.learning_rate, local.batch_size) == (bounds.learning_rate[1], bounds.batch_size[1])
    assert central.learning_rate == 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("local", "fedti")}, "did you mean 'fedit'"),
        ({"arms": ()}, "arms is empty"),
        ({"plans": {"fedit": PlanSettings()}}, "has the name of an arm"),
        ({"plans": {"../mine": PlanSettings()}}, "no name of a folder"),
        ({"plans": {"mine": PlanSettings(rule="flora", robust="median")}}, "robust"),
        ({"rounds": 1}, "2 stages need as many rounds"),
        ({"annotations_per_stage": 3}, "as many bins"),
        ({"runtime": "ray", "fleet": {}}, "no simulated clock"),
        ({"runtime": "ray", "arms": ("trust",)}, "names of its own"),
        ({"deadline_seconds": 60.0}, "deadline_seconds = 60 would be of this machine's time"),
        (
            {"tuner": {"options": {"values": {"steps": 4, "batch_size": 2}}}},
            "the tuner names steps, batch_size, and arms that share must not differ in that from local, central;",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], message: str, tiny_model_folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(tiny_model_folder, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"deadline_seconds": 60.0, "fleet": {}},
        {"deadline_seconds": 60.0, "runtime": "deployment"},
        {"tuner": {"options": {"values": {"learning_rate": 1e-3}}}},
        {"tuner": {"options": {"values": {"steps": 4}}}, "arms": ("none", "fedit", "dual+fedit")},
    ],
)
def test_deadlines_of_a_clock_and_tuners_that_change_no_budget_are_taken(
    changes: dict[str, object], tiny_model_folder: Path
) -> None:
    make_config(tiny_model_folder, **changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minimum_replies": 3}, "minimum_replies is 3, more than the cohort of 2"),
        ({"plans": {"safe": {"robust": "multi_krum"}}, "arms": ("safe",)}, "multi_krum needs 5 replies"),
        ({"fleet": {"devices": 7}}, "fleet.devices = 7, and 2 devices take part"),
    ],
)
def test_what_cannot_work_with_so_few_devices_is_refused_before_anything_is_prepared(
    settings: dict[str, object], message: str, tmp_path: Path, tiny_model_folder: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_sharing({0: USERS[0][:2]}, make_config(tiny_model_folder, unseen=0, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_fleet_of_one_is_refused(tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(InputError, match="two devices"):
        run_sharing({0: USERS[0][:2]}, make_config(tiny_model_folder), tmp_path / "run")
