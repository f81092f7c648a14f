"""The same config and seed give the same adapters in every runtime, to the bit; all personal ones as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from torch import Tensor

import client.recorded
from client import app as client_app
from server import app as server_app
from simulation.runtimes.deployment import run_deployment
from simulation.runtimes.inprocess import InProcessGrid, run_in_process
from simulation.runtimes.ray import run_ray
from tests.simulation.runtimes.fleet import DEVICES, assert_alike, outcome, record_fleet, write_config


@pytest.fixture(autouse=True)
def _fresh_model() -> Iterator[None]:
    yield
    client.recorded.release()
    client.recorded.open_fleet.cache_clear()


def in_process(folder: Path, config: Path, model: Path) -> dict[str, Tensor]:
    fleet = record_fleet(folder / "fleet", model)
    run_config = {"config": str(config), "directory": str(folder / "run")}
    run_in_process(server_app.app, client_app.app, fleet, DEVICES, run_config=run_config)
    return outcome(fleet, folder / "run")


class Apart(InProcessGrid):
    """Devices that share no loaded model, and whose answers come last first, when all have been asked."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        client.recorded.release()
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        names = list(message_ids)
        return reversed(list(super().pull_messages(names))) if len(names) == DEVICES else []


# A rule that needs each reply for itself adds them in float32, in the order in which they came.
@pytest.mark.parametrize(("rule", "tolerance"), [("fedit", 0.0), ("sketch", 0.0), ("fedex", 1e-6)])
def test_neither_the_order_of_answers_nor_a_shared_model_changes_the_result(
    rule: str, tolerance: float, tmp_path: Path, tiny_model_folder: Path
) -> None:
    config = write_config(tmp_path, tiny_model_folder, plan={"rule": rule, "personal": "dual"})
    expected = in_process(tmp_path / "together", config, tiny_model_folder)
    client.recorded.release()
    fleet = record_fleet(tmp_path / "apart", tiny_model_folder)
    context = Context(
        run_id=1,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config={"config": str(config), "directory": str(tmp_path / "run")},
    )
    server_app.app(Apart(client_app.app, DEVICES, node_config={"fleet": str(fleet)}), context)
    assert_alike(outcome(fleet, tmp_path / "run"), expected, tolerance=tolerance)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("run", [run_ray, run_deployment])
def test_a_runtime_of_many_processes_ends_as_one_process_does(
    run: Callable[..., None], tmp_path: Path, tiny_model_folder: Path
) -> None:
    config = write_config(tmp_path, tiny_model_folder)
    expected = in_process(tmp_path / "together", config, tiny_model_folder)
    fleet = record_fleet(tmp_path / "fleet", tiny_model_folder)
    run(fleet, DEVICES, run_config={"config": str(config)}, directory=tmp_path / "run")
    assert_alike(outcome(fleet, tmp_path / "run"), expected)
