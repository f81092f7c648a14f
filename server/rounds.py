"""Rounds: draw a cohort, ask it, merge what comes, write it down, go on.

A round is merged as a whole or not at all. Replies that are malformed, of a wrong shape or not finite are refused one
by one, with the device and the reason; devices that fail or stay silent are counted; with too few replies the round is
tried again with other devices. Nothing that a device says about itself is written as text.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from client.dialogue import derive_id, derive_seed
from florilegium.errors import ConfigError, FlorilegiumError, InputError
from florilegium.tensors import Tensors
from privacy.egress import RefusedError
from privacy.noise import NoiseSource
from server.checkpoint import Progress, RoundLog, load_progress, save_progress
from server.config import CoordinationConfig
from server.transport import Answer, Request, Transport
from strategies.factors import join, layers, truncate
from strategies.gathering import Exchange, Gathering, Shared, prepare
from strategies.rule import Reply
from strategies.sampling import uniform

__all__ = ["Coordinator", "TooFewRepliesError"]


class TooFewRepliesError(FlorilegiumError):
    """Report a round that did not come about, however often it was tried."""

    exit_code = 8


@dataclass(slots=True)
class _Tally:
    """What a round has seen so far."""

    asked: set[int] = field(default_factory=set)
    heard: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    uplink_bytes: int = 0
    downlink_bytes: int = 0


class Coordinator:
    """A server's rounds.

    Args:
        config: of the run.
        adapter: a fresh shared adapter of the server's rank, A drawn from the seed and B zero.
        rank: of `adapter`; devices of a lower one hold its first rows and columns.
        scale: s = α / rank, the same for all ranks.
        transport: reaches the devices.
        directory: where the checkpoint is.
        noise: where central noise comes from; the operating system by default.
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
        noise: NoiseSource | None = None,
    ) -> None:
        self.config, self.plan = config, config.make_plan()
        self._adapter, self._rank, self._scale = adapter, rank, scale
        self._transport, self._directory, self._noise = transport, directory, noise
        self.identity = _identity(config, adapter)

    @property
    def run(self) -> int:
        """The run's number, by which devices tell it from others; 63 bits."""
        return derive_seed("run", self.identity)

    def rounds(self) -> Iterator[tuple[RoundLog, Progress]]:
        """Play all rounds that are left, and yield each when it is on the disk.

        Raises:
            TooFewRepliesError: a round was tried as often as the config allows.
            StorageError: the checkpoint cannot be written or read.
            ConfigError: the directory holds another run.
        """
        progress = self.progress()
        while progress.round < self.config.rounds:
            log, progress = self._round(progress)
            save_progress(self._directory, progress)
            yield log, progress

    def progress(self) -> Progress:
        """Return where the run is."""
        found = load_progress(self._directory, self.identity)
        if found is not None:
            return found
        assert self.plan.rule is not None
        turn = self.plan.turn(0, 0, rank=self._rank, scale=self._scale)
        return Progress(identity=self.identity, round=0, shared=Shared(state=self.plan.rule.start(self._adapter, turn)))

    def _round(self, progress: Progress) -> tuple[RoundLog, Progress]:
        number, began, tally = progress.round + 1, time.monotonic(), _Tally()
        counts = dict(progress.participations)
        for attempt in range(self.config.attempts):
            ranks = self._cohort(number, attempt, counts, tally)
            shared, took_part = self._attempt(progress.shared, number, ranks, tally)
            if shared is not None:
                break
        else:
            raise TooFewRepliesError(
                f"round {number} had too few replies in each of {self.config.attempts} attempts",
                "the checkpoint holds all rounds before: start again when more devices are online",
            )
        for device in took_part:
            counts[device] = counts.get(device, 0) + 1
        log = RoundLog(
            round=number,
            asked=len(tally.asked),
            taken=len(took_part),
            refused=tally.refused,
            failed=tally.failed,
            silent=len(tally.asked - tally.heard),
            uplink_bytes=tally.uplink_bytes,
            downlink_bytes=tally.downlink_bytes,
            seconds=time.monotonic() - began,
        )
        return log, replace(progress, round=number, shared=shared, participations=counts)

    def _cohort(self, number: int, attempt: int, counts: dict[int, int], tally: _Tally) -> dict[int, int]:
        """Draw devices, with their ranks, that this round has not asked yet; when all have been, anyone again."""
        seed = derive_seed(self.config.seed, "cohort", attempt)
        for _ in range(self.config.attempts):
            online = self._transport.devices()
            fresh = [device for device in online if device not in tally.asked]
            drawn = uniform(
                fresh or online, config=self.config.sampling, seed=seed, server_round=number, participations=counts
            )
            if len(drawn) >= self.config.minimum_replies:
                break
            self._transport.wait()
        return {device: online[device] for device in drawn}

    def _attempt(
        self, shared: Shared, number: int, ranks: dict[int, int], tally: _Tally
    ) -> tuple[Shared | None, list[int]]:
        """Play all exchanges with one cohort; only who answered one is asked the next."""
        assert self.plan.rule is not None
        for at in range(self.plan.rule.exchanges(number)):
            told = {rank: self._tell(shared, number, at, rank) for rank in {self._rank, *ranks.values()}}
            gathering = Gathering(self.plan, shared, told[self._rank], noise=self._noise)
            ranks = self._gather(gathering, shared, told, ranks, tally)
            if gathering.count < max(self.config.minimum_replies, self._least()):
                return None, []
            shared = gathering.close()
        return shared, sorted(ranks)

    def _tell(self, shared: Shared, number: int, at: int, rank: int) -> Exchange:
        """Return what devices of a rank are told.

        Raises:
            ConfigError: the rule takes devices of one rank alone, or the rank is above the server's.
        """
        assert self.plan.rule is not None
        if rank != self._rank and not (self.plan.rule.mixed_ranks and rank < self._rank):
            raise ConfigError(
                f"a device's adapter has rank {rank}, the server's {self._rank}",
                "give all devices the server's rank, or at most that with sketch, flora, flexlora or hetlora",
            )
        like = join({layer: truncate(pair, rank) for layer, pair in layers(self._adapter).items()})
        return prepare(self.plan, shared, self.plan.turn(number, at, rank=rank, scale=self._scale), like)

    def _least(self) -> int:
        return 1 if self.plan.robust is None else self.plan.robust.minimum

    def _gather(
        self, gathering: Gathering, shared: Shared, told: dict[int, Exchange], ranks: dict[int, int], tally: _Tally
    ) -> dict[int, int]:
        tally.asked |= set(ranks)
        answers = self._transport.ask(self._requests(shared, told, ranks, tally), seconds=self.config.deadline_seconds)
        waiting, took_part = set(ranks), {}
        for answer in answers:
            if answer.device not in waiting:
                continue  # nobody was asked, or it has answered already
            waiting.discard(answer.device)
            tally.heard.add(answer.device)
            rank = ranks[answer.device]
            if self._take(gathering, answer, told[rank], tally):
                took_part[answer.device] = rank
        return took_part

    def _requests(
        self, shared: Shared, told: dict[int, Exchange], ranks: dict[int, int], tally: _Tally
    ) -> Iterator[Request]:
        assert self.plan.rule is not None
        for device, rank in ranks.items():
            turn, agreement = told[rank].turn, told[rank].agreement
            down = self.plan.rule.down(shared.state, replace(turn, device=device))
            tally.downlink_bytes += _bytes(down) + _bytes(agreement)
            yield Request(
                device=device,
                turn=turn,
                down=down,
                agreement=agreement,
                hyperparameters=self._hyperparameters(),
            )

    def _hyperparameters(self) -> dict[str, float]:
        config = self.config
        return {
            "steps": float(config.local_steps),
            "learning_rate": config.learning_rate,
            "batch_size": float(config.batch_size),
        }

    def _take(self, gathering: Gathering, answer: Answer, told: Exchange, tally: _Tally) -> bool:
        if answer.error is not None:
            tally.failed[answer.device] = answer.error.name
            return False
        tally.uplink_bytes += _bytes(answer.tensors)
        weight = float(answer.metrics.get("rows", 1.0)) if self.plan.weighting == "rows" else 1.0
        reply = Reply(device=answer.device, weight=weight, scale=self._scale, tensors=answer.tensors)
        try:
            gathering.take(reply, told)
        except RefusedError as error:
            tally.refused[answer.device] = error.refusal.value
            return False
        except InputError:
            tally.refused[answer.device] = "malformed"
            return False
        return True


def _identity(config: CoordinationConfig, adapter: Tensors) -> str:
    shapes = [f"{key}:{tuple(tensor.shape)}" for key, tensor in adapter.items()]
    return derive_id("coordination", config.model_dump_json(exclude={"rounds"}), *shapes)


def _bytes(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
