"""A whole comparison on a tiny model: equal budgets, resumption, no text in its files, arms by registry."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.adapters import AdaptedModel
from client.dialogue import Example, derive_id
from client.finetuning import FineTuneConfig
from client.learning import Adapter, Trial, judge, train
from florilegium.errors import ConfigError, InputError, ModelError
from simulation.arms import ARMS, Arm
from simulation.compare import CompareConfig, Progress, deal_users, run_compare, run_name, users_of_part
from simulation.plan import Task
from simulation.records import METRICS, RoundRecord
from simulation.rundir import RunConfig
from simulation.summary import Summary
from simulation.users import Turn, UserData

ROOT = Path(__file__).parents[2]
ARM_NAMES = ("none", "retrieval", "local-random", "local-fifo-nosynth", "retrieval+local", "full-stream")
WORDS = ["red", "green", "blue", "cat", "dog", "train", "coast", "soup", "plant", "water", "late", "early"]


def make_user(name: str, turns: int = 14) -> UserData:
    """Make a user whose texts all hold a canary."""
    stream = tuple(
        Turn(
            turn_id=derive_id(name, number),
            question=f"CANARY {WORDS[number % 12]} {WORDS[(number * 5) % 12]} of {name}?",
            preferred=f"CANARY {WORDS[(number * 7) % 12]} it is.",
            response="CANARY given" if number % 3 == 0 else None,
            kind=("fact", "chitchat")[number % 2],
            day=number,
        )
        for number in range(turns)
    )
    heldout = tuple(
        Example(
            question=f"CANARY which {WORDS[number]}?",
            response=f"CANARY {WORDS[(number * 7) % 12]}.",
            source_id=derive_id(name, "held", number),
            example_id=derive_id(name, "held", number),
        )
        for number in range(3)
    )
    return UserData(user_id=name, stream=stream, heldout=heldout, heldout_kinds={heldout[0].example_id: "private"})


USERS = {0: [make_user("ada")], 1: [make_user("ada", turns=17)]}


def make_config(model: Path, **changes: object) -> CompareConfig:
    values: dict[str, object] = {
        "model": str(model), "arms": ARM_NAMES, "bins": 4, "rounds": 2, "annotations_per_round": 2,
        "holdout_share": 0.3, "synthesis_count": 1, "epochs": 1, "batch_size": 4, "rank": 2, "max_new_tokens": 6,
        "bootstrap_draws": 200, "workers": 1,
    }  # fmt: skip
    return CompareConfig.parse({**values, **changes})


def read_records(run: Path) -> list[RoundRecord]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [RoundRecord.model_validate_json(line) for line in lines]


def without_seconds(run: Path) -> list[dict[str, object]]:
    return [record.model_dump(exclude={"seconds"}) for record in read_records(run)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> tuple[Path, Summary, list[Progress]]:
    """Run all arms once."""
    run = tmp_path_factory.mktemp("runs") / "run"
    seen: list[Progress] = []
    summary = run_compare(USERS, make_config(tiny_model_folder), run, progress=seen.append)
    return run, summary, seen


Finished = tuple[Path, Summary, list[Progress]]


def test_every_arm_within_the_budget_spends_the_same(finished: Finished) -> None:
    run, summary, _ = finished
    spent: dict[tuple[int, str, int], dict[str, RoundRecord]] = defaultdict(dict)
    for record in read_records(run):
        spent[record.seed, record.user, record.round][record.arm] = record
    assert len(spent) == 2 * 3  # two users, rounds 0 to 2
    for (_, _, number), arms in spent.items():
        assert set(arms) == set(ARM_NAMES)
        learning = [arms[name] for name in ARM_NAMES if ARMS[name].within_budget]
        assert {record.annotations for record in learning} == {2 * number}
        assert len({record.gate_annotations for record in learning}) == 1
        trained = [arms[name] for name in ARM_NAMES if ARMS[name].within_budget and ARMS[name].trains]
        assert {record.rows for record in trained} == {2 * number * (1 + 1)}
        assert len({record.steps for record in trained}) == 1
        assert arms["none"].annotations == arms["none"].rows == arms["retrieval"].rows == 0
    assert summary.budgets_equal.annotations
    assert summary.budgets_equal.training_rows
    assert summary.arms["local-random"].budget.training_rows == 2 * (4 + 8)


def test_the_upper_bound_trains_on_the_stream(finished: Finished) -> None:
    last = {
        (record.seed, record.user): record
        for record in read_records(finished[0])
        if record.arm == "full-stream" and record.round == 2
    }
    for (seed, name), record in last.items():
        turns = next(len(user.stream) for user in USERS[seed] if user.user_id == name)
        held_out = record.decisions.get("heldout/keep/held-out", 0)
        assert record.rows == record.original_rows == turns - held_out
        assert held_out > 0


def test_the_upper_bound_trains_on_no_question_of_the_gate_in_whatever_spelling(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeat all questions, so that of those held out one is judged and the others find no room."""
    trained: set[str] = set()
    judged: set[str] = set()

    def keep_rows(model: AdaptedModel, rows: Sequence[Example], config: FineTuneConfig) -> Adapter:
        trained.update(row.question.lower() for row in rows)
        return train(model, rows, config)

    def keep_asked(*given: Any, **named: Any) -> Trial:
        judged.update(row.question.lower() for row in given[4])
        return judge(*given, **named)

    monkeypatch.setattr("simulation.play.train", keep_rows)
    monkeypatch.setattr("simulation.play.judge", keep_asked)
    user = make_user("ada", turns=24)
    stream = [
        replace(turn, question=turn.question.upper() if number >= 12 else turn.question)
        for number, turn in enumerate(user.stream)
    ]
    config = make_config(tiny_model_folder, arms=("full-stream",), rounds=1, holdout_bins=1)
    run_compare({0: [replace(user, stream=tuple(stream))]}, config, tmp_path)
    assert len(judged) == 1
    assert trained
    assert not judged & trained


