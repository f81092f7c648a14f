"""The real ServerApp and ClientApp in one process, on a recorded fleet of the tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import tomli_w
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict

import client.recorded
from client import app as client_app
from client.adapters import AdapterConfig, fresh_adapter
from client.dialogue import Example
from client.finetuning import FineTuneConfig
from client.recorded import FleetSettings, Lesson, RecordedFleet
from privacy.egress import ErrorCode
from server import app as server_app
from server.checkpoint import Progress
from server.config import CoordinationConfig
from server.rounds import Coordinator
from simulation.runtimes.inprocess import InProcessGrid, node_of, run_in_process
from strategies.rule import Turn
from strategies.rules import RULES

DEVICES = 3
ADAPTER = AdapterConfig(rank=2, alpha=4.0, top_layers=1, dropout=0.0)
WORDS = ("rain", "tea", "garden", "letter", "window", "bread", "seven", "uncle")
SECRET = "the-aubergine-is-in-the-cupboard"


def lessons(device: int) -> list[Lesson]:
    return [
        Lesson(
            example=Example(
                question=f"{WORDS[(device + number) % 8]} {WORDS[number % 8]}?",
                response=f"{WORDS[(3 * device + number) % 8]} {SECRET}.",
                source_id=f"{device}-{number}",
                example_id=f"{device}-{number}",
            ),
            since=1 + number // 3,
        )
        for number in range(6)
    ]


@pytest.fixture
def fleet(tmp_path: Path, tiny_model_folder: Path) -> Iterator[RecordedFleet]:
    settings = FleetSettings(
        model=str(tiny_model_folder),
        adapter=ADAPTER,
        finetuning=FineTuneConfig(dtype="float32"),
    )
    made = RecordedFleet.create(tmp_path / "fleet", settings)
    for device in range(DEVICES):
        made.record(device, lessons(device))
    yield made
    client.recorded.release()
    client.recorded.open_fleet.cache_clear()


def write_config(folder: Path, model: Path, **changes: object) -> Path:
    values = {
        "model": str(model),
        "adapter": {"rank": 2, "alpha": 4.0, "top_layers": 1, "dropout": 0.0},
        "rounds": 3,
        "cohort": DEVICES,
        "local_steps": 2,
        "batch_size": 4,
        **changes,
    }
    path = folder / "coordination.toml"
    path.write_text(tomli_w.dumps(values))
    return path


def play(fleet: RecordedFleet, config: Path, directory: Path) -> Progress:
    run_in_process(
        server_app.app,
        client_app.app,
        fleet.folder,
        DEVICES,
        run_config={"config": str(config), "directory": str(directory)},
    )
    return progress_of(config, directory)


def progress_of(config: Path, directory: Path) -> Progress:
    settings = CoordinationConfig.load(config)
    grid = InProcessGrid(client_app.app, 0)
    return server_app.coordinator(settings, server_app.GridTransport(grid, settings), directory).progress()


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_run_of_every_rule_ends_with_all_devices(
    rule: str, fleet: RecordedFleet, tmp_path: Path, tiny_model_folder: Path
) -> None:
    config = write_config(tmp_path, tiny_model_folder, plan={"rule": rule, "personal": "dual"})
    progress = play(fleet, config, tmp_path / "run")
    assert progress.round == 3
    assert dict(progress.participations) == {node_of(device): 3 for device in range(DEVICES)}
    assert all(bool(tensor.isfinite().all()) for tensor in progress.shared.state.values())
    start = RULES[rule]().start(fresh_adapter(str(tiny_model_folder), ADAPTER, 0), _turn())
    changed = [key for key in start if not torch.equal(start[key], progress.shared.state.get(key, torch.zeros(0)))]
    assert changed or rule == "trust", "the state moved"


def _turn() -> Turn:
    return Turn(round=0, rank=2, scale=2.0)


def test_a_server_that_is_stopped_after_any_round_ends_the_same(
    fleet: RecordedFleet, tmp_path: Path, tiny_model_folder: Path
) -> None:
    (tmp_path / "whole").mkdir()
    config = write_config(tmp_path, tiny_model_folder, plan={"rule": "rolora", "codec": "int8"})
    expected = play(fleet, config, tmp_path / "whole" / "run")
    for device in range(DEVICES):
        (fleet.folder / "devices" / f"{device:06d}" / "memory").unlink()
    settings = CoordinationConfig.load(config)

    def begin() -> Coordinator:
        grid = InProcessGrid(client_app.app, DEVICES, node_config={"fleet": str(fleet.folder)})
        return server_app.coordinator(settings, server_app.GridTransport(grid, settings), tmp_path / "cut")

    for _ in range(3):
        next(iter(begin().rounds()))  # and the server is gone
    found = begin().progress()
    assert found.round == expected.round == 3
    for key, tensor in expected.shared.state.items():
        assert torch.equal(tensor, found.shared.state[key]), key


def message(content: RecordDict, kind: str = MessageType.TRAIN, device: int = 0) -> Message:
    InProcessGrid(client_app.app, 1)  # gives messages an identity
    made = Message(content, node_of(device), kind)
    made.metadata.__dict__["_message_id"] = "m"
    return made


def context(fleet: RecordedFleet, device: int = 0, **node: str) -> Context:
    return Context(
        run_id=1,
        node_id=1,
        node_config={"fleet": str(fleet.folder), "partition-id": device, **node},
        state=RecordDict(),
        run_config={},
    )


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (RecordDict(), ErrorCode.BAD_REQUEST),
        (RecordDict({"turn": ConfigRecord({"round": "one"})}), ErrorCode.BAD_REQUEST),
    ],
)
def test_what_goes_wrong_on_a_device_is_a_code_and_no_text(
    content: RecordDict, code: ErrorCode, fleet: RecordedFleet
) -> None:
    reply = client_app.app(message(content), context(fleet))
    (update,), (metrics,) = reply.content.array_records.values(), reply.content.metric_records.values()
    assert dict(metrics) == {"error": float(code)}
    assert not update
    assert not reply.content.config_records


def test_an_exception_s_text_stays_on_the_device(
    fleet: RecordedFleet, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leak(*_: object) -> None:
        raise ValueError(SECRET)

    sent: list[Message] = []
    monkeypatch.setattr(client_app, "open_fleet", leak)
    grid = InProcessGrid(client_app.app, 1, node_config={"fleet": str(fleet.folder)})
    sent += grid.send_and_receive([message(RecordDict())])
    assert SECRET not in repr(sent[0].content)
    assert dict(sent[0].content.metric_records["metrics"]) == {"error": float(ErrorCode.INTERNAL)}


def test_a_device_without_rows_says_so_and_the_round_goes_on(
    fleet: RecordedFleet, tmp_path: Path, tiny_model_folder: Path
) -> None:
    fleet.record(1, [])
    config = CoordinationConfig.load(write_config(tmp_path, tiny_model_folder, rounds=1))
    grid = InProcessGrid(client_app.app, DEVICES, node_config={"fleet": str(fleet.folder)})
    made = server_app.coordinator(config, server_app.GridTransport(grid, config), tmp_path / "run")
    ((log, _),) = list(made.rounds())
    assert (dict(log.failed), log.taken) == ({node_of(1): "NO_DATA"}, 2)


def test_no_word_of_a_dialogue_is_in_what_leaves(fleet: RecordedFleet, tmp_path: Path, tiny_model_folder: Path) -> None:
    seen: list[bytes] = []

    class Recording(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
            for reply in super().pull_messages(message_ids):
                seen.append(
                    repr(reply.content).encode()
                    + b"".join(
                        array.data for record in reply.content.array_records.values() for array in record.values()
                    )
                )
                yield reply

    config = CoordinationConfig.load(write_config(tmp_path, tiny_model_folder, rounds=1))
    grid = Recording(client_app.app, DEVICES, node_config={"fleet": str(fleet.folder)})
    list(server_app.coordinator(config, server_app.GridTransport(grid, config), tmp_path / "run").rounds())
    assert len(seen) == DEVICES
    for form in (SECRET.encode(), SECRET.encode("utf-16-le"), json.dumps(SECRET).encode()):
        assert not any(form in one for one in seen)


def test_devices_of_lower_ranks_are_asked_for_theirs(
    fleet: RecordedFleet, tmp_path: Path, tiny_model_folder: Path
) -> None:
    RecordedFleet.create(fleet.folder, fleet.settings.model_copy(update={"ranks": {"2": 1}}))
    config = write_config(tmp_path, tiny_model_folder, rounds=1, plan={"rule": "flexlora"})
    assert dict(play(fleet, config, tmp_path / "run").participations) == {node_of(n): 1 for n in range(DEVICES)}


def test_a_malformed_reply_is_refused(fleet: RecordedFleet, tmp_path: Path, tiny_model_folder: Path) -> None:
    class Lying(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
            for reply in super().pull_messages(message_ids):
                number = reply.metadata.src_node_id - node_of(0)
                if number == 0:
                    for array in reply.content.array_records["update"].values():
                        array.data = b"\x93NUMPY nonsense"
                if number == 1:
                    reply.content["more"] = MetricRecord({"x": 1.0})
                yield reply

    config = CoordinationConfig.load(write_config(tmp_path, tiny_model_folder, rounds=1))
    grid = Lying(client_app.app, DEVICES, node_config={"fleet": str(fleet.folder)})
    ((log, _),) = list(
        server_app.coordinator(config, server_app.GridTransport(grid, config), tmp_path / "run").rounds()
    )
    assert (len(log.refused), log.taken) == (2, 1)


def test_a_node_that_is_not_there_is_a_failure(fleet: RecordedFleet) -> None:
    grid = InProcessGrid(client_app.app, 1, node_config={"fleet": str(fleet.folder)})
    (reply,) = grid.send_and_receive([message(RecordDict({"update": ArrayRecord()}), device=7)])
    assert reply.has_error()
