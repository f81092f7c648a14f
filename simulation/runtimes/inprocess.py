"""The in-process runtime: the real ServerApp and ClientApp in one process, without Ray and without a SuperLink.

`send_and_receive` is lazy: a message is handed to the ClientApp when the server asks for the next reply, so one reply
is in memory at a time and the base model is loaded once. The content is copied for each message, since apps and mods
may write into it; array bytes are shared, and immutable.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Final

from flwr.app import Context, Message, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity  # messages cannot be made without one

__all__ = ["InProcessGrid", "name_task", "node_of", "run_in_process", "unknown_node"]

_SERVER_NODE: Final = 1
_RUN: Final = 1
_UNKNOWN_NODE: Final = 1  # flwr's code for a node that is not there is not public; any code reads as a failure
_FIRST_NODE: Final = 1_000


class InProcessGrid(Grid):
    """A grid of devices that are function calls.

    Args:
        client: the ClientApp.
        devices: how many; each has a node of its own, `node_of` its number.
        node_config: what every node is told beside its number.
        node_configs: what the node of each device is told beside that, by the device's number.
        online: returns the numbers of the devices that can be asked now; all of them by default.
    """

    def __init__(
        self,
        client: ClientApp,
        devices: int,
        *,
        node_config: Mapping[str, str] | None = None,
        node_configs: Sequence[Mapping[str, str]] | None = None,
        online: Callable[[], Sequence[int]] | None = None,
    ) -> None:
        self._client, self._devices = client, devices
        self._node_config, self._node_configs = dict(node_config or {}), node_configs
        self._online = online
        self._replies: dict[str, Message] = {}
        name_task()

    def set_run(self, run: Run) -> None:
        """Remember the run's record, for apps that ask for it."""
        self._run = run

    @property
    def run(self) -> Run:
        """The record that was set; an app that asks for one before is mistaken."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message, for apps of the older interface."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes of the devices that are online."""
        if self._online is None:
            return range(node_of(0), node_of(self._devices))
        return [node_of(number) for number in self._online()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Play messages at once, and keep their replies."""
        names = []
        for message in messages:
            reply = self._play(message)
            names.append(message.metadata.message_id)
            self._replies[names[-1]] = reply
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Play messages one by one, as replies are asked for."""
        for message in messages:
            yield self._play(message)

    def _play(self, message: Message) -> Message:
        context = self._prepare(message)
        return unknown_node(message) if context is None else self._client(message, context)

    def _prepare(self, message: Message) -> Context | None:
        """Name a message, copy its content, and return what its node knows; None if there is no such node."""
        number = message.metadata.dst_node_id - _FIRST_NODE
        message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        if not 0 <= number < self._devices:
            return None
        message.content = copy(message.content)
        own = {} if self._node_configs is None else self._node_configs[number]
        return Context(
            run_id=_RUN,
            node_id=message.metadata.dst_node_id,
            node_config={**self._node_config, **own, "partition-id": number, "num-partitions": self._devices},
            state=RecordDict(),
            run_config={},
        )


def unknown_node(message: Message) -> Message:
    """Return what a message to nobody is answered with."""
    return Message(Error(_UNKNOWN_NODE), reply_to=message)


def name_task() -> None:
    """Let this process make messages: Flower asks which task it does."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN, _SERVER_NODE


def node_of(number: int) -> int:
    """Return the node of a device."""
    return _FIRST_NODE + number


def run_in_process(
    server: ServerApp, client: ClientApp, fleet: Path, devices: int, *, run_config: Mapping[str, str]
) -> None:
    """Run a ServerApp and a ClientApp on a recorded fleet."""
    grid = InProcessGrid(client, devices, node_config={"fleet": str(fleet)})
    context = Context(
        run_id=_RUN, node_id=_SERVER_NODE, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )
    server(grid, context)
