"""Whole comparisons of ways of sharing on a tiny model: equal rows, resumption, unseen devices, no text in files."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from florilegium.errors import ConfigError, InputError
from simulation.records import RoundRecord
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
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], message: str, tiny_model_folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(tiny_model_folder, **changes)


def test_a_fleet_of_one_is_refused(tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(InputError, match="two devices"):
        run_sharing({0: USERS[0][:2]}, make_config(tiny_model_folder), tmp_path / "run")
