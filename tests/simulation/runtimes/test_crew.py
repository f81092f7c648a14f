"""Devices played by several processes end as in one; a process that dies is told, and nothing of it is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

import client.recorded
from client import app as client_app
from florilegium.errors import FlorilegiumError
from server.app import GridTransport, coordinator
from server.config import CoordinationConfig
from simulation.runtimes.crew import CrewGrid
from simulation.runtimes.inprocess import InProcessGrid, node_of
from tests.simulation.runtimes.fleet import DEVICES, assert_alike, outcome, record_fleet, write_config

app = ClientApp()


@app.query()
def sleep(message: Message, context: Context) -> Message:
    """Answer with the device's number, the first device last."""
    number = int(str(context.node_config["partition-id"]))
    time.sleep(0.2 * (2 - number))
    content = RecordDict({"told": MetricRecord({"number": number, "process": os.getpid()})})
    return Message(content=content, reply_to=message)


HERE = f"{__name__}:app"


@pytest.fixture(autouse=True)
def _fresh_model() -> Iterator[None]:
    yield
    client.recorded.release()
    client.recorded.open_fleet.cache_clear()


def ask(device: int) -> Message:
    return Message(RecordDict(), node_of(device), MessageType.QUERY)


def play(folder: Path, model: Path, config: CoordinationConfig, *, workers: int) -> dict[str, Tensor]:
    fleet = folder / "fleet"
    if not fleet.exists():
        record_fleet(fleet, model)
    told = {"fleet": str(fleet)}
    if workers == 1:
        grid = InProcessGrid(client_app.app, DEVICES, node_config=told)
        list(coordinator(config, GridTransport(grid, config), folder / "run").rounds())
    else:
        with closing(CrewGrid(DEVICES, workers=workers, node_config=told)) as crew:
            transport = GridTransport(crew, config, pause=crew.pause)
            list(coordinator(config, transport, folder / "run").rounds())
    return outcome(fleet, folder / "run")


def test_several_processes_end_as_one_does_to_the_bit(tmp_path: Path, tiny_model_folder: Path) -> None:
    """The rule adds replies in the order in which they come, so that their order counts as well."""
    config = CoordinationConfig.load(
        write_config(tmp_path, tiny_model_folder, plan={"rule": "fedex", "personal": "dual"})
    )
    one, two = (play(tmp_path / str(workers), tiny_model_folder, config, workers=workers) for workers in (1, 2))
    assert_alike(two, one)
    assert not multiprocessing.active_children()


def test_replies_come_in_the_order_of_their_messages_from_several_processes() -> None:
    with closing(CrewGrid(DEVICES, workers=2, client=HERE)) as grid:
        replies = list(grid.send_and_receive([ask(device) for device in range(DEVICES)]))
    told = [reply.content.metric_records["told"] for reply in replies]
    assert [each["number"] for each in told] == [0, 1, 2]
    processes = {each["process"] for each in told}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_a_message_to_nobody_is_answered_with_an_error() -> None:
    with closing(CrewGrid(DEVICES, workers=2, client=HERE)) as grid:
        (reply,) = grid.send_and_receive([ask(DEVICES)])
    assert reply.has_error()


@pytest.mark.slow
def test_a_process_that_dies_is_told_and_the_run_goes_on_to_the_same_end(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    config = CoordinationConfig.load(write_config(tmp_path, tiny_model_folder))
    expected = play(tmp_path / "whole", tiny_model_folder, config, workers=1)
    fleet = record_fleet(tmp_path / "killed" / "fleet", tiny_model_folder)
    with closing(CrewGrid(DEVICES, workers=2, node_config={"fleet": str(fleet)})) as crew:
        transport = GridTransport(crew, config, pause=crew.pause)
        rounds = coordinator(config, transport, tmp_path / "killed" / "run").rounds()
        next(rounds)
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(FlorilegiumError, match="exit code -9"):
            next(rounds)
    assert not multiprocessing.active_children()
    assert_alike(play(tmp_path / "killed", tiny_model_folder, config, workers=1), expected)