def test_the_base_model_s_arm_never_changes(finished: Finished) -> None:
    scores = defaultdict(set)
    for record in read_records(finished[0]):
        if record.arm == "none" or record.round == 0:
            scores[record.seed, record.user].add(tuple(record.scores.items()))
    assert all(len(each) == 1 for each in scores.values())


def test_scores_follow_the_gate(finished: Finished) -> None:
    promoted = []
    before: dict[object, dict[str, float]] = {}
    for record in read_records(finished[0]):
        if record.arm in ("local-random", "full-stream"):
            expected = record.candidate if record.promoted else before.get(record.key, record.scores)
            assert record.scores == expected
            promoted.append(record.promoted)
        before[record.key] = record.scores
    assert True in promoted, "with no promotion this test shows nothing"


def test_a_candidate_s_strength_is_recorded(finished: Finished) -> None:
    strengths = {record.promoted is None: set[float | None]() for record in read_records(finished[0])}
    for record in read_records(finished[0]):
        strengths[record.promoted is None].add(record.strength)
    assert strengths[True] == {None}
    assert strengths[False] <= {1.0, 0.5, 0.25}


def test_a_lower_strength_is_less_of_the_same_training(tiny_model_folder: Path, tmp_path: Path) -> None:
    found = {}
    for strength in (1.0, 0.5):
        config = make_config(tiny_model_folder, arms=("local-random",), rounds=1, strengths=(strength,))
        run_compare({0: USERS[0]}, config, tmp_path / str(strength))
        found[strength] = read_records(tmp_path / str(strength))[-1]
    whole, half = found[1.0], found[0.5]
    assert (whole.strength, half.strength) == (1.0, 0.5)
    assert (whole.steps, whole.rows) == (half.steps, half.rows)
    before = read_records(tmp_path / "0.5")[0].scores
    for name in ("nll", "forgetting"):
        assert abs(half.candidate[name] - before[name]) < abs(whole.candidate[name] - before[name])


