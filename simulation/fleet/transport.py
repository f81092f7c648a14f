"""A simulated fleet between a server and a runtime: the server meets hardware, days and faults, and nobody waits.

    devices → who is online and not at work      ask → who is heard by the deadline, by arrival      wait → time goes on

The runtime plays devices' work in the order in which their replies would arrive. Who is late is played as well,
since it works in vain and is changed by that; its reply is thrown away, and it is not asked before it is done. Who
drops out is never played. In asynchronous rounds `send` gives out tasks and `poll` yields replies as they arrive.

All that is drawn depends on (seed, device, day) or (seed, round, device, attempt), and a journal holds when each round
ended: a run that goes on from there is the run that was never stopped. Only tasks under way in asynchronous rounds are
lost with the server that gave them out: their devices finish in vain.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from client.dialogue import derive_seed
from florilegium.errors import ConfigError
from server.transport import Answer, Request, Transport
from simulation.fleet.clock import ArrivalQueue, RoundRules, play_round
from simulation.fleet.config import DeviceSpec, FleetConfig, assign
from simulation.fleet.faults import draw_fault
from simulation.fleet.journal import FleetJournal, FleetRecord
from simulation.fleet.presence import Presence
from simulation.fleet.tasks import Task, TaskCost, TaskRun, Usage, total_usage
from strategies.rule import Turn

__all__ = ["SimulatedFleet"]


class SimulatedFleet:
    """A transport whose devices are those of a fleet; it goes on from where its journal ends.

    Args:
        inner: plays the devices' work.
        config: the fleet.
        cost: what a request asks of a device; see `simulation.fleet.work`.
        journal: the file.
        index_of: the index in the fleet of a device of `inner`; by default they are numbered alike.
        enough: replies with which a round ends, where more devices are asked than are wanted; None for all.
        needed: devices that can be asked, at least, when a wait is over.
        rank_limit: the server's rank, if devices train at their profile's, or at this where that is higher; None if
            all have one rank.

    Raises:
        ConfigError: a value is out of its range, or the journal is another fleet's.
        InputError: the trace file cannot be used.
        StorageError: the journal is damaged or cannot be written.
    """

    def __init__(
        self,
        inner: Transport,
        config: FleetConfig,
        *,
        cost: Callable[[Request], TaskCost],
        journal: Path,
        index_of: Callable[[int], int] = lambda device: device,
        enough: int | None = None,
        needed: int = 1,
        rank_limit: int | None = None,
    ) -> None:
        if needed < 1:
            raise ConfigError(f"needed must be >= 1, got {needed}", "1 waits for anybody")
        self._inner, self._config, self._cost, self._index_of = inner, config, cost, index_of
        self._rules, self._needed, self._rank_limit = RoundRules(enough=enough), needed, rank_limit
        self._specs = tuple(assign(config))
        self._journal = FleetJournal(journal, derive_seed("fleet", json.dumps(config.identity())))
        self._go_on()

    @property
    def now(self) -> float:
        """The fleet's time, seconds."""
        return self._presence.now

    def resume(self, after_round: int) -> None:
        """Go back to the end of the last round that the server knows of; 0 is the beginning.

        Raises:
            StorageError: the journal ends before that.
        """
        self._journal.cut(after_round)
        self._go_on()

    def devices(self) -> Mapping[int, int]:
        """Return the devices of `inner` that are online and not at work, with their ranks.

        Raises:
            ConfigError: `inner` has a device that the fleet has not, or of another rank than its profile's.
        """
        found = {}
        for device, rank in self._inner.devices().items():
            spec = self._spec(device)
            if self._is_free(spec.index):
                self._check_rank(spec, rank)
                found[device] = rank
        return found

    def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
        """Play an exchange, and yield the answers of those who are heard, by arrival.

        Raises:
            ConfigError: a device is at work already, or the server is behind the journal.
            StorageError: the journal cannot be written.
        """
        asked = list(requests)
        if not asked:
            return
        turn = asked[0].turn
        self._begin(turn)
        by_index = {self._spec(request.device).index: request for request in asked}
        rules = replace(self._rules, deadline_seconds=math.inf if seconds is None else seconds)
        outcome = play_round(map(self._task, asked), start=self.now, rules=rules)
        del asked  # each request is let go when it has been played
        yield from self._inner.ask((by_index.pop(run.device) for run in outcome.replies), seconds=None)
        late = sorted((run for run in outcome.missed if run.arrived), key=lambda run: run.arrives_at)
        for _ in self._inner.ask((by_index.pop(run.device) for run in late), seconds=None):
            pass  # nobody is there to hear it
        self._presence.advance(outcome.ended_at)
        for run in outcome.missed:
            self._presence.occupy(run.device, run.stops_at)
        runs = outcome.replies + outcome.missed
        self._write(
            turn,
            runs,
            attempt=self._attempt,
            started_at=outcome.started_at,
            heard=len(outcome.replies),
            wasted=outcome.wasted,
        )

    def wait(self) -> None:
        """Go on to the next moment at which a device comes and as many as are needed can be asked.

        Raises:
            ConfigError: there is none within a year.
        """
        self._presence.wait(self._needed, {self._spec(device).index for device in self._inner.devices()})

    def send(self, requests: Iterable[Request]) -> None:
        """Give out tasks of asynchronous rounds.

        Raises:
            ConfigError: a device is at work already, or the server is behind the journal.
        """
        for at, request in enumerate(requests):
            if at == 0:
                self._begin(request.turn)
            run = self._queue.send(self._task(request), self.now)
            self._presence.occupy(run.device, run.stops_at)
            self._under_way[run.device] = request, self.now
            self._silent.discard(run.device)

    def poll(self, seconds: float | None) -> Iterator[Answer]:
        """Yield answers to what was sent, by arrival, until all are there or the time is over.

        Without a time the server waits until the last device has replied or stopped; with one it waits for a device
        that dropped out until then, because silence tells it nothing. More may be sent between two answers.

        Raises:
            StorageError: the journal cannot be written.
        """
        until = None if seconds is None else self.now + seconds
        while self._queue and (until is None or self._queue.next_at <= until):
            run = self._queue.pop()
            request, started_at = self._under_way.pop(run.device)
            answers = list(self._play(request)) if run.arrived else []
            if not run.arrived:
                self._silent.add(run.device)
            self._presence.advance(max(self.now, run.stops_at))
            wasted = Usage() if run.arrived else run.usage
            self._write(request.turn, [run], attempt=0, started_at=started_at, heard=int(run.arrived), wasted=wasted)
            yield from answers
        if until is not None and (self._queue or self._silent):
            self._presence.advance(max(self.now, until))

    def _go_on(self) -> None:
        """Stand where the journal ends."""
        last = self._journal.last
        start, self._played = (0.0, 0) if last is None else (last.ended_at, last.round)
        self._round = self._attempt = 0
        self._presence = Presence([spec.trace for spec in self._specs], start)
        for index, until in ({} if last is None else last.busy).items():
            self._presence.occupy(index, until)
        self._queue = ArrivalQueue(start)
        self._under_way: dict[int, tuple[Request, float]] = {}
        self._silent: set[int] = set()

    def _begin(self, turn: Turn) -> None:
        """Count the attempts at a round."""
        if turn.round <= self._played:
            raise ConfigError(
                f"the server is at round {turn.round}, and the journal holds round {self._played}",
                "call resume with the round of the server's checkpoint",
            )
        if turn.round != self._round:
            self._round, self._attempt = turn.round, 0
        self._attempt += turn.exchange == 0

    def _spec(self, device: int) -> DeviceSpec:
        index = self._index_of(device)
        if not 0 <= index < len(self._specs):
            raise ConfigError(
                f"device {device} is number {index} of a fleet that has {len(self._specs)}",
                "let FleetConfig.devices be as many as the runtime has",
            )
        return self._specs[index]

    def _check_rank(self, spec: DeviceSpec, rank: int) -> None:
        wanted = rank if self._rank_limit is None else min(spec.profile.rank, self._rank_limit)
        if rank != wanted:
            raise ConfigError(
                f"device {spec.index} of the fleet has an adapter of rank {rank}, its profile asks for {wanted}",
                "prepare the devices with the ranks of their profiles, at most the server's",
            )

    def _is_free(self, index: int) -> bool:
        return self._presence.is_free(index) and index not in self._under_way

    def _task(self, request: Request) -> Task:
        spec, turn = self._spec(request.device), request.turn
        if spec.index in self._presence.busy or spec.index in self._under_way:
            raise ConfigError(f"device {request.device} is at work", "ask those that devices() names")
        return Task(
            device=spec.index,
            profile=spec.profile,
            trace=spec.trace,
            cost=self._cost(request),
            fault=draw_fault(self._config.faults, self._config.seed, turn.round, spec.index, self._attempt),
        )

    def _play(self, request: Request) -> Iterator[Answer]:
        return self._inner.ask([request], seconds=None)

    def _write(
        self, turn: Turn, runs: Sequence[TaskRun], *, attempt: int, started_at: float, heard: int, wasted: Usage
    ) -> None:
        self._journal.append(
            FleetRecord(
                fleet=self._journal.fleet,
                round=self._round,
                attempt=attempt,
                exchange=turn.exchange,
                started_at=started_at,
                ended_at=self.now,
                asked=len(runs),
                heard=heard,
                used=total_usage(run.usage for run in runs),
                wasted=wasted,
                device_joules={run.device: run.usage.energy_joules for run in runs},
                busy=dict(self._presence.busy),
            )
        )
