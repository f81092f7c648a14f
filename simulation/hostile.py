"""Hostile devices: what some devices of a simulated fleet answer is replaced on its way to the server.

    sign_flip    −factor · payload    pulls back what the others learned
    scaled       factor · payload     one device for many (model replacement: Bagdasaryan et al., arXiv 1807.00459)
    nan          NaN in every number
    wrong_shape  one more dimension of size 1, which broadcasting would let pass
    huge         10³⁰ in every number: finite, and not once they are squared or multiplied
    mixed        each hostile device draws one of these

Who is hostile depends on (seed, number of devices) alone and lasts: all arms of a comparison meet the same devices, and
a run that goes on meets those of before. A hostile device works as any other and is measured as any other; only what
leaves it is replaced. Each tensor is by itself: where a rule sends both factors whole, two flips cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Final

import torch
from pydantic import Field
from torch import Tensor

from florilegium.settings import Settings, one_of
from server.transport import Answer, BufferedTransport, Request
from simulation.fleet.draws import uniforms

__all__ = ["ATTACKS", "Hostile", "HostileConfig", "draw_hostile"]

_HUGE: Final = 1e30
_MIXED: Final = "mixed"

ATTACKS: Final[Mapping[str, Callable[[Tensor, float], Tensor]]] = {
    "sign_flip": lambda tensor, factor: tensor * -factor,
    "scaled": lambda tensor, factor: tensor * factor,
    "nan": lambda tensor, _: torch.full_like(tensor, math.nan),
    "wrong_shape": lambda tensor, _: tensor[None],
    "huge": lambda tensor, _: torch.full_like(tensor, _HUGE),
}
"""What is sent in a tensor's place, given that and the factor."""


class HostileConfig(Settings):
    """How many devices are hostile, and how.

    Attributes:
        share: of the devices, rounded to whole ones; at least one.
        attack: of all of them, or "mixed".
        factor: of "sign_flip" and "scaled".
        seed: who is hostile derives from it, and in what way where that is mixed.
    """

    share: float = Field(0.1, gt=0.0, le=1.0)
    attack: Annotated[str, one_of([*ATTACKS, _MIXED])] = "sign_flip"
    factor: float = Field(100.0, gt=0.0, allow_inf_nan=False)
    seed: int = 0


def draw_hostile(config: HostileConfig, devices: int) -> dict[int, str]:
    """Return the attack of each hostile device, by its index in a fleet of so many."""
    drawn = {index: uniforms(2, "hostile", config.seed, index) for index in range(devices)}
    chosen = sorted(drawn, key=drawn.__getitem__)[: max(1, round(config.share * devices))]
    names = tuple(ATTACKS) if config.attack == _MIXED else (config.attack,)
    return {index: names[int(drawn[index][1] * len(names))] for index in sorted(chosen)}


class Hostile:
    """A transport that replaces what hostile devices answer.

    Args:
        inner: reaches the devices.
        config: who is hostile, and how.
        devices: how many there are.
        index_of: the index in the fleet of a device of `inner`; by default they are numbered alike.
    """

    def __init__(
        self,
        inner: BufferedTransport,
        config: HostileConfig,
        *,
        devices: int,
        index_of: Callable[[int], int] = lambda device: device,
    ) -> None:
        self._inner, self._factor, self._index_of = inner, config.factor, index_of
        self._attacks = draw_hostile(config, devices)

    def devices(self) -> Mapping[int, int]:
        """Return who can be asked now."""
        return self._inner.devices()

    def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
        """Have devices asked, and yield their answers or what stands in their place."""
        return map(self._replaced, self._inner.ask(requests, seconds=seconds))

    def send(self, requests: Iterable[Request]) -> None:
        """Have devices given their work."""
        self._inner.send(requests)

    def poll(self, seconds: float | None) -> Iterator[Answer]:
        """Yield answers, or what stands in their place, as they come."""
        return map(self._replaced, self._inner.poll(seconds))

    def wait(self) -> None:
        """Wait for devices."""
        self._inner.wait()

    def _replaced(self, answer: Answer) -> Answer:
        """Return an answer as the server gets it; whole numbers of a codec stay, and so does an error."""
        name = self._attacks.get(self._index_of(answer.device))
        if name is None:
            return answer
        attack = ATTACKS[name]
        sent = {
            key: attack(tensor, self._factor) if tensor.is_floating_point() else tensor
            for key, tensor in answer.tensors.items()
        }
        return replace(answer, tensors=sent)