def test_the_summary_on_the_disk_is_the_returned_one(finished: Finished) -> None:
    run, summary, _ = finished
    assert Summary.model_validate_json((run / "summary.json").read_text(encoding="utf-8")) == summary
    assert list(summary.arms) == list(ARM_NAMES)
    assert (summary.users, summary.seeds) == (2, [0, 1])
    assert summary.stream_kinds == {"fact": 7 + 9, "chitchat": 7 + 8}
    assert set(summary.arms["none"].by_kind) == {"private"}


def test_no_file_of_a_run_holds_any_text_of_a_user(finished: Finished) -> None:
    files = [path for path in finished[0].rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {
        "config.json",
        "versions.json",
        "metrics.jsonl",
        "users.csv",
        "report.html",
    }
    for path in files:
        assert b"CANARY" not in path.read_bytes(), path.name


def test_the_report_names_every_arm(finished: Finished) -> None:
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in page for name in ARM_NAMES)


def test_users_csv_has_one_line_per_user_and_arm(finished: Finished) -> None:
    run, summary, _ = finished
    with (run / "users.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(ARM_NAMES)
    mine = [float(row["rouge1_minus_none"]) for row in rows if row["arm"] == "full-stream"]
    assert sorted(mine) == pytest.approx(summary.arms["full-stream"].differences["none"]["rouge1"].per_user, abs=1e-5)


def test_progress_counts_pieces_and_shows_finished_users(finished: Finished) -> None:
    seen = finished[2]
    assert [progress.done for progress in seen] == list(range(13))
    assert {progress.total for progress in seen} == {12}
    assert seen[5].summary is None
    assert seen[6].summary is not None
    assert seen[6].summary.users == 1


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_and_ends_the_same(
    finished: Finished, tiny_model_folder: Path, tmp_path: Path, workers: int
) -> None:
    """Kill a run in the middle, tear its last line, go on in this process."""
    run = tmp_path / "run"
    script = tmp_path / "script.py"
    script.write_text(
        "import importlib.util, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('cases', {__file__!r})\n"
        "cases = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(cases)\n"
        "if __name__ == '__main__':\n"
        f"    config = cases.make_config(pathlib.Path({str(tiny_model_folder)!r}), workers={workers})\n"
        f"    cases.run_compare(cases.USERS, config, pathlib.Path({str(run)!r}))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    log = run / "metrics.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < 4 * 3:
        assert parent.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    torn = log.read_bytes()
    log.write_bytes(torn[:-20])
    seen: list[Progress] = []
    summary = run_compare(USERS, make_config(tiny_model_folder), run, progress=seen.append)
    assert 3 <= seen[0].resumed < 12
    assert without_seconds(run) == without_seconds(finished[0])
    assert summary.contrasts == finished[1].contrasts


def test_a_finished_run_is_only_summed_up_again(finished: Finished, tiny_model_folder: Path) -> None:
    run, summary, _ = finished
    records = (run / "metrics.jsonl").read_bytes()
    again = run_compare(USERS, make_config(tiny_model_folder, workers=2), run)
    assert (run / "metrics.jsonl").read_bytes() == records
    assert again == summary


def test_a_run_is_given_more_and_less(finished: Finished, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Arms, seeds and users only select what is measured: nothing is measured twice, and nothing differently."""
    run, arms = tmp_path / "run", ARM_NAMES[2:4]
    seen: list[Progress] = []
    less = run_compare({0: USERS[0]}, make_config(tiny_model_folder, arms=arms), run)
    first = without_seconds(run)
    whole = run_compare(USERS, make_config(tiny_model_folder), run, progress=seen.append)
    assert (seen[0].resumed, seen[0].done, seen[0].total) == (2, 2, 12)
    assert without_seconds(run) == without_seconds(finished[0])
    assert whole.contrasts == finished[1].contrasts
    again = run_compare({0: USERS[0]}, make_config(tiny_model_folder, arms=arms), run, progress=seen.append)
    assert again == less
    assert (seen[-1].resumed, seen[-1].total) == (2, 2)
    assert [record for record in without_seconds(run) if record in first] == first
    assert len(read_records(run)) == len(read_records(finished[0]))
    assert (run / "users.csv").read_text().count("\n") == 1 + 2


def test_the_config_tells_how_to_repeat_a_run(tiny_model_folder: Path, tmp_path: Path) -> None:
    config = make_config(tiny_model_folder, arms=("none",), rounds=1)
    run_compare({0: USERS[0]}, config, tmp_path, source={"file": {"name": "log.jsonl", "users": 1}})
    told = RunConfig.model_validate_json((tmp_path / "config.json").read_bytes())
    assert told.request["source"] == {"file": {"name": "log.jsonl", "users": 1}}
    assert told.request["seeds"] == [0]
    settings = {
        key: value for key, value in (told.identity | told.request).items() if key in CompareConfig.model_fields
    }
    assert CompareConfig.parse({**settings, "workers": 1}) == config
    assert {"weights", "code", "python", "torch", "transformers", "peft", "numpy", "flwr"} <= told.identity.keys()
    assert str(tmp_path) not in json.dumps(told.identity)


@pytest.mark.parametrize(
    "change",
    [
        lambda user: replace(user, user_id="eve"),
        lambda user: replace(user, heldout_kinds={}),
        lambda user: replace(user, stream=(replace(user.stream[0], day=9), *user.stream[1:])),
        lambda user: replace(user, stream=(replace(user.stream[0], kind="x"), *user.stream[1:])),
        lambda user: replace(user, stream=(replace(user.stream[0], revisions=((3, "x"),)), *user.stream[1:])),
    ],
)
def test_a_run_s_name_depends_on_all_data(tiny_model_folder: Path, change: Callable[[UserData], UserData]) -> None:
    config = make_config(tiny_model_folder)
    assert run_name({0: [make_user("ada")]}, config) != run_name({0: [change(make_user("ada"))]}, config)


def test_a_run_s_name_depends_on_what_is_asked_for_and_on_no_folder(tiny_model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    name = run_name(USERS, make_config(tiny_model_folder))
    assert len(name) == 12
    assert name == run_name(USERS, make_config(tmp_path / "model", workers=3))
    others = [make_config(tiny_model_folder, **change) for change in ({"arms": ("none",)}, {"epochs": 2}, {"seed": 1})]
    assert len({name, *(run_name(USERS, config) for config in others)}) == 4


def test_measurements_of_other_code_are_refused(
    finished: Finished, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished[0] / "metrics.jsonl").read_bytes()
    monkeypatch.setattr("simulation.identity._code", lambda: "another")
    with pytest.raises(ConfigError, match="differs in code; "):
        run_compare(USERS, make_config(tiny_model_folder), finished[0])
    assert (finished[0] / "metrics.jsonl").read_bytes() == before


def test_a_task_s_temporary_files_lie_in_the_run(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(task: Task) -> Iterator[list[RoundRecord]]:
        assert task.work == tmp_path / ".work"
        (task.work / "text").write_text("private")
        raise ModelError("enough")

    monkeypatch.setattr("simulation.compare._play", play)
    with pytest.raises(ModelError, match="enough"):
        run_compare(USERS, make_config(tiny_model_folder), tmp_path)
    assert not (tmp_path / ".work").exists()


@pytest.mark.parametrize(
    ("changes", "users", "named"),
    [
        ({"epochs": 2}, USERS, "differs in epochs; repeat"),
        ({}, {**USERS, 1: [make_user("ada", turns=16)]}, "other data of user 'ada' of seed 1"),
    ],
)
def test_another_comparison_is_refused(
    finished: Finished,
    tiny_model_folder: Path,
    changes: Mapping[str, object],
    users: Mapping[int, list[UserData]],
    named: str,
) -> None:
    with pytest.raises(ConfigError, match=named):
        run_compare(users, make_config(tiny_model_folder, **changes), finished[0])


def test_another_model_of_the_same_name_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    config = make_config(folder, arms=("none",), rounds=1)
    run_compare({0: USERS[0]}, config, tmp_path / "run")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(ConfigError, match="differs in weights; repeat"):
        run_compare({0: USERS[0]}, config, tmp_path / "run")


def test_a_new_arm_is_one_registry_line(
    finished: Finished, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = Arm(name="mine", title="a new arm", policy="eoe", trains=True)
    monkeypatch.setitem(ARMS, arm.name, arm)
    config = make_config(tiny_model_folder, arms=("none", "mine"), rounds=1)
    summary = run_compare({0: USERS[0][:1]}, config, tmp_path / "run")
    assert summary.arms["mine"].title == "a new arm"
    assert summary.arms["mine"].budget.training_rows == 4


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({}, "no users"),
        ({0: []}, "no users"),
        ({0: [make_user("ada"), make_user("ada")]}, "2 users named 'ada'"),
        ({0: [make_user("ada", turns=0)]}, "'ada' has no stream"),
    ],
)
def test_users_that_cannot_be_compared_are_refused(
    users: Mapping[int, list[UserData]], message: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run_compare(users, make_config(tiny_model_folder), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bins": 3}, "2 rounds of 2 annotations need as many bins, there are 3"),
        ({"arms": ("none", "locl-random")}, "arm 'locl-random' is unknown; did you mean 'local-random'"),
        ({"arms": ()}, "arms is empty"),
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"learning_rate": 0}, "learning_rate = 0 is refused"),
        ({"annotation": "al"}, "annotation = 'al' is refused"),
        ({"strengths": (1.0, 0.0)}, r"strengths must be numbers above 0 and at most 1, got \[1.0, 0.0\]"),
    ],
)
def test_settings_are_checked_where_they_are_declared(changes: Mapping[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(Path("model"), **changes)


def test_workers_are_no_part_of_a_run_s_identity() -> None:
    assert make_config(Path("m"), workers=1).identity() == make_config(Path("m"), workers=7).identity()
    json.dumps(make_config(Path("m")).identity())


def test_users_are_dealt_to_seeds_and_nobody_twice() -> None:
    users = [make_user(f"u{number}", turns=1) for number in range(20)]
    dealt = deal_users(users, range(3), most=4, seed=7)
    names = [user.user_id for own in dealt.values() for user in own]
    assert [len(own) for own in dealt.values()] == [4, 4, 4]
    assert len(set(names)) == 12
    assert deal_users(users[::-1], range(3), most=4, seed=7) == dealt
    assert deal_users(users, range(3), most=4, seed=8) != dealt
    more = deal_users(users, range(3), most=5, seed=7)
    assert all(more[seed][:4] == own for seed, own in dealt.items()), "those who were there stay with their seed"
    assert {seed: len(own) for seed, own in deal_users(users[:2], (5, 6, 7), most=4, seed=7).items()} == {5: 1, 6: 1}


def test_users_to_tune_on_and_to_report_on_are_different_halves() -> None:
    users = [make_user(f"u{number}", turns=1) for number in range(200)]
    tune, report = users_of_part(users, "tune"), users_of_part(users, "report")
    assert {u.user_id for u in tune} | {u.user_id for u in report} == {u.user_id for u in users}
    assert len(tune) + len(report) == 200
    # Binomial(200, 1/2): 70 to 130 is more than four standard deviations (7.07) on both sides.
    assert 70 <= len(tune) <= 130
    assert users_of_part(users[:50], "tune") == [user for user in tune if user in users[:50]]


def test_metrics_of_every_record_are_all_there(finished: Finished) -> None:
    assert all(set(record.scores) == set(METRICS) for record in read_records(finished[0]))
