"""The sides of the fleet's benchmark do the same work, and its tables say what was found; nothing is timed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import client.recorded
from benchmarks import fleet, fleet_bare, fleet_ours, fleet_scale, fleet_uplink
from benchmarks.fleet import Outcome
from benchmarks.fleet_scale import CLIENTS, Cost, Load
from benchmarks.fleet_uplink import SHAPE, Uplink
from benchmarks.fleet_workload import ADAPTER, Workload, begin, mean_loss, token_rows, write_model
from client.adapters import fresh_adapter
from client.model import load_model
from strategies.settings import PlanSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("workload")
    write_model(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def no_fleet() -> Iterator[None]:
    yield
    client.recorded.release()
    client.recorded.open_fleet.cache_clear()


def test_the_text_of_a_row_is_read_back_as_its_tokens(model: str) -> None:
    work = Workload(model=model, rows=3)
    base = load_model(model, device="cpu")
    for lesson, row in zip(fleet_ours.lessons(work, 0), token_rows(work, 0), strict=True):
        assert base.example_ids(lesson.example.question, lesson.example.response) == (row, 1)


def test_ours_and_the_bare_loop_end_at_the_same_adapter(model: str) -> None:
    # With the whole fleet in a round and one step a device, neither cohorts nor the order of rows can differ.
    work = Workload(model=model, devices=3, cohort=3, rounds=2, rows=4, batch=4, tokens=12)
    start = begin(work)
    (seconds, ours), (_, bare) = fleet_ours.play(work), fleet_bare.play(work)
    assert len(seconds) == work.rounds
    assert ours.keys() == bare.keys() == start.keys()
    moved = sum(float((bare[key] - start[key]).square().sum()) for key in start)
    apart = sum(float((bare[key] - ours[key]).square().sum()) for key in start)
    assert apart < 1e-8 * moved  # (1e-4)²: float32, summed in another order
    assert mean_loss(work, ours) < mean_loss(work, start)


def test_a_load_is_answered_by_all_with_whole_updates(tiny_model_folder: Path, tmp_path: Path) -> None:
    load = Load(fleet=str(tmp_path), model=str(tiny_model_folder), devices=4, cohort=2, rounds=3)
    fleet_scale.record_fleet(load)
    numbers = sum(tensor.numel() for tensor in fresh_adapter(load.model, SHAPE, 0).values())
    for kind in CLIENTS:
        cost = fleet_scale.measure(replace(load, client=kind))
        assert cost.update_bytes == 4 * numbers
        assert cost.message_ms > 0
        assert cost.peak_mb > 0


def test_bytes_follow_from_the_shapes_of_the_adapter(model: str) -> None:
    # Of each of 4 layers A is (8, 128) and B (384, 8), float32.
    adapter = fresh_adapter(model, ADAPTER, 0)
    a, b = 4 * 4 * 8 * 128, 4 * 4 * 384 * 8
    sent = {rule: fleet_uplink.sent_bytes(PlanSettings(rule=rule), adapter) for rule in ("fedit", "rolora", "fedsb")}
    assert sent["fedit"]["identity"] == [a + b] * 3
    assert sent["rolora"]["identity"] == [b, a, b]
    assert sent["fedsb"]["identity"] == [a + b, 4 * 4 * 64, 4 * 4 * 64]
    assert sent["fedit"]["int8"] == [(a + b) // 4 + 4 * 8] * 3  # a byte a number, and a step for each tensor
    assert fleet_uplink.sent_bytes(PlanSettings(rule="flora"), adapter).keys() == {"identity"}
    alone = PlanSettings(rule="none", personal="local", personal_options={"share": 1.0})
    assert fleet_uplink.sent_bytes(alone, adapter)["identity"] == [0, 0, 0]


def test_ratios_are_taken_within_a_repetition() -> None:
    def outcome(seconds: float, in_all: float) -> Outcome:
        return Outcome(seconds=[9.0, seconds, seconds], in_all=in_all, loss_before=2.0, loss_after=1.0)

    found = {"ours": [outcome(1.0, 6.0), outcome(4.0, 8.0)], "bare loop": [outcome(2.0, 6.0), outcome(4.0, 4.0)]}
    last = fleet.table(found).splitlines()[-1]
    assert last.startswith("| bare loop | 3.000 (2.000–4.000) | 5.0 (4.0–6.0) |")
    assert last.endswith("| 0.75 (0.50–1.00) | 1.50 (1.00–2.00) |")


def test_memory_stands_beside_that_of_the_smallest_fleet() -> None:
    load = Load(fleet="", model="seedling", devices=10, cohort=2, rounds=3)
    found = [
        (replace(load, devices=devices, client=kind), Cost(message_ms=1.0, peak_mb=peak, update_bytes=2048))
        for devices, peak in ((10, 100.0), (1000, 150.0))
        for kind in CLIENTS
    ]
    last = fleet_scale.table(found).splitlines()[-1]
    assert last == "| 1,000 | 2 | 1.00 | 150 | 1.500 | 1.00 | 150 | 1.500 |"


def test_a_codec_that_a_plan_refuses_has_no_number() -> None:
    rows = [
        Uplink(model="m", plan="fedit", sent={name: [8192, 4096, 2048] for name in ("identity", "int8")}),
        Uplink(model="m", plan="flora", sent={"identity": [1024, 1536, 1536]}),
    ]
    last = fleet_uplink.table(rows).splitlines()[-1]
    assert last == "| flora | 1.5 | – | – | – | 0.5000 | 1.0 |"
