"""The server's Flower app: rounds over a grid, whatever runtime is behind it.

Run configuration: `config`, a TOML file of `CoordinationConfig` (its defaults without one), and `directory`, where the
run is kept and goes on from. Messages are made and read here and in `client/app.py` alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from client.adapters import fresh_adapter
from privacy.egress import ErrorCode
from server.config import CoordinationConfig
from server.rounds import Coordinator
from server.transport import Answer, Request

app = ServerApp()

_WAIT_SECONDS: Final = 2.0
_WAITS: Final = 60


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the rounds that are left."""
    named = str(context.run_config.get("config", ""))
    config = CoordinationConfig.load(Path(named)) if named else CoordinationConfig()
    directory = Path(str(context.run_config.get("directory", "coordination")))
    for _ in coordinator(config, GridTransport(grid, config), directory).rounds():
        pass


def coordinator(config: CoordinationConfig, transport: GridTransport, directory: Path) -> Coordinator:
    """Return the rounds of a run, from a fresh adapter on the base model."""
    adapter = fresh_adapter(config.model, config.adapter, config.seed)
    made = Coordinator(
        config,
        adapter,
        rank=config.adapter.rank,
        scale=config.adapter.alpha / config.adapter.rank,
        transport=transport,
        directory=directory,
    )
    transport.run = made.run
    return made


class GridTransport:
    """Devices behind a Flower grid.

    Args:
        grid: Flower's, or one of ours.
        config: of the run.

    Attributes:
        run: by which devices tell this run from others.
    """

    def __init__(self, grid: Grid, config: CoordinationConfig) -> None:
        self._grid, self._config = grid, config
        self._ranks: dict[int, int] = {}
        plan = config.make_plan()
        self._asks_ranks = plan.rule is not None and plan.rule.mixed_ranks
        self.run = 0

    def devices(self) -> Mapping[int, int]:
        """Return the nodes that are connected; where ranks may differ, those that have told theirs."""
        nodes = list(self._grid.get_node_ids())
        if not self._asks_ranks:
            return dict.fromkeys(nodes, self._config.adapter.rank)
        self._learn_ranks([node for node in nodes if node not in self._ranks])
        return {node: self._ranks[node] for node in nodes if node in self._ranks}

    def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
        """Send requests, and yield answers as they come."""
        messages = (Message(self._content(request), request.device, MessageType.TRAIN) for request in requests)
        for reply in self._grid.send_and_receive(messages, timeout=seconds):
            yield _answer(reply)

    def wait(self) -> None:
        """Wait for more devices to connect."""
        time.sleep(_WAIT_SECONDS)

    def _learn_ranks(self, nodes: list[int]) -> None:
        messages = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        for reply in self._grid.send_and_receive(messages, timeout=self._config.deadline_seconds) if messages else ():
            rank = _answer(reply).metrics.get("rank", 0.0)
            if rank == int(rank) >= 1:
                self._ranks[reply.metadata.src_node_id] = int(rank)

    def _content(self, request: Request) -> RecordDict:
        turn = request.turn
        told = ConfigRecord(
            {
                "round": turn.round,
                "exchange": turn.exchange,
                "rank": turn.rank,
                "scale": turn.scale,
                "seed": turn.seed,
                "run": self.run,
                "cohort": self._config.cohort,
                "plan": self._config.plan.model_dump_json(),
            }
        )
        return RecordDict(
            {
                "turn": told,
                "down": ArrayRecord(dict(request.down)),
                "agreement": ArrayRecord(dict(request.agreement)),
                "hyperparameters": MetricRecord(dict(request.hyperparameters)),
            }
        )


def _answer(reply: Message) -> Answer:
    """Read a reply; whatever is wrong with its form is an answer of nothing, which a round refuses."""
    device = reply.metadata.src_node_id
    if reply.has_error():
        return Answer(device=device, error=ErrorCode.INTERNAL)
    try:
        (update,) = reply.content.array_records.values()
        (record,) = reply.content.metric_records.values()
        metrics = {str(name): float(value) for name, value in record.items() if isinstance(value, int | float)}
        tensors = dict(update.to_torch_state_dict())
    except Exception:  # bytes of a stranger: NumPy and torch raise what they like
        return Answer(device=device)
    if "error" in metrics:
        code = int(metrics["error"])
        known = {each.value: each for each in ErrorCode}
        return Answer(device=device, error=known.get(code, ErrorCode.INTERNAL))
    return Answer(device=device, tensors=tensors, metrics=metrics)
