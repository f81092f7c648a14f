"""Both apps in one process, on a recorded fleet of the tiny model: what the server asks for is what devices do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from peft import PeftModel

import client.recorded
from client import app as client_app
from client.adapters import SHARED, AdapterConfig
from client.bounds import LocalBounds
from client.dialogue import Example
from client.finetuning import FineTuneConfig
from client.model import BaseModel
from client.participant import Assignment, Participant
from client.recorded import FleetSettings, Lesson, RecordedFleet
from florilegium.tensors import Tensors
from privacy.egress import ErrorCode
from privacy.ledger import Ledger
from server.app import GridTransport, coordinator
from server.asking import Tally
from server.checkpoint import Progress, RoundLog
from server.config import CoordinationConfig
from server.hyperparameters.fedex_hpo import FedExHPO
from server.registry import Registry
from server.rounds import Coordinator, TooFewRepliesError
from simulation.runtimes.inprocess import InProcessGrid, node_of

DEVICES = 4
ADAPTER = AdapterConfig(rank=2, alpha=4.0, top_layers=1, dropout=0.0)
WORDS = ("rain", "tea", "garden", "letter", "window", "bread", "seven", "uncle")
TIMID, BOLD = 1e-6, 3e-2
FEDEX = {
    "way": "fedex_hpo",
    "options": {
        "candidates": [
            {"learning_rate": rate, "dropout": 0.1, "proximal": 0.0, "synthesis_count": 1} for rate in (TIMID, BOLD)
        ]
    },
}
CENTRAL = {"rule": "ffa", "privacy": {"clip_norm": 0.5, "noise_multiplier": 0.1, "max_rounds": 3}}


def rows(device: int, name: str, count: int) -> list[Lesson]:
    return [
        Lesson(
            example=Example(
                question=f"{WORDS[(device + number) % 8]} {WORDS[number % 8]}?",
                response=f"{WORDS[(3 * device + number) % 8]}.",
                source_id=f"{device}-{name}-{number // 2}",
                example_id=f"{device}-{name}-{number // 2}" + (f"-{number}" if number % 2 else ""),
            )
        )
        for number in range(count)
    ]


@pytest.fixture
def folder(tmp_path: Path, tiny_model_folder: Path) -> Iterator[Path]:
    settings = FleetSettings(model=str(tiny_model_folder), adapter=ADAPTER, finetuning=FineTuneConfig(dtype="float32"))
    record(tmp_path / "fleet", settings)
    yield tmp_path
    client.recorded.release()
    client.recorded.open_fleet.cache_clear()


def record(folder: Path, settings: FleetSettings) -> RecordedFleet:
    client.recorded.open_fleet.cache_clear()
    fleet = RecordedFleet.create(folder, settings)
    for device in range(DEVICES):
        fleet.record(device, rows(device, "r", 6), rows(device, "h", 4))
    return fleet


def server(folder: Path, run: str = "run", *, fleet: str = "fleet", **settings: object) -> Coordinator:
    model = RecordedFleet(folder / fleet).settings.model
    config = CoordinationConfig.parse(
        {"model": model, "adapter": ADAPTER, "rounds": 3, "cohort": DEVICES, "local_steps": 2, "batch_size": 4}
        | settings
    )
    grid = InProcessGrid(client_app.app, DEVICES, node_config={"fleet": str(folder / fleet)})
    return coordinator(config, GridTransport(grid, config), folder / run)


def play(made: Coordinator) -> tuple[list[RoundLog], Progress]:
    logs = [log for log, _ in made.rounds()]
    return logs, made.progress()


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_a_fleet_learns_which_learning_rate_does_it_good(folder: Path) -> None:
    made = server(folder, rounds=6, tuner=FEDEX, local_steps=6)
    logs, progress = play(made)
    learner = made.config.tuner.tuner()
    assert isinstance(learner, FedExHPO)
    assert learner.best(progress.tuner)["learning_rate"] == BOLD
    assert float(learner.probabilities(progress.tuner)[1]) > 0.7
    assert all(log.taken == DEVICES and log.improvement is not None for log in logs)


def test_a_tuned_run_that_is_stopped_after_any_round_ends_the_same(folder: Path) -> None:
    _, expected = play(server(folder, "whole", tuner=FEDEX))
    for device in range(DEVICES):
        (folder / "fleet" / "devices" / f"{device:06d}" / "memory").unlink()
    for _ in range(3):
        next(server(folder, "cut", tuner=FEDEX).rounds())  # and the server is gone
    found = server(folder, "cut", tuner=FEDEX).progress()
    assert found.round == 3
    assert same(found.shared.state, expected.shared.state)
    assert same(found.tuner, expected.tuner)


def test_settings_that_were_played_can_be_played_again(folder: Path) -> None:
    """In another directory, and in the same one without its checkpoint; devices take it as another run."""
    served = []
    for run in ("one", "other", "one"):
        (folder / run / "coordination.safetensors").unlink(missing_ok=True)
        logs, progress = play(server(folder, run, rounds=1))
        assert [(log.round, log.taken) for log in logs] == [(1, DEVICES)]
        version = Registry(folder / run / "registry").versions()[-1]
        assert version.metrics["run"] == progress.run
        served.append((run, version.number))
    assert served == [("one", 1), ("other", 1), ("one", 2)]


def test_a_device_does_what_its_fleet_s_bounds_allow(folder: Path) -> None:
    settings = RecordedFleet(folder / "fleet").settings
    bounds = LocalBounds.parse({"steps": [2, 2], "learning_rate": [1e-3, 1e-3], "proximal": [0.0, 0.1]})
    record(folder / "bounded", settings.model_copy(update={"bounds": bounds}))
    much, that = ({"rule": "fedit", "proximal": proximal} for proximal in (1e6, 0.1))
    _, asked_too_much = play(server(folder, "a", fleet="bounded", plan=much, local_steps=99, learning_rate=0.9))
    _, asked_that = play(server(folder, "b", plan=that, local_steps=2, learning_rate=1e-3))
    assert same(asked_too_much.shared.state, asked_that.shared.state)


def test_a_device_keeps_its_bounds_where_a_server_does_not_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RecordedFleet(folder / "fleet").settings
    record(folder / "fleet", settings.model_copy(update={"bounds": LocalBounds.parse({"steps": [1, 3]})}))
    steps = []

    def answer(participant: Participant, task: Assignment, *_: object) -> tuple[Tensors, dict[str, float]]:
        steps.append(task.steps)
        return {}, {}

    monkeypatch.setattr(Participant, "answer", answer)
    assert error_of(folder, {"steps": None}, {}) is None
    assert steps == [3]


@pytest.mark.parametrize(
    "values", [{"proximal": 50.0}, {"dropout": 0.5}, {"synthesis_count": 0}, {"batch_size": 1}, {"steps": 5}]
)
def test_every_hyperparameter_changes_what_a_device_does(values: dict[str, float], folder: Path) -> None:
    usual = {"proximal": 0.0, "dropout": 0.0, "synthesis_count": 8, "batch_size": 4, "steps": 4}
    states = []
    for run, asked in (("a", usual), ("b", usual | values)):
        record(folder / run, RecordedFleet(folder / "fleet").settings)
        tuner = {"way": "fixed", "options": {"values": asked}}
        states.append(play(server(folder, f"run-{run}", fleet=run, rounds=2, tuner=tuner))[1].shared.state)
    assert not same(*states)


def test_a_private_plan_is_charged_and_the_round_goes_on_without_who_has_spent_all(folder: Path) -> None:
    Ledger(path=folder / "fleet" / "devices" / "000000" / "ledger", max_rounds=9).charge("before", {})
    logs, _ = play(server(folder, plan=CENTRAL))
    assert [dict(log.failed) for log in logs] == [{}, {}, {node_of(0): "BUDGET_SPENT"}]
    assert [log.taken for log in logs] == [4, 4, 3]
    ledger = Ledger(path=folder / "fleet" / "devices" / "000001" / "ledger", max_rounds=3)
    assert [dict(charge.mechanism) for charge in ledger.charges()] == [
        {"clip_norm": 0.5, "noise_multiplier": 0.1, "delta": 1e-5}
    ] * 3
    with pytest.raises(TooFewRepliesError):
        play(server(folder, plan=CENTRAL, rounds=4))


def test_tuning_a_private_plan_takes_two_releases_a_round(folder: Path) -> None:
    plan = {"rule": "ffa", "privacy": {"clip_norm": 0.5, "noise_multiplier": 0.1, "max_rounds": 4}}
    logs, progress = play(server(folder, rounds=2, plan=plan, tuner=FEDEX))
    assert all(log.taken == DEVICES and log.improvement is None for log in logs)
    assert not same(progress.tuner, FedExHPO(**FEDEX["options"]).start())  # type: ignore[arg-type]
    for device in range(DEVICES):
        charges = Ledger(path=folder / "fleet" / "devices" / f"{device:06d}" / "ledger", max_rounds=4).charges()
        assert [str(charge.round_id).count("improvement") for charge in charges] == [0, 1, 0, 1]


def test_buffered_rounds_end_and_merge_what_is_late(folder: Path) -> None:
    made = server(folder, rounds=5, cohort=2, asynchronous={"concurrency": 3}, plan={"personal": "dual"})
    logs, progress = play(made)
    assert [log.taken for log in logs] == [2] * 5
    assert any(log.staleness > 0 for log in logs)
    assert not any(log.refused or log.failed or log.silent for log in logs)
    assert all(bool(tensor.isfinite().all()) for tensor in progress.shared.state.values())


def test_a_buffered_run_goes_on_where_the_server_stopped(folder: Path) -> None:
    restarted = []
    for _ in range(4):
        log, progress = next(server(folder, rounds=4, cohort=2, asynchronous={"concurrency": 3}).rounds())
        restarted.append(log.restarted)
    assert progress.round == 4
    assert restarted[0] == 0
    assert all(restarted[1:])


def test_what_a_grid_cannot_send_is_a_failure(folder: Path) -> None:
    class Deaf(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            kept = [message for message in messages if message.metadata.dst_node_id != node_of(0)]
            return super().push_messages(kept)

    for asynchronous in (None, {"concurrency": 2}):
        made = server(folder, f"{asynchronous}", rounds=1, cohort=3, minimum_replies=3, asynchronous=asynchronous)
        grid = Deaf(client_app.app, DEVICES, node_config={"fleet": str(folder / "fleet")})
        transport = GridTransport(grid, made.config)
        made = coordinator(made.config, transport, folder / f"deaf-{asynchronous}")
        ((log, _),) = list(made.rounds())
        assert log.taken == 3
        assert set(log.failed) <= {node_of(0)}


def test_versions_are_kept_that_peft_loads(folder: Path, tiny_model: BaseModel) -> None:
    made = server(folder, keep_versions=2)
    logs, progress = play(made)
    registry = Registry(folder / "run" / "registry")
    assert [each.metrics["round"] for each in registry.versions()] == [2, 3]
    assert registry.versions()[-1].metrics["taken"] == logs[-1].taken
    peft = PeftModel.from_pretrained(tiny_model.module, str(registry.versions()[-1].path / SHARED))
    held = {name: tensor for name, tensor in peft.named_parameters() if "lora" in name}
    for key, tensor in progress.shared.state.items():
        assert torch.equal(held[key.replace(".weight", ".default.weight")], tensor)
    registry.roll_back()
    play(server(folder, rounds=4, keep_versions=2))
    assert registry.versions()[-1].metrics["round"] == 4
    assert registry.current == 2


def error_of(folder: Path, hyperparameters: Mapping[str, object], told: Mapping[str, object]) -> float | None:
    """What a device answers to a message in which something was changed, or left out where the value is None."""
    made = server(folder)
    progress, transport = made.progress(), made._transport
    assert isinstance(transport, GridTransport)
    exchange = made._asking.tell(progress.shared, 1, 0, 2)
    request = made._asking.request(progress, progress.shared, exchange, node_of(0), Tally())
    message = transport._message(request)
    message.metadata.__dict__["_message_id"] = "m"
    for name, changes in (("turn", told), ("hyperparameters", hyperparameters)):
        record: Any = message.content[name]
        for key, value in changes.items():
            if value is None:
                del record[key]
            else:
                record[key] = value
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"fleet": str(folder / "fleet"), "partition-id": 0},
        state=RecordDict(),
        run_config={},
    )
    error = client_app.app(message, context).content.metric_records["metrics"].get("error")
    return float(error) if isinstance(error, int | float) else None


@pytest.mark.parametrize(
    ("hyperparameters", "told"),
    [
        ({"steps": [1.0, 2.0]}, {}),
        ({"steps": float("nan")}, {}),
        ({"epochs": 3.0}, {}),
        ({}, {"improvement_unit": -1.0}),
        ({}, {"improvement_unit": float("inf")}),
        ({}, {"improvement_unit": "much"}),
        ({}, {"round": 0}),
        ({}, {"plan": "fedit"}),
        ({}, {"plan": '{"rule": "none", "personal": "local"}'}),
        ({}, {"plan": '{"rule": "fedkseed", "rule_options": {"seeds": 100000}}'}),
        ({}, {"exchange": 1}),
        ({}, {"rank": 3}),
    ],
)
def test_a_server_that_asks_for_nonsense_gets_a_code(
    hyperparameters: dict[str, object], told: dict[str, object], folder: Path
) -> None:
    assert error_of(folder, hyperparameters, told) == float(ErrorCode.BAD_REQUEST)


def test_a_server_that_asks_for_a_reply_out_of_proportion_gets_a_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {"plan": '{"rule": "sketch", "rule_options": {"width": 100000}}'}
    assert error_of(folder, {}, wide) is None, "it is no wider than the layers"
    monkeypatch.setattr("client.bounds._LARGEST_REPLY", 1)
    assert error_of(folder, {}, wide | {"run": 2}) == float(ErrorCode.BAD_REQUEST)
    assert error_of(folder, {}, {"run": 2}) is None


def test_a_server_that_asks_for_much_gets_an_answer(folder: Path) -> None:
    assert error_of(folder, {"steps": 2.0, "learning_rate": 1e30}, {"improvement_unit": 1e-9}) is None


@pytest.mark.parametrize(
    ("metrics", "refused", "failed"),
    [
        ({"error": float("nan")}, {}, {node_of(0): "INTERNAL"}),
        ({"error": 1e300}, {}, {node_of(0): "INTERNAL"}),
        ({"error": 1.0}, {}, {node_of(0): "NO_DATA"}),
        ({"improvement": 0.5}, {node_of(0): "bad-metric"}, {}),
        ({"x": [1.0, 2.0]}, {node_of(0): "missing-key"}, {}),
    ],
)
def test_whatever_a_device_says_in_numbers_the_round_goes_on(
    metrics: dict[str, float], refused: dict[int, str], failed: dict[int, str], folder: Path
) -> None:
    class Lying(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
            for reply in super().pull_messages(message_ids):
                if reply.metadata.src_node_id == node_of(0):
                    reply.content["metrics"] = MetricRecord(dict(metrics))
                yield reply

    config = server(folder, rounds=1).config
    grid = Lying(client_app.app, DEVICES, node_config={"fleet": str(folder / "fleet")})
    ((log, _),) = list(coordinator(config, GridTransport(grid, config), folder / "lying").rounds())
    assert (dict(log.refused), dict(log.failed), log.taken) == (refused, failed, DEVICES - 1)


class Late(InProcessGrid):
    """A grid on which the last device's answers are not there while it is late."""

    is_late = True

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        late = {node_of(DEVICES - 1)} if self.is_late else set()
        names = [name for name in message_ids if self._replies[name].metadata.src_node_id not in late]
        return super().pull_messages(names)


