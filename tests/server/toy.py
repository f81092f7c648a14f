"""Devices that are functions, behind transports that wait or do not."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch

from florilegium.tensors import Tensors
from privacy.noise import SeededSource
from server.checkpoint import Progress, RoundLog
from server.config import CoordinationConfig
from server.registry import Registry
from server.rounds import Coordinator
from server.transport import Answer, Request
from strategies.codecs import encode_with_feedback
from strategies.plan import Plan
from strategies.rule import Rule
from tests.strategies.rules.fleet import ALPHA_PER_RANK, Device, adapter, gradient, noise

Spoil = Callable[[Request, Answer], Answer | None]
SMALL = {"cohort": 3, "rounds": 4, "minimum_replies": 2}


def honest(_: Request, answer: Answer) -> Answer | None:
    return answer


@dataclass
class Toy:
    """A fleet of toy devices behind a transport; `spoil` may change or swallow an answer."""

    plan: Plan
    ranks: Mapping[int, int]
    spoil: Spoil = honest
    asked: list[int] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    waits: int = 0
    known: dict[int, Device] = field(default_factory=dict)

    def devices(self) -> Mapping[int, int]:
        return self.ranks

    def wait(self) -> None:
        self.waits += 1

    def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
        for request in requests:
            self._note(request)
            answer = self.spoil(request, self._answer(request))
            if answer is not None:
                yield answer

    def _note(self, request: Request) -> None:
        self.asked.append(request.device)
        self.requests.append(request)

    def _answer(self, request: Request) -> Answer:
        assert self.plan.rule is not None
        device = self.known.setdefault(request.device, Device(request.device, rank=self.ranks[request.device]))
        held = cast(Rule, _Held(self.plan.rule, request.down))
        update = device.answer(held, {}, request.turn, noise, gradient).tensors
        payload, _ = encode_with_feedback(
            self.plan.codec,
            update,
            residual=None,
            agreement=request.agreement,
            generator=torch.Generator().manual_seed(request.device),
        )
        return Answer(device=request.device, tensors=payload)


@dataclass
class Post(Toy):
    """The same behind a transport that does not wait; `delay` says how long a device takes, one request after another.

    Time is a number.
    """

    delay: Callable[[Request], float] = lambda _: 1.0
    now: float = 0.0
    under_way: list[tuple[float, int, Request]] = field(default_factory=list)
    most_under_way: int = 0
    answered: list[Request] = field(default_factory=list)

    def send(self, requests: Iterable[Request]) -> None:
        for request in requests:
            begins = max([self.now, *(due for due, _, each in self.under_way if each.device == request.device)])
            heapq.heappush(self.under_way, (begins + self.delay(request), len(self.asked), request))
            self._note(request)
            self.most_under_way = max(self.most_under_way, len(self.under_way))

    def poll(self, seconds: float | None) -> Iterator[Answer]:
        until = math.inf if seconds is None else self.now + seconds
        while self.under_way and self.under_way[0][0] <= until:
            self.now, _, request = heapq.heappop(self.under_way)
            answer = self.spoil(request, self._answer(request))
            if answer is not None:
                self.answered.append(request)
                yield replace(answer, round=request.turn.round)
        if until < math.inf:
            self.now = until


class _Held:
    """A rule whose way down has been gone already."""

    def __init__(self, rule: object, down: Tensors) -> None:
        self._rule, self._down = rule, down

    def down(self, *_: object) -> Tensors:
        return self._down

    def __getattr__(self, name: str) -> object:
        return getattr(self._rule, name)


def coordinate(folder: Path, toy: Toy, config: CoordinationConfig, *, registry: bool = False) -> Coordinator:
    return Coordinator(
        config,
        adapter(3),
        rank=3,
        scale=ALPHA_PER_RANK,
        transport=toy,
        directory=folder,
        registry=Registry(folder / "registry", keep=config.keep_versions) if registry else None,
        noise=SeededSource(4),
    )


def coordinator(
    folder: Path, *, spoil: Spoil = honest, ranks: Mapping[int, int] | None = None, **settings: object
) -> tuple[Coordinator, Toy]:
    config = CoordinationConfig.parse(SMALL | settings)
    toy = Toy(config.make_plan(), ranks or dict.fromkeys(range(8), 3), spoil)
    return coordinate(folder, toy, config), toy


def play(made: Coordinator) -> tuple[list[RoundLog], Progress]:
    logs = [log for log, _ in made.rounds()]
    return logs, made.progress()


def assert_same(one: Progress, other: Progress) -> None:
    assert (one.round, one.participations) == (other.round, other.participations)
    for mine, its in (
        (one.shared.state, other.shared.state),
        (one.shared.moments, other.shared.moments),
        (one.shared.change, other.shared.change),
        (one.tuner, other.tuner),
    ):
        assert list(mine) == list(its)
        assert all(torch.equal(mine[key], its[key]) for key in mine)
