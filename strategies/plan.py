"""Plan: a rule of sharing with its options, as one value that either works or is refused when it is made.

    rule        what travels and how it is merged                 strategies/rules
    personal    what a device does for itself on top               strategies/personal
    optimizer   how the mean update moves the server's state       strategies/optimizers
    robust      how hostile updates are merged away                strategies/robust
    codec       how an update is made smaller for the way up       strategies/codecs
    privacy     device-level clip and noise                        privacy/device_level.py

Secure aggregation shows a server nothing but a sum, so what looks at single replies cannot be had with it. A plan says
so, with the reason, before a run begins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from florilegium.errors import ConfigError
from privacy.device_level import DeviceLevel
from strategies.codecs import Codec
from strategies.codecs.identity import Identity
from strategies.optimizers import ServerOptimizer
from strategies.optimizers.average import Average
from strategies.personal import Personal
from strategies.robust import RobustRule
from strategies.rule import Individual, Rule, Turn

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a fleet shares what it learns.

    Attributes:
        rule: of sharing; None shares nothing.
        personal: what a device does for itself; None uses the shared adapter as it is.
        optimizer: of the server.
        robust: merges individual updates instead of averaging them.
        codec: of the way up.
        privacy: device-level differential privacy of what leaves; None for none.
        secure_aggregation: whether the server may see nothing but sums.
        proximal: μ of a pull towards where the round started (FedProx, arXiv 1812.06127).
        weighting: "uniform", or by a device's number of "rows", which is then released as well.
        seed: what both sides draw derives from it.

    Raises:
        ConfigError: the parts do not go together; the message says why.
    """

    rule: Rule | None
    personal: Personal | None = None
    optimizer: ServerOptimizer = field(default_factory=Average)
    robust: RobustRule | None = None
    codec: Codec = field(default_factory=Identity)
    privacy: DeviceLevel | None = None
    secure_aggregation: bool = False
    proximal: float = 0.0
    weighting: Literal["uniform", "rows"] = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.proximal < math.inf:
            raise ConfigError(f"proximal must be finite and >= 0, got {self.proximal}", "0 is no pull")
        self._check_rule()
        self._check_privacy()
        if self.secure_aggregation:
            self._check_secure_aggregation()

    @property
    def name(self) -> str:
        """The rule's name, behind the personal way's if there is one: "dual+fedit"."""
        return "+".join(part.name for part in (self.personal, self.rule) if part is not None)

    @property
    def shared_share(self) -> float:
        """The share of a round's local steps that trains the shared adapter."""
        return 1.0 if self.personal is None else 1.0 - self.personal.share

    def _check_rule(self) -> None:
        if self.rule is None:
            if self.personal is None or self.personal.beside_shared or self.personal.start == "shared":
                raise ConfigError("the plan shares nothing and needs a shared adapter", "choose a rule of sharing")
            if self.personal.share < 1:
                raise ConfigError("the plan shares nothing and trains a shared adapter", "give personal.share = 1")
            return
        if self.personal is not None and self.personal.share >= 1:
            raise ConfigError(f"{self.name} leaves no local steps to the shared adapter", "lower personal.share")
        if self.personal is not None and self.personal.start == "shared" and self.rule.starts_afresh:
            raise ConfigError(
                f"{self.rule.name} folds each round's adapters into the weights, where a copy of one would count twice",
                "choose dual, or another rule",
            )
        if not isinstance(self.rule, Individual):
            return
        if self.robust is not None:
            raise ConfigError(
                f"{self.rule.name} merges whole adapters, and a robust rule merges updates",
                "choose fedit, ffa or fedsa",
            )
        if not isinstance(self.codec, Identity):
            raise ConfigError(
                f"{self.rule.name} sends whole adapters, and error feedback is of updates", "choose the codec identity"
            )
        if not isinstance(self.optimizer, Average):
            raise ConfigError(
                f"{self.rule.name} has no mean update for a server optimizer to scale", "choose the optimizer average"
            )

    def _check_privacy(self) -> None:
        if self.privacy is None:
            return
        if self.rule is None or isinstance(self.rule, Individual):
            name = "local" if self.rule is None else self.rule.name
            raise ConfigError(f"{name} has no sum of updates to clip and noise", "choose fedit, ffa, rolora or fedsa")
        if self.weighting != "uniform":
            raise ConfigError(
                "weights by rows change how far one device moves the sum, and are a release of their own",
                "give weighting = 'uniform'",
            )
        if self.robust is not None and self.privacy.placement == "central":
            raise ConfigError(
                "a robust rule has no bounded sum for the server's noise", "let devices add the noise (placement local)"
            )
        if not self.codec.is_linear and self.privacy.placement == "central":
            raise ConfigError(
                "the codec's payloads are not a linear map of the clipped update", "choose identity, topk or sketch"
            )

    def _check_secure_aggregation(self) -> None:
        if self.rule is None:
            raise ConfigError("the plan shares nothing that could be summed securely", "leave secure aggregation off")
        if isinstance(self.rule, Individual):
            raise ConfigError(
                f"{self.rule.name} looks at every reply, and secure aggregation shows their sum alone",
                "choose a linear rule: fedit, ffa, rolora, fedsa, fedsb or sketch",
            )
        if self.robust is not None:
            raise ConfigError(
                "a robust rule looks at every reply, and secure aggregation shows their sum alone", "choose one of them"
            )
        if not self.codec.is_linear:
            raise ConfigError(
                "the codec's payloads cannot be summed before they are decoded", "choose identity, topk or sketch"
            )

    def turn(self, round_number: int, exchange: int, *, rank: int, scale: float, device: int = 0) -> Turn:
        """Return where the fleet is, as the rule's functions take it."""
        return Turn(round=round_number, exchange=exchange, rank=rank, scale=scale, seed=self.seed, device=device)
