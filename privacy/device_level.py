"""Device-level differential privacy of released updates (McMahan et al. 1710.06963): guarantee (b).

    u ← u · min(1, C / ‖u‖)                   every device
    central:  (Σ u + N(0, (z C)²)) / n        the server adds noise: for whoever sees the models
    local:    u + N(0, (z 2C)²)               the device adds noise: for whoever sees its updates, too

The unit is a device with all it ever held. Central: neighbouring fleets differ in one device that is there or not, the
L2 sensitivity of the sum is C (one device *replaced* by another moves it by up to 2C). Local: neighbours are any two
updates the device could have made, 2C apart at most. z is standard deviation ÷ sensitivity in both.

Devices weigh the same, and n is the cohort that was configured, never the count of replies: a weight, or a count,
would be a second release. However an update was made, by selection, synthesis, or anything else, this bounds what it
tells. No amplification by sampling is claimed: ε is that of k releases, and k is kept by the device's own ledger, so
that it needs no trust in the server. That a plan is private at all is the server's word; an owner's own limit holds
under any plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors, scale
from privacy.accounting import gaussian_epsilon
from privacy.clipping import clip, finite_norm
from privacy.noise import NoiseSource, add_gaussian

__all__ = ["DeviceLevel", "bound", "epsilon", "noise_sum", "promise", "release_local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLevel:
    """What device-level privacy is promised.

    Attributes:
        clip_norm: C, the largest joint L2 norm of an update; infinite only where there is no noise.
        noise_multiplier: z, standard deviation ÷ sensitivity; 0 promises nothing.
        delta: δ, well below 1 ÷ devices.
        placement: who adds the noise, "central" for the server or "local" for each device.
        max_rounds: k, the most releases of one device: a round is one, two where the rule asks twice, and one more
            where a tuner hears of an improvement.
        cohort: n, devices expected in a round; what a sum is divided by.

    Raises:
        ConfigError: a value is out of its range.
    """

    clip_norm: float
    noise_multiplier: float
    delta: float
    placement: Literal["central", "local"] = "central"
    max_rounds: int
    cohort: int

    def __post_init__(self) -> None:
        if not self.clip_norm > 0:
            raise ConfigError(f"clip_norm must be > 0, got {self.clip_norm}", "0.1 to 1 is usual for an adapter")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ConfigError(
                f"noise_multiplier must be finite and >= 0, got {self.noise_multiplier}", "0 is no privacy"
            )
        if math.isinf(self.clip_norm) and self.noise_multiplier > 0:
            raise ConfigError("clip_norm is infinite and noise_multiplier is not 0", "noise needs a finite clip_norm")
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta must be in (0, 1), got {self.delta}", "choose well below 1 ÷ devices")
        if self.placement not in ("central", "local"):
            raise ConfigError(f"no placement {self.placement!r}", "use 'central' or 'local'")
        for name, count in (("max_rounds", self.max_rounds), ("cohort", self.cohort)):
            if count < 1:
                raise ConfigError(f"{name} must be >= 1, got {count}", "count rounds and devices from 1")

    @property
    def sensitivity(self) -> float:
        """How far one unit can move what is noised, in L2: C centrally, 2C locally."""
        return self.clip_norm if self.placement == "central" else 2 * self.clip_norm

    @property
    def noise_std(self) -> float:
        """Standard deviation of each coordinate's noise."""
        return self.noise_multiplier * self.sensitivity if self.noise_multiplier else 0.0


def bound(update: Mapping[str, Tensor], config: DeviceLevel) -> Tensors:
    """Return an update of norm C at most, in new memory.

    Raises:
        RefusedError: the update is not finite.
    """
    if math.isinf(config.clip_norm):
        finite_norm(update)
        return {key: tensor.detach().clone() for key, tensor in update.items()}
    clipped, _, _ = clip(update, clip_norm=config.clip_norm)
    return clipped


def release_local(update: Mapping[str, Tensor], config: DeviceLevel, source: NoiseSource) -> Tensors:
    """Clip an update and add noise on the device; what comes back may be seen by anyone, and averaged by any rule.

    Raises:
        RefusedError: the update is not finite.
        ConfigError: the configured placement is another.
    """
    _require(config, "local")
    return add_gaussian(bound(update, config), config.noise_std, source)


def noise_sum(total: Mapping[str, Tensor], config: DeviceLevel, source: NoiseSource) -> Tensors:
    """Add noise to a sum of clipped updates and divide by the configured cohort, on the server.

    Raises:
        ConfigError: the configured placement is another.
    """
    _require(config, "central")
    return scale(add_gaussian(total, config.noise_std, source), 1.0 / config.cohort)


def epsilon(config: DeviceLevel) -> float:
    """Return ε of all that one device releases, `max_rounds` times, at the configured δ.

    Raises:
        ConfigError: dp_accounting is not installed.
    """
    return gaussian_epsilon(config.noise_multiplier, delta=config.delta, compositions=config.max_rounds)


def promise(config: DeviceLevel) -> str:
    """Say in a sentence what is promised, of whom and for whom."""
    if config.noise_multiplier == 0:
        return "Nothing is promised: no noise is added."
    try:
        amount = f"({epsilon(config):.3g}, {config.delta:g})-private"
    except ConfigError as error:
        amount = f"private by noise {config.noise_multiplier:g} times the sensitivity ({error})"
    unit, public = (
        ("whether one device is there or not", "the models")
        if config.placement == "central"
        else ("what one device learned", "its updates")
    )
    return (
        f"Over at most {config.max_rounds} releases, {unit} is {amount} for whoever sees {public}; "
        "no amplification by sampling is claimed."
    )


def _require(config: DeviceLevel, placement: str) -> None:
    if config.placement != placement:
        raise ConfigError(
            f"placement is {config.placement!r}, and this adds noise for {placement!r}",
            "noise is added once, where the configuration says",
        )
