"""The in-process runtime on several cores: workers play messages, each with one thread and one loaded model.

Replies are handed out in the order in which their messages were sent, whichever is ready first, so that no result
depends on the number of workers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from typing import Final

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from simulation.runtimes.inprocess import InProcessGrid, name_task, unknown_node
from simulation.workers import Crew

__all__ = ["CrewGrid"]

_CLIENT: Final = "client.app:app"
_LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Job:
    client: str
    message: Message
    context: Context


class CrewGrid(InProcessGrid):
    """A grid of devices that worker processes play; they start with the first message and end with `close`.

    Args:
        devices: how many; each has a node of its own, `node_of` its number.
        workers: processes.
        node_config: what every node is told beside its number.
        client: the ClientApp, as "module:name"; workers import it.
    """

    def __init__(
        self, devices: int, *, workers: int, node_config: Mapping[str, str] | None = None, client: str = _CLIENT
    ) -> None:
        super().__init__(_app(client), devices, node_config=node_config)
        self._name, self._workers = client, workers
        self._crew: Crew[_Job, Message] | None = None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to workers, and wait until the last one has been taken.

        Raises:
            FlorilegiumError: a worker died.
        """
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, up to the first that is not.

        Raises:
            FlorilegiumError: a worker died.
        """
        self._collect(0.0)
        return [self._replies.pop(name) for name in list(takewhile(self._replies.__contains__, message_ids))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Have messages played, and yield the replies in their order, as many as come in time (seconds)."""
        names = list(self.push_messages(messages))
        ends = math.inf if timeout is None else time.monotonic() + timeout
        while names and time.monotonic() < ends:
            replies = list(self.pull_messages(names))
            yield from replies
            names = names[len(replies) :]
            if names:
                self.pause(_LOOK_SECONDS)

    def pause(self, seconds: float) -> None:
        """Wait until there is a reply, for so many seconds at most."""
        if self._crew is not None and self._crew.is_busy:
            self._collect(seconds)
        else:
            time.sleep(seconds)

    def close(self) -> None:
        """End the workers."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def _push(self, message: Message) -> str:
        context = self._prepare(message)
        name = message.metadata.message_id
        if context is None:
            self._replies[name] = unknown_node(message)
            return name
        if self._crew is None:
            self._crew = Crew(_play, workers=self._workers, imports=(self._name.partition(":")[0],))
        while not self._crew.has_room:
            self._collect(None)
        self._crew.send(_Job(self._name, message, context))
        return name

    def _collect(self, seconds: float | None) -> None:
        if self._crew is not None:
            for reply in self._crew.results(seconds):
                self._replies[reply.metadata.reply_to_message_id] = reply


def _play(job: _Job) -> Iterator[Message]:
    name_task()
    yield _app(job.client)(job.message, job.context)


def _app(client: str) -> ClientApp:
    module, _, name = client.partition(":")
    app: ClientApp = getattr(import_module(module), name)
    return app
