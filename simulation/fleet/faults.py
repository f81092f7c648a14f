"""Faults: what goes wrong with one task of one device in one round.

    P(drops out) = p,   P(straggles) = q, slower by exp U(ln 2, ln most),   P(slow link) = l

Each is drawn from (seed, round, device, attempt), so it depends on nobody else, nor on how many were asked, and a round
that is tried again does not meet the same faults for ever. The same numbers are held against p, q and l whatever they
are: a higher probability adds faults and takes none away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from pydantic import Field

from florilegium.errors import ConfigError
from florilegium.settings import Settings
from simulation.fleet.draws import uniforms

__all__ = ["Fault", "FaultConfig", "draw_fault"]

_LEAST_SLOWDOWN: Final = 2.0


class FaultConfig(Settings):
    """How often what goes wrong.

    Attributes:
        dropout: probability that a device takes a task and never answers.
        stragglers: probability that its training is slowed.
        slow_links: probability that its link is.
        straggler_slowdown: the factor of the slowest straggler; the least is 2.
        link_slowdown: the factor of a slow link.
    """

    dropout: float = Field(0.0, ge=0.0, le=1.0)
    stragglers: float = Field(0.0, ge=0.0, le=1.0)
    slow_links: float = Field(0.0, ge=0.0, le=1.0)
    straggler_slowdown: float = Field(8.0, ge=_LEAST_SLOWDOWN, allow_inf_nan=False)
    link_slowdown: float = Field(4.0, ge=1.0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with one task; nothing by default.

    Attributes:
        drops_after: share of the work after which the device is gone; None if it answers.
        training_slowdown: factor on the training's seconds.
        link_slowdown: factor on the transfers' seconds.

    Raises:
        ConfigError: a factor is less than 1, or the share is not in [0, 1).
    """

    drops_after: float | None = None
    training_slowdown: float = 1.0
    link_slowdown: float = 1.0

    def __post_init__(self) -> None:
        for name, factor in (("training_slowdown", self.training_slowdown), ("link_slowdown", self.link_slowdown)):
            if not 1 <= factor < math.inf:
                raise ConfigError(f"{name} must be finite and >= 1, got {factor}", "1 is no slowdown")
        if self.drops_after is not None and not 0 <= self.drops_after < 1:
            raise ConfigError(f"drops_after must be in [0, 1), got {self.drops_after}", "None is no dropout")


def draw_fault(config: FaultConfig, seed: int, server_round: int, device: int, attempt: int = 1) -> Fault:
    """Draw what goes wrong with a device's task in the first attempt, or a later one, at a round."""
    drops, share, straggles, slowdown, link = uniforms(5, "fault", seed, server_round, device, attempt)
    slowest = math.log(config.straggler_slowdown / _LEAST_SLOWDOWN)
    return Fault(
        drops_after=share if drops < config.dropout else None,
        training_slowdown=_LEAST_SLOWDOWN * math.exp(slowest * slowdown) if straggles < config.stragglers else 1.0,
        link_slowdown=config.link_slowdown if link < config.slow_links else 1.0,
    )
