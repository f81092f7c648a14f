"""The server's Flower app: rounds over a grid, whatever runtime is behind it.

Run configuration: `config`, a TOML file of `CoordinationConfig` (its defaults without one), and `directory`, where the
run is kept and goes on from, with the versions of its adapter in `registry`. Messages are made and read here and in
`client/app.py` alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Final, cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from client.adapters import fresh_adapter
from florilegium.errors import InputError
from florilegium.heap import keep_freed_memory
from florilegium.tensors import Tensors
from florilegium.wire import from_record, to_record
from privacy.egress import ErrorCode
from server.config import CoordinationConfig
from server.registry import Registry
from server.rounds import Coordinator
from server.transport import Answer, Request, Transport

app = ServerApp()

_log = logging.getLogger(__name__)

_WAIT_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.2
_RANK_SECONDS: Final = 60.0  # for telling a rank, also on a slow board whose app has to start
_QUIET_SECONDS: Final = 600.0  # until who told none is asked again


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the rounds that are left."""
    named = str(context.run_config.get("config", ""))
    config = CoordinationConfig.load(Path(named)) if named else CoordinationConfig()
    directory = Path(str(context.run_config.get("directory", "coordination")))
    for _ in coordinator(config, GridTransport(grid, config), directory).rounds():
        pass


def coordinator(
    config: CoordinationConfig,
    transport: GridTransport,
    directory: Path,
    *,
    around: Callable[[GridTransport, Tensors], Transport] | None = None,
) -> Coordinator:
    """Return the rounds of a run, from a fresh adapter on the base model.

    Args:
        config: of the run.
        transport: reaches the devices.
        directory: where the run is kept and goes on from.
        around: puts something between the server and the transport, given that and the adapter.
    """
    keep_freed_memory()
    adapter = fresh_adapter(config.model, config.adapter, config.seed)
    return Coordinator(
        config,
        adapter,
        rank=config.adapter.rank,
        scale=config.adapter.alpha / config.adapter.rank,
        transport=transport if around is None else around(transport, adapter),
        directory=directory,
        registry=Registry(directory / "registry", keep=config.keep_versions),
    )


