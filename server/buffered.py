"""Buffered asynchronous rounds: merge whenever K replies are there, and wait for no one device (FedBuff).

    state ← state + step(Σ w(sᵢ) Δᵢ / K)      sᵢ: rounds since device i was given its state

Nguyen et al., arXiv 2106.06639. A round is one buffer: `concurrency` devices are at work all the time, each on the
state that was there when it was asked, and who has answered is replaced at once. The sum is divided by K and not by
the sum of weights; see `strategies.staleness`. A device is asked once for each state, since asked the same again it
would answer the same.

Who is silent for `deadline_seconds` is given up, and its answer, should it come, is left out. The transport keeps the
time: a device is given up when a poll ends that began after it was asked. Deviation: with nobody at work and nobody to
ask, a buffer of `minimum_replies` is merged as it is, still divided by K.

What is under way when a server is stopped is lost. The next one asks the same devices anew, from the newest state, and
its log says how many; so a run that was stopped goes on, and is not to the bit the one that was not.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from client.dialogue import derive_seed
from server.asking import Asking, Tally, TooFewRepliesError
from server.asynchronous import AsyncSettings
from server.checkpoint import Progress, RoundLog
from server.config import CoordinationConfig
from server.transport import Answer, BufferedTransport, Request
from strategies.gathering import Exchange, Shared
from strategies.sampling import SamplingConfig, uniform

__all__ = ["Buffered"]


@dataclass(frozen=True, slots=True)
class _Work:
    """What a device is at: as it was told, and during which poll it was asked."""

    told: Exchange
    poll: int


class _Buffer:
    """A round under way.

    Attributes:
        number: of the round.
        tally: what was seen.
        taken: devices whose replies are in the gathering, with the replies' ages in rounds.
        silent: devices given up.
    """

    def __init__(self, asking: Asking, progress: Progress, size: int) -> None:
        self.number, self.tally, self.silent = progress.round + 1, Tally(), 0
        self._asking, self._progress, self._size = asking, progress, size
        self._told: dict[int, Exchange] = {}
        self.empty()

    def empty(self) -> None:
        """Forget what was gathered."""
        told = self.told(self._asking.rank)
        self.gathering = self._asking.gather(self._progress.shared, told, buffer=self._size)
        self.taken: list[tuple[int, int]] = []

    def told(self, rank: int) -> Exchange:
        """Return what devices of a rank are told that are asked now."""
        if rank not in self._told:
            self._told[rank] = self._asking.tell(self._progress.shared, self.number, 0, rank)
        return self._told[rank]

    def request(self, device: int, rank: int) -> Request:
        """Return what a device is asked."""
        return self._asking.request(self._progress, self._progress.shared, self.told(rank), device, self.tally)

    def participations(self) -> dict[int, int]:
        """Return in how many rounds each device took part, with this one; twice if two replies of it came."""
        return dict(Counter(self._progress.participations) + Counter(device for device, _ in self.taken))


class Buffered:
    """The buffered rounds of a server, from when it starts until it is stopped.

    Args:
        asking: the server's half of an exchange.
        config: of the run.
        settings: of its buffered rounds.
        transport: reaches the devices.
    """

    def __init__(
        self, asking: Asking, config: CoordinationConfig, settings: AsyncSettings, transport: BufferedTransport
    ) -> None:
        self._asking, self._config, self._settings, self._transport = asking, config, settings, transport
        self._weight = settings.weight()
        self._at_work: dict[int, _Work] = {}
        self._answers: Iterator[Answer] = iter(())
        self._polls = 0
        self._is_new = True

    def round(self, progress: Progress) -> tuple[RoundLog, Progress]:
        """Fill one buffer and merge it.

        Raises:
            TooFewRepliesError: it was not filled, as often as the config allows.
        """
        began, buffer = time.monotonic(), _Buffer(self._asking, progress, self._config.cohort)
        first = progress.at_work if self._is_new else ()
        self._is_new = False
        shared = self._fill(buffer, first)
        tally = buffer.tally
        log = RoundLog(
            round=buffer.number,
            asked=len(tally.asked),
            taken=len(buffer.taken),
            refused=tally.refused,
            failed=tally.failed,
            silent=buffer.silent,
            staleness=sum(age for _, age in buffer.taken) / len(buffer.taken),
            restarted=len(first),
            uplink_bytes=tally.uplink_bytes,
            downlink_bytes=tally.downlink_bytes,
            seconds=time.monotonic() - began,
        )
        return log, replace(
            progress,
            round=buffer.number,
            shared=shared,
            participations=buffer.participations(),
            uplink_bytes=progress.uplink_bytes + tally.uplink_bytes,
            downlink_bytes=progress.downlink_bytes + tally.downlink_bytes,
            at_work=tuple(sorted(self._at_work)),
        )

    def _fill(self, buffer: _Buffer, first: tuple[int, ...]) -> Shared:
        """Gather replies until they can be merged."""
        waits = 0
        while waits < self._config.attempts:
            self._employ(buffer, first)
            if buffer.gathering.count < self._config.cohort and self._at_work:
                self._hear(buffer)
                continue
            if buffer.gathering.count >= self._config.minimum_replies:
                shared = self._asking.close(buffer.gathering)
                if shared is not None:
                    return shared
                buffer.empty()
            self._transport.wait()
            waits += 1
        raise TooFewRepliesError(buffer.number, self._config.attempts)

    def _employ(self, buffer: _Buffer, first: tuple[int, ...]) -> None:
        """Ask as many devices as may be at work besides those that are; `first` before all others."""
        free = self._settings.concurrency - len(self._at_work)
        if free < 1:
            return
        ranks = self._transport.devices()
        able = {device for device in ranks if device not in self._at_work and device not in buffer.tally.asked}
        chosen = [device for device in first if device in able][:free]
        if len(chosen) < free:
            chosen += uniform(
                able.difference(chosen),
                config=SamplingConfig(cohort=free - len(chosen), participation_cap=self._config.participation_cap),
                seed=derive_seed(self._config.seed, "buffered", len(buffer.tally.asked)),
                server_round=buffer.number,
                participations=buffer.participations(),
            )
        for device in chosen:
            request = buffer.request(device, ranks[device])
            self._at_work[device] = _Work(buffer.told(ranks[device]), self._polls)
            self._transport.send([request])

    def _hear(self, buffer: _Buffer) -> None:
        """Take the next answer; where a poll ends, give up devices that were asked before it began."""
        answer = next(self._answers, None)
        if answer is not None:
            self._take(buffer, answer)
            return
        for device, work in list(self._at_work.items()):
            if work.poll < self._polls:
                del self._at_work[device]
                buffer.silent += 1
        self._polls += 1
        self._answers = self._transport.poll(self._config.deadline_seconds)

    def _take(self, buffer: _Buffer, answer: Answer) -> None:
        work = self._at_work.get(answer.device)
        if work is None or answer.round not in (None, work.told.turn.round):
            return  # nobody was asked, or it was given up
        del self._at_work[answer.device]
        age = buffer.number - work.told.turn.round
        factor = self._weight(age) if age <= self._settings.maximum_staleness else None
        if self._asking.take(buffer.gathering, answer, work.told, buffer.tally, factor=factor):
            buffer.taken.append((answer.device, age))
