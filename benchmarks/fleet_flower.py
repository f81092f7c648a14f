"""The workload in Flower's simulation engine on Ray, with Flower's own FedAvg and an actor on each core.

The client app is at the top of an importable module: only so can an actor keep a model loaded between messages, as
`play` lets it do. `play_loading` loads it for each message, as most of Flower's examples do.
"""

from __future__ import annotations

import functools
import json
import os
import time
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Final

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.fleet_workload import (
    Played,
    Workload,
    adapter_of,
    begin,
    plain_model,
    put_adapter,
    token_rows,
    train_plainly,
)

__all__ = ["play", "play_loading"]

_WORKLOAD: Final = "workload"
_KEEPS: Final = "keeps"

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Play a device's part in a round."""
    torch.set_num_threads(1)
    told = message.content.config_records["config"]
    workload = Workload(**json.loads(str(told[_WORKLOAD])))
    model = _kept_model(workload) if told[_KEEPS] else plain_model(workload)
    put_adapter(model, dict(message.content.array_records["arrays"].to_torch_state_dict()))
    rows = token_rows(workload, int(str(context.node_config["partition-id"])))
    train_plainly(model, rows, workload)
    update, metrics = ArrayRecord(adapter_of(model)), MetricRecord({"num-examples": len(rows)})
    return Message(content=RecordDict({"arrays": update, "metrics": metrics}), reply_to=message)


@functools.cache
def _kept_model(workload: Workload) -> Any:
    return plain_model(workload)


def play(workload: Workload) -> Played:
    """Train the fleet; actors load the model once."""
    return _play(workload, keeps=True)


def play_loading(workload: Workload) -> Played:
    """Train the fleet; actors load the model for each message."""
    return _play(workload, keeps=False)


def _play(workload: Workload, *, keeps: bool) -> Played:
    from flwr.simulation import run_simulation

    marks: list[float] = []
    found: dict[str, torch.Tensor] = {}
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < workload.devices:  # the server begins before its nodes are there
            time.sleep(0.1)
        strategy = FedAvg(
            fraction_train=workload.cohort / workload.devices,
            fraction_evaluate=0.0,
            min_train_nodes=workload.cohort,
            min_available_nodes=workload.devices,
        )
        result = strategy.start(
            grid,
            ArrayRecord(begin(workload)),
            num_rounds=workload.rounds,
            train_config=ConfigRecord({_WORKLOAD: json.dumps(asdict(workload)), _KEEPS: keeps}),
            evaluate_fn=lambda *_: marks.append(time.perf_counter()),
        )
        found.update(result.arrays.to_torch_state_dict())

    run_simulation(
        server_app=server,
        client_app=app,
        num_supernodes=workload.devices,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count() or 1, "include_dashboard": False},
        },
    )
    return [end - start for start, end in pairwise(marks)], found