class GridTransport:
    """Devices behind a Flower grid.

    Args:
        grid: Flower's, or one of ours.
        config: of the run.
        pause: waits for so many seconds, or until there may be an answer.
        hears_all: wait for all that are asked, however long it takes, and also where more are asked than are wanted:
            for devices that are played, whose results must not depend on who is played first.
    """

    def __init__(
        self,
        grid: Grid,
        config: CoordinationConfig,
        *,
        pause: Callable[[float], None] = time.sleep,
        hears_all: bool = False,
    ) -> None:
        self._grid, self._config, self._pause, self._hears_all = grid, config, pause, hears_all
        self._ranks: dict[int, int] = {}
        self._quiet: dict[int, float] = {}  # until when, by device
        self._sent: dict[str, tuple[int, int]] = {}  # device and round, by message
        self._arrived: deque[Answer] = deque()
        self._records: dict[str, tuple[Tensors, ArrayRecord]] = {}
        self._plan = config.plan.model_dump_json()
        plan = config.make_plan()
        self._asks_ranks = plan.rule is not None and plan.rule.mixed_ranks

    def devices(self) -> Mapping[int, int]:
        """Return the nodes that are connected; where ranks may differ, those that told one up to the server's.

        Nodes that are new are waited for, a minute at most; who has told no rank by then is asked again ten minutes
        later.
        """
        nodes = list(self._grid.get_node_ids())
        if not self._asks_ranks:
            return dict.fromkeys(nodes, self._config.adapter.rank)
        now = time.monotonic()
        self._learn_ranks([node for node in nodes if node not in self._ranks and self._quiet.get(node, now) <= now])
        return {node: rank for node in nodes if 1 <= (rank := self._ranks.get(node, 0)) <= self._config.adapter.rank}

    def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
        """Send requests one by one, and yield answers as they come, until a cohort of devices has replied.

        Each is looked for when the next has been sent: where devices are played at once, one answer is in memory. A
        reply that comes later is never looked at.
        """
        sent: dict[str, tuple[int, int]] = {}
        replies = 0
        for request in requests:
            for answer in chain(self._push(request, sent), self._pull(sent)):
                replies += answer.error is None
                yield answer
        ends = _after(seconds)
        while sent and time.monotonic() < ends and (self._hears_all or replies < self._config.cohort):
            self._pause(_POLL_SECONDS)
            for answer in self._pull(sent):
                replies += answer.error is None
                yield answer

    def send(self, requests: Iterable[Request]) -> None:
        """Send requests, and wait for nothing."""
        for request in requests:
            self._arrived.extend(self._push(request, self._sent))

    def poll(self, seconds: float | None) -> Iterator[Answer]:
        """Yield answers to what was sent, as they come, until nothing is under way or the time is over."""
        ends = _after(seconds)
        while self._arrived or self._sent:
            self._arrived.extend(self._pull(self._sent))
            while self._arrived:
                yield self._arrived.popleft()
            if time.monotonic() >= ends:
                return
            if self._sent:
                self._pause(_POLL_SECONDS)

    def wait(self) -> None:
        """Wait for more devices to connect."""
        time.sleep(_WAIT_SECONDS)

    def _push(self, request: Request, sent: dict[str, tuple[int, int]]) -> Iterator[Answer]:
        """Send a request, and note its message with the device and the round; what cannot be sent is answered here."""
        device, round_number = request.device, request.turn.round
        names = [name for name in self._grid.push_messages([self._message(request)]) if name]
        sent |= dict.fromkeys(names, (device, round_number))
        if not names:
            yield Answer(device=device, error=ErrorCode.INTERNAL, round=round_number)

    def _pull(self, sent: dict[str, tuple[int, int]]) -> Iterator[Answer]:
        """Yield the answers that are there."""
        for reply in self._grid.pull_messages(list(sent)) if sent else ():
            device, round_number = sent.pop(reply.metadata.reply_to_message_id, (None, None))
            if device is not None:
                yield replace(_answer(reply), device=device, round=round_number)

    def _learn_ranks(self, nodes: list[int]) -> None:
        messages = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        seconds = None if self._hears_all else min(_RANK_SECONDS, self._config.deadline_seconds or math.inf)
        for reply in self._grid.send_and_receive(messages, timeout=seconds) if messages else ():
            rank = _answer(reply).metrics.get("rank", 0.0)
            if rank >= 1 and rank.is_integer():
                self._ranks[reply.metadata.src_node_id] = int(rank)
                if rank > self._config.adapter.rank:
                    _log.warning(
                        "node %d is not asked: its rank is %d, the server's %d",
                        reply.metadata.src_node_id,
                        rank,
                        self._config.adapter.rank,
                    )
        self._quiet |= dict.fromkeys(nodes, time.monotonic() + _QUIET_SECONDS)

    def _message(self, request: Request) -> Message:
        turn = request.turn
        told = ConfigRecord(
            {
                "round": turn.round,
                "exchange": turn.exchange,
                "rank": turn.rank,
                "scale": turn.scale,
                "seed": turn.seed,
                "run": request.run,
                "cohort": self._config.cohort,
                "plan": self._plan,
                "improvement_unit": request.improvement_unit,
            }
        )
        content = RecordDict(
            {
                "turn": told,
                "down": self._record("down", request.down),
                "agreement": self._record("agreement", request.agreement),
                "hyperparameters": MetricRecord(dict(request.hyperparameters)),
            }
        )
        return Message(content, request.device, MessageType.TRAIN)

    def _record(self, name: str, tensors: Tensors) -> ArrayRecord:
        """Return a record of tensors; the bytes of those that the last device was sent as well are shared."""
        last, record = self._records.get(name, ({}, ArrayRecord()))
        if list(last) != list(tensors) or any(last[key] is not tensor for key, tensor in tensors.items()):
            record = to_record(tensors)
            self._records[name] = tensors, record
        return ArrayRecord(dict(record))


def _after(seconds: float | None) -> float:
    return math.inf if seconds is None else time.monotonic() + seconds


def _answer(reply: Message) -> Answer:
    """Read a reply; whatever is wrong with its form is an answer of nothing, which a round refuses."""
    device = reply.metadata.src_node_id
    if reply.has_error():
        return Answer(device=device, error=ErrorCode.INTERNAL)
    try:
        (update,) = reply.content.array_records.values()
        (record,) = reply.content.metric_records.values()
        metrics = {str(name): float(cast(float, value)) for name, value in record.items()}  # a list is none
        tensors = from_record(update)
    except (InputError, ValueError, TypeError, OverflowError):
        return Answer(device=device)
    if "error" in metrics:
        known = {float(each): each for each in ErrorCode}
        return Answer(device=device, error=known.get(metrics["error"], ErrorCode.INTERNAL))
    return Answer(device=device, tensors=tensors, metrics=metrics)