def test_a_round_that_has_enough_waits_for_nobody(folder: Path) -> None:
    config = server(folder, rounds=1, cohort=3, over_selection=1.3, deadline_seconds=2.0).config
    for hears_all in (False, True):
        grid = Late(client_app.app, DEVICES, node_config={"fleet": str(folder / "fleet")})
        made = coordinator(config, GridTransport(grid, config, hears_all=hears_all), folder / f"late-{hears_all}")
        ((log, _),) = made.rounds()
        assert (log.asked, log.taken, log.silent) == (4, 3, 0)
        assert (log.seconds > 2.0) == hears_all


def test_a_late_answer_is_none_to_a_later_question(folder: Path) -> None:
    made = server(folder, cohort=3)
    grid = Late(client_app.app, DEVICES, node_config={"fleet": str(folder / "fleet")})
    transport, progress, heard = GridTransport(grid, made.config), made.progress(), []
    for number in (1, 2):
        told = made._asking.tell(progress.shared, number, 0, 2)
        nodes = map(node_of, range(DEVICES))
        requests = [made._asking.request(progress, progress.shared, told, node, Tally()) for node in nodes]
        heard.append([answer.round for answer in transport.ask(requests, seconds=None)])
        grid.is_late = False
    assert heard == [[1, 1, 1], [2, 2, 2, 2]]


