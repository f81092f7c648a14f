"""A comparison on a fleet with hardware, days and faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from florilegium.errors import ConfigError
from simulation.sharing.compare import SharingProgress, run_sharing
from simulation.sharing.config import SharingConfig
from simulation.users import UserData
from tests.simulation.sharing.test_sharing import make_config, without_seconds
from tests.simulation.test_compare import make_user

DEVICES = 8


@pytest.fixture(scope="module")
def users() -> dict[int, list[UserData]]:
    return {0: [make_user(f"user{number}") for number in range(DEVICES)]}


def fleet_config(model: Path, **changes: object) -> SharingConfig:
    faults = {"dropout": 0.3, "stragglers": 0.3}
    return make_config(
        model, arms=("none", "flora"), unseen=0, cohort=2, measured=3, deadline_seconds=86_400.0, attempts=30,
        ranks_by_profile=True, rank=32, fleet={"devices": DEVICES, "faults": faults}, **changes,
    )  # fmt: skip


def test_rounds_take_time_and_energy_and_devices_are_prepared_when_asked(
    users: dict[int, list[UserData]], tmp_path: Path, tiny_model_folder: Path
) -> None:
    prepared: list[int] = []

    def follow(progress: SharingProgress) -> None:
        prepared.append(len(list((tmp_path / "run" / ".work" / "0" / "facts").glob("*.json"))))

    summary = run_sharing(users, fleet_config(tiny_model_folder), tmp_path / "run", progress=follow)
    assert summary.users == 3
    flora = summary.arms["flora"].budget
    assert flora.fleet_hours > 0
    assert flora.uplink_bytes > 0
    assert summary.arms["none"].budget.fleet_hours == 0
    rounds = prepared[prepared.index(3) :]
    assert rounds == sorted(rounds)
    assert 3 < rounds[-1] <= DEVICES


def test_replies_that_nobody_waits_for_were_sent_all_the_same(
    users: dict[int, list[UserData]], tmp_path: Path, tiny_model_folder: Path
) -> None:
    config = make_config(
        tiny_model_folder, arms=("fedit",), unseen=0, rounds=2, cohort=2, over_selection=2.0, measured=1,
        fleet={"devices": DEVICES, "availability": False},
    )  # fmt: skip
    budget = run_sharing(users, config, tmp_path).arms["fedit"].budget
    # Four devices of eight are asked in a round, and two are heard; each sends as much as it was sent.
    assert budget.uplink_bytes == budget.downlink_bytes > 0


class StoppedError(Exception):
    """Ctrl-C, as far as a run can tell."""


def test_a_stop_changes_neither_results_nor_the_clock(
    users: dict[int, list[UserData]], tmp_path: Path, tiny_model_folder: Path
) -> None:
    config = fleet_config(tiny_model_folder)
    run_sharing(users, config, tmp_path / "whole")

    def follow(progress: SharingProgress) -> None:
        if progress.doing == "flora, seed 0, round 2":
            raise StoppedError

    with pytest.raises(StoppedError):
        run_sharing(users, config, tmp_path / "cut", progress=follow)
    run_sharing(users, config, tmp_path / "cut")
    assert without_seconds(tmp_path / "cut") == without_seconds(tmp_path / "whole")


def test_learning_alone_needs_all_devices(tiny_model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="measured leaves devices unprepared"):
        make_config(tiny_model_folder, measured=2)


def test_ranks_by_profile_need_hardware(tiny_model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="needs \\[fleet\\]"):
        make_config(tiny_model_folder, ranks_by_profile=True)
