"""Two users' devices behind the real apps in one process: what they answer, and that no word of a dialogue leaves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict

from client import app as client_app
from client.annotation import QueueAnnotator
from client.device import Device, DeviceSettings
from privacy.egress import ErrorCode
from server import app as server_app
from server.checkpoint import RoundLog
from server.config import CoordinationConfig
from simulation.runtimes.inprocess import InProcessGrid, node_of

SECRET = "the-aubergine-is-in-the-cupboard"
ADAPTER = {"rank": 2, "alpha": 4.0, "top_layers": 1, "dropout": 0.0}


@pytest.fixture
def devices(tmp_path: Path, tiny_model_folder: Path) -> list[Path]:
    return [make(tmp_path / f"board-{number}", tiny_model_folder) for number in range(2)]


def make(directory: Path, model: Path, **changes: object) -> Path:
    values = {"model": str(model), "bins": 8, "holdout_share": 0.3, "synthesis_count": 1, "max_new_tokens": 4}
    Device.create(directory, DeviceSettings.parse({**values, "adapter": ADAPTER, **changes}))
    with Device.open(directory) as device:
        for number in range(10):
            device.observe(f"{directory.name} {SECRET} {number}?", "I do not know.", dialogue_id=f"d{number}")
        user = QueueAnnotator(device.buffer)
        for item in [*device.buffer.dialogues(), *device.buffer.heldout()]:
            user.answer(item.dialogue.dialogue_id, "ideal", f"It is {SECRET}.")
    return directory


class Recording(InProcessGrid):
    """A grid that remembers what devices sent."""

    def __init__(self, devices: list[Path]) -> None:
        super().__init__(
            client_app.app, len(devices), node_configs=[{"device": str(directory)} for directory in devices]
        )
        self.seen: list[bytes] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for reply in super().pull_messages(message_ids):
            arrays = [array.data for record in reply.content.array_records.values() for array in record.values()]
            self.seen.append(repr(reply.content).encode() + b"".join(arrays))
            yield reply

    def leaked(self) -> bool:
        """Whether anything of a dialogue, or of a path, left."""
        forms = (SECRET.encode(), SECRET.encode("utf-16-le"), json.dumps(SECRET).encode(), b"aubergine", b"board-")
        return any(form in one for one in self.seen for form in forms)


def play(grid: Recording, model: Path, folder: Path, **changes: object) -> list[RoundLog]:
    values = {"model": str(model), "adapter": ADAPTER, "cohort": 2, "local_steps": 6, "batch_size": 4, **changes}
    config = CoordinationConfig.parse(values)
    made = server_app.coordinator(config, server_app.GridTransport(grid, config), folder)
    return [log for log, _ in made.rounds()]


def test_devices_of_users_take_part_and_use_what_their_gates_like(
    devices: list[Path], tmp_path: Path, tiny_model_folder: Path
) -> None:
    grid = Recording(devices)
    logs = play(grid, tiny_model_folder, tmp_path / "run", rounds=2, plan={"rule": "fedit", "personal": "dual"})
    assert [(log.taken, dict(log.failed), dict(log.refused)) for log in logs] == [(2, {}, {})] * 2
    assert (len(grid.seen), grid.leaked()) == (4, False)
    for directory in devices:
        with Device.open(directory) as device:
            assert device.worn == ("personal", "shared")
            assert device.observe("Where is it?").dialogue.response


def test_a_device_in_use_is_busy_and_the_round_goes_on(
    devices: list[Path], tmp_path: Path, tiny_model_folder: Path
) -> None:
    grid = Recording(devices)
    with Device.open(devices[0]):
        (log,) = play(grid, tiny_model_folder, tmp_path / "run", rounds=1)
    assert (log.taken, dict(log.failed)) == (1, {node_of(0): "BUSY"})
    assert not grid.leaked()


def test_a_device_of_another_scale_or_a_higher_rank_does_not_stop_the_run(
    devices: list[Path], tmp_path: Path, tiny_model_folder: Path
) -> None:
    other = make(tmp_path / "board-2", tiny_model_folder, adapter=ADAPTER | {"alpha": 8.0})
    larger = make(tmp_path / "board-3", tiny_model_folder, adapter=ADAPTER | {"rank": 4, "alpha": 8.0})
    grid = Recording([devices[0], other, larger])
    (log,) = play(grid, tiny_model_folder, tmp_path / "run", rounds=1, cohort=3, plan={"rule": "flexlora"})
    assert (log.asked, log.taken, dict(log.failed)) == (2, 1, {node_of(1): "BAD_REQUEST"})
    (log,) = play(grid, tiny_model_folder, tmp_path / "one-rank", rounds=1, cohort=3, plan={"rule": "fedit"})
    assert (log.taken, dict(log.failed)) == (1, {node_of(1): "BAD_REQUEST", node_of(2): "BAD_REQUEST"})
    assert not grid.leaked()


def test_a_damaged_device_is_a_code_and_no_text(devices: list[Path], tmp_path: Path, tiny_model_folder: Path) -> None:
    (devices[0] / "buffer.sqlite").write_bytes(SECRET.encode() * 1000)
    (devices[1] / "device.toml").write_text(f'{SECRET} = "{SECRET}"')
    grid = Recording([*devices, make(tmp_path / "board-2", tiny_model_folder)])
    (log,) = play(grid, tiny_model_folder, tmp_path / "run", rounds=1, cohort=3)
    assert dict(log.failed) == {node_of(0): "STORAGE", node_of(1): "BAD_REQUEST"}
    assert not grid.leaked()


def test_the_environment_names_a_device_where_the_node_does_not(
    devices: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rank(**node: str) -> dict[str, object]:
        InProcessGrid(client_app.app, 1)  # gives messages an identity
        message = Message(RecordDict(), node_of(0), "query")
        message.metadata.__dict__["_message_id"] = "m"
        context = Context(run_id=1, node_id=1, node_config=dict(node), state=RecordDict(), run_config={})
        return dict(client_app.app(message, context).content.metric_records["metrics"])

    assert rank() == {"error": float(ErrorCode.BAD_REQUEST)}
    monkeypatch.setenv(client_app.DEVICE_VARIABLE, str(devices[0]))
    assert rank() == {"rank": 2.0}
    assert rank(device=str(devices[0].parent)) == {"error": float(ErrorCode.STORAGE)}
