"""Asking: what a server says to one device, how it takes the answer, and what it learns of hyperparameters.

It is the same for rounds that wait for their cohort and for buffered ones.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from florilegium.errors import ConfigError, FlorilegiumError, InputError
from florilegium.tensors import Tensors, is_finite
from privacy.egress import Declared, RefusedError, check_in
from privacy.noise import NoiseSource, SystemSource, add_gaussian
from server.checkpoint import Progress
from server.config import CoordinationConfig
from server.transport import Answer, Request
from strategies.factors import join, layers, truncate
from strategies.gathering import Exchange, Gathering, Shared, prepare
from strategies.hyperparameters import IMPROVEMENT
from strategies.metrics import ROWS, declared_metrics
from strategies.rule import Reply, Turn

__all__ = ["Asking", "Tally", "TooFewRepliesError"]


class TooFewRepliesError(FlorilegiumError):
    """Report a round that did not come about, however often it was tried."""

    exit_code = 8

    def __init__(self, number: int, attempts: int) -> None:
        super().__init__(
            f"round {number} had too few replies in each of {attempts} attempts",
            "the checkpoint holds all rounds before: start again when more devices are online",
        )


@dataclass(slots=True)
class Tally:
    """What a round has seen so far."""

    asked: set[int] = field(default_factory=set)
    heard: set[int] = field(default_factory=set)
    spared: set[int] = field(default_factory=set)  # not waited for
    refused: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    improvements: dict[int, float] = field(default_factory=dict)
    uplink_bytes: int = 0
    downlink_bytes: int = 0


class Asking:
    """A server's half of an exchange with one device.

    Args:
        config: of the run.
        adapter: a fresh shared adapter of the server's rank.
        rank: of `adapter`.
        scale: s = α / rank.
        noise: where central noise comes from; the operating system by default.

    Attributes:
        plan: of the fleet.
        tuner: of hyperparameters.
        rank: of the server's adapter.
    """

    def __init__(
        self, config: CoordinationConfig, adapter: Tensors, *, rank: int, scale: float, noise: NoiseSource | None
    ) -> None:
        self.plan, self.tuner, self.rank = config.make_plan(), config.tuner.tuner(), rank
        self._config, self._adapter, self._scale = config, adapter, scale
        self._noise = noise or SystemSource()

    def turn(self, number: int, at: int) -> Turn:
        """Return where the fleet is, for a device of the server's rank."""
        return self.plan.turn(number, at, rank=self.rank, scale=self._scale)

    def start(self, identity: str) -> Progress:
        """Return where a run begins."""
        assert self.plan.rule is not None
        shared = Shared(state=self.plan.rule.start(self._adapter, self.turn(0, 0)))
        return Progress(identity=identity, run=secrets.randbits(63), round=0, shared=shared, tuner=self.tuner.start())

    def tell(self, shared: Shared, number: int, at: int, rank: int) -> Exchange:
        """Return what devices of a rank are told.

        Raises:
            ConfigError: the rule takes devices of one rank alone, or the rank is above the server's.
        """
        assert self.plan.rule is not None
        if rank != self.rank and not (self.plan.rule.mixed_ranks and rank < self.rank):
            raise ConfigError(
                f"a device's adapter has rank {rank}, the server's {self.rank}",
                "give all devices the server's rank, or at most that with sketch, flora, flexlora or hetlora",
            )
        like = join({layer: truncate(pair, rank) for layer, pair in layers(self._adapter).items()})
        return prepare(self.plan, shared, self.plan.turn(number, at, rank=rank, scale=self._scale), like)

    def gather(self, shared: Shared, told: Exchange, *, buffer: int | None = None) -> Gathering:
        """Return an empty gathering of replies; `buffer` as `Gathering` takes it."""
        return Gathering(self.plan, shared, told, noise=self._noise, buffer=buffer)

    def request(self, progress: Progress, shared: Shared, told: Exchange, device: int, tally: Tally) -> Request:
        """Return what one device is asked, and count it.

        Args:
            progress: before this round.
            shared: what the server holds before this exchange.
            told: what all devices of this one's rank are told.
            device: who.
            tally: of the round.
        """
        assert self.plan.rule is not None
        turn = told.turn
        down = self.plan.rule.down(shared.state, replace(turn, device=device))
        tally.asked.add(device)
        tally.downlink_bytes += _bytes(down) + _bytes(told.agreement)
        return Request(
            device=device,
            run=progress.run,
            turn=turn,
            down=down,
            agreement=told.agreement,
            hyperparameters=self._usual() | self._draw(progress, turn.round, device),
            improvement_unit=self._config.improvement_unit if self._judges(turn) else 0.0,
        )

    def take(
        self, gathering: Gathering, answer: Answer, told: Exchange, tally: Tally, *, factor: float | None = 1.0
    ) -> bool:
        """Take an answer into a gathering, or count why not; return whether it was taken.

        Args:
            gathering: of the exchange.
            answer: as it came.
            told: what the device was told.
            tally: of the round.
            factor: of the reply's weight; None for one that is too old to be taken.
        """
        tally.heard.add(answer.device)
        if answer.error is not None:
            tally.failed[answer.device] = answer.error.name
            return False
        tally.uplink_bytes += _bytes(answer.tensors)
        if factor is None:
            tally.refused[answer.device] = "stale"
            return False
        may_say = declared_metrics(self.plan.weighting, improvement=self._judges(told.turn))
        try:
            _, metrics = check_in({}, answer.metrics, Declared(tensors={}, metrics=may_say), max_bytes=1)
            weight = factor * metrics.get(ROWS, 1.0)
            gathering.take(Reply(device=answer.device, weight=weight, scale=self._scale, tensors=answer.tensors), told)
        except RefusedError as error:
            tally.refused[answer.device] = error.refusal.value
            return False
        except InputError:
            tally.refused[answer.device] = "malformed"
            return False
        if IMPROVEMENT in metrics:
            tally.improvements[answer.device] = metrics[IMPROVEMENT]
        return True

    def close(self, gathering: Gathering) -> Shared | None:
        """Merge what was taken; None if numbers overflowed on the way, so that nothing can be made of it."""
        try:
            shared = gathering.close()
        except RefusedError:
            return None
        return shared if is_finite(shared.state) and is_finite(shared.moments) else None

    def learn(self, progress: Progress, number: int, tally: Tally) -> Tensors:
        """Return what is known of hyperparameters after a round; under a private plan the sum is noised.

        Args:
            progress: before the round.
            number: of the round.
            tally: of it.
        """
        if self.tuner.sensitivity == 0:
            return progress.tuner
        total = torch.zeros_like(self.tuner.feedback(self._draw(progress, number, 0), 0.0))
        for device, improvement in sorted(tally.improvements.items()):
            total = total + self.tuner.feedback(self._draw(progress, number, device), improvement)
        privacy = self.plan.privacy
        if privacy is not None:
            std = privacy.noise_multiplier * self.tuner.sensitivity
            total = add_gaussian({IMPROVEMENT: total}, std, self._noise)[IMPROVEMENT]
        return self.tuner.advance(progress.tuner, total)

    def mean_improvement(self, tally: Tally) -> float | None:
        """Return what may be told of the round's improvements."""
        if self.plan.privacy is not None or not tally.improvements:
            return None
        return sum(tally.improvements.values()) / len(tally.improvements)

    def _judges(self, turn: Turn) -> bool:
        """Whether devices are to say how much better they do after this exchange's work."""
        assert self.plan.rule is not None
        trains = self.plan.rule.duty(turn).work in ("train", "zeroth-order")
        return trains and self.tuner.sensitivity > 0

    def _draw(self, progress: Progress, number: int, device: int) -> dict[str, float]:
        return self.tuner.draw(progress.tuner, server_round=number, device=device, seed=self._config.seed)

    def _usual(self) -> dict[str, float]:
        config = self._config
        return {
            "steps": float(config.local_steps),
            "learning_rate": config.learning_rate,
            "batch_size": float(config.batch_size),
        }


def _bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