@pytest.mark.parametrize(("quiet", "again"), [(600.0, []), (0.0, [node_of(0)])])
@pytest.mark.parametrize(
    ("deadline", "hears_all", "seconds"),
    [(None, False, 60.0), (5.0, False, 5.0), (3600.0, False, 60.0), (5.0, True, None)],
)
def test_who_is_silent_about_its_rank_is_waited_for_once_in_a_while(
    deadline: float | None,
    hears_all: bool,
    seconds: float | None,
    quiet: float,
    again: list[int],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[list[int], float | None]] = []

    class Silent(InProcessGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
            sent = {message.metadata.dst_node_id: message for message in messages}
            asked.append((list(sent), timeout))
            return super().send_and_receive([message for node, message in sent.items() if node != node_of(0)])

    monkeypatch.setattr("server.app._QUIET_SECONDS", quiet)
    config = server(folder, plan={"rule": "flora"}, deadline_seconds=deadline).config
    grid = Silent(client_app.app, DEVICES, node_config={"fleet": str(folder / "fleet")})
    transport = GridTransport(grid, config, hears_all=hears_all)
    nodes = [node_of(number) for number in range(DEVICES)]
    assert list(transport.devices()) == list(transport.devices()) == nodes[1:]
    assert asked == [(nodes, seconds), *([(again, seconds)] if again else [])]


@pytest.mark.parametrize("rank", [float("nan"), float("inf"), 1.5, -1.0])
def test_who_tells_no_rank_is_not_asked(rank: float, folder: Path) -> None:
    class Lying(InProcessGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
            for reply in super().send_and_receive(messages, timeout=timeout):
                if reply.metadata.src_node_id == node_of(0):
                    reply.content["metrics"] = MetricRecord({"rank": rank})
                yield reply

    config = server(folder, rounds=1, plan={"rule": "flexlora"}).config
    grid = Lying(client_app.app, DEVICES, node_config={"fleet": str(folder / "fleet")})
    ((log, _),) = list(coordinator(config, GridTransport(grid, config), folder / "lying").rounds())
    assert log.asked == log.taken == DEVICES - 1
