"""Rounds: draw a cohort, ask it, merge what comes, write it down, go on.

A round is merged as a whole or not at all. Replies that are malformed, of a wrong shape or not finite are refused one
by one, with the device and the reason; devices that fail or stay silent are counted; with too few replies the round is
tried again with other devices. Nothing that a device says about itself is written as text.

Where the config says so, rounds are buffered and wait for no one device: see `server.buffered`.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Final

from client.dialogue import derive_id, derive_seed
from florilegium.errors import ConfigError
from florilegium.tensors import Tensors
from privacy.noise import NoiseSource
from server.asking import Asking, Tally, TooFewRepliesError
from server.buffered import Buffered
from server.checkpoint import Progress, RoundLog, load_progress, save_progress
from server.config import CoordinationConfig
from server.lock import locked
from server.registry import Registry
from server.transport import BufferedTransport, Transport
from strategies.gathering import Shared
from strategies.sampling import uniform

__all__ = ["Coordinator", "TooFewRepliesError"]

_LOCK: Final = "lock"


class Coordinator:
    """A server's rounds.

    Args:
        config: of the run.
        adapter: a fresh shared adapter of the server's rank, A drawn from the seed and B zero.
        rank: of `adapter`; devices of a lower one hold its first rows and columns.
        scale: s = α / rank, the same for all ranks.
        transport: reaches the devices.
        directory: where the checkpoint is.
        registry: where the shared adapter is kept after each round; None keeps none.
        noise: where central noise comes from; the operating system by default.

    Raises:
        ConfigError: rounds are to be buffered, and the transport waits for each of them.
    """

    def __init__(
        self,
        config: CoordinationConfig,
        adapter: Tensors,
        *,
        rank: int,
        scale: float,
        transport: Transport,
        directory: Path,
        registry: Registry | None = None,
        noise: NoiseSource | None = None,
    ) -> None:
        self.config, self._scale = config, scale
        self._asking = Asking(config, adapter, rank=rank, scale=scale, noise=noise)
        self.plan = self._asking.plan
        self._transport, self._directory, self._registry = transport, directory, registry
        if config.asynchronous is not None and not isinstance(transport, BufferedTransport):
            raise ConfigError("this transport waits for each round", "leave asynchronous out of the run's settings")
        self.identity = _identity(config, adapter)

    def rounds(self) -> Generator[tuple[RoundLog, Progress], None, None]:
        """Play all rounds that are left, and yield each when it is on the disk.

        From the first one on until the last, or until this is closed, no other server can use the directory.

        Raises:
            TooFewRepliesError: a round was tried as often as the config allows.
            BusyError: another server is at work in the directory.
            StorageError: the checkpoint or the registry cannot be written or read.
            ConfigError: the directory holds another run.
        """
        with locked(self._directory / _LOCK, wait=False):
            progress = self.progress()
            if progress.round == 0:
                save_progress(self._directory, progress)  # no device may know a run's number and its server not
            self._publish(progress)  # a server that was killed may not have come to it
            play = self._round
            if self.config.asynchronous is not None:
                assert isinstance(self._transport, BufferedTransport)
                play = Buffered(self._asking, self.config, self.config.asynchronous, self._transport).round
            while progress.round < self.config.rounds:
                log, progress = play(progress)
                progress = replace(progress, metrics=log.numbers())
                save_progress(self._directory, progress)
                self._publish(progress)
                yield log, progress

    def progress(self) -> Progress:
        """Return where the run is; one that has not begun has another number at each call."""
        return load_progress(self._directory, self.identity) or self._asking.start(self.identity)

    def _publish(self, progress: Progress) -> None:
        """Keep the shared adapter, if it is not kept already.

        It comes after the checkpoint: a round that is played again has other noise, and would be published twice.
        """
        if self._registry is None or progress.round == 0:
            return
        assert self.plan.rule is not None
        loaded = self.plan.rule.adapter(progress.shared.state, self._asking.turn(progress.round + 1, 0))
        self._registry.save(loaded, scale=self._scale, metrics={"run": progress.run, **progress.metrics})

    def _round(self, progress: Progress) -> tuple[RoundLog, Progress]:
        number, began, tally = progress.round + 1, time.monotonic(), Tally()
        counts = dict(progress.participations)
        for attempt in range(self.config.attempts):
            ranks = self._cohort(number, attempt, counts, tally)
            shared, took_part = self._attempt(progress, number, ranks, tally)
            if shared is not None:
                break
        else:
            raise TooFewRepliesError(number, self.config.attempts)
        for device in took_part:
            counts[device] = counts.get(device, 0) + 1
        log = RoundLog(
            round=number,
            asked=len(tally.asked),
            taken=len(took_part),
            refused=tally.refused,
            failed=tally.failed,
            silent=len(tally.asked - tally.heard - tally.spared),
            improvement=self._asking.mean_improvement(tally),
            uplink_bytes=tally.uplink_bytes,
            downlink_bytes=tally.downlink_bytes,
            seconds=time.monotonic() - began,
        )
        return log, replace(
            progress,
            round=number,
            shared=shared,
            tuner=self._asking.learn(progress, number, tally),
            participations=counts,
            uplink_bytes=progress.uplink_bytes + tally.uplink_bytes,
            downlink_bytes=progress.downlink_bytes + tally.downlink_bytes,
        )

    def _cohort(self, number: int, attempt: int, counts: dict[int, int], tally: Tally) -> dict[int, int]:
        """Draw devices, with their ranks, that this round has not asked yet; when all have been, anyone again."""
        seed = derive_seed(self.config.seed, "cohort", attempt)
        for _ in range(self.config.attempts):
            online = self._transport.devices()
            fresh = online.keys() - tally.asked if tally.asked else online
            drawn = uniform(
                fresh or online, config=self.config.sampling, seed=seed, server_round=number, participations=counts
            )
            if len(drawn) >= self.config.minimum_replies:
                break
            self._transport.wait()
        return {device: online[device] for device in drawn}

    def _attempt(
        self, progress: Progress, number: int, ranks: dict[int, int], tally: Tally
    ) -> tuple[Shared | None, list[int]]:
        """Play all exchanges with one cohort; only who answered one is asked the next."""
        assert self.plan.rule is not None
        shared = progress.shared
        tally.improvements.clear()  # of an attempt that came to nothing
        for at in range(self.plan.rule.exchanges(number)):
            told = {rank: self._asking.tell(shared, number, at, rank) for rank in {self._asking.rank, *ranks.values()}}
            gathering = self._asking.gather(shared, told[self._asking.rank])
            requests = (
                self._asking.request(progress, shared, told[rank], device, tally) for device, rank in ranks.items()
            )
            waiting, took_part, replies = set(ranks), {}, 0
            for answer in self._transport.ask(requests, seconds=self.config.deadline_seconds):
                if answer.device not in waiting:
                    continue  # nobody was asked, or it has answered already
                waiting.discard(answer.device)
                replies += answer.error is None
                rank = ranks[answer.device]
                if self._asking.take(gathering, answer, told[rank], tally):
                    took_part[answer.device] = rank
            if replies >= self.config.cohort:
                tally.spared |= waiting
            if gathering.count < max(self.config.minimum_replies, self._least()):
                return None, []
            ranks, merged = took_part, self._asking.close(gathering)
            if merged is None:
                return None, []
            shared = merged
        return shared, sorted(ranks)

    def _least(self) -> int:
        return 1 if self.plan.robust is None else self.plan.robust.minimum


def _identity(config: CoordinationConfig, adapter: Tensors) -> str:
    shapes = [f"{key}:{tuple(tensor.shape)}" for key, tensor in adapter.items()]
    return derive_id("coordination", config.model_dump_json(exclude={"rounds"}), *shapes)
