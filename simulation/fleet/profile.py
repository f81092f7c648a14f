"""Device profiles: what one kind of device can do, and what it takes for it.

    FLOPs = tokens · (4 · frozen + 6 · trained),   seconds = FLOPs / rate,   joules = watts · seconds + radio · bytes

A weight takes part in one multiplication and one addition a token: 2 operations in the forward pass, 2 more for the
gradient of its input, and, only if it is trained, 2 for its own gradient. So LoRA on a frozen base costs 4 a base
weight and 6 an adapter's, and full training 6. Attention scores, recomputed activations and the optimizer are left out.

A profile is one TOML file in `profiles/`, under the file's name; a new kind of device is one file more.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final, Self

from pydantic import Field, ValidationInfo, field_validator

from florilegium.errors import ConfigError
from florilegium.settings import Settings
from simulation.fleet.availability import Habits

__all__ = ["DeviceProfile", "find_profile", "read_profiles", "training_flops"]

_FOLDER: Final = Path(__file__).parent / "profiles"
_BITS_PER_BYTE: Final = 8
_MEGA: Final = 1e6
_GIGA: Final = 1e9
_JOULES_PER_WH: Final = 3_600.0


def training_flops(tokens: int, *, frozen: int, trained: int) -> float:
    """Return the floating point operations of training.

    Args:
        tokens: fed to the model, repeats counted.
        frozen: weights that only pass the gradient on; embedding tables are looked up and do not count.
        trained: weights that get one.

    >>> training_flops(10, frozen=0, trained=100) / training_flops(10, frozen=100, trained=0)
    1.5
    """
    return float(tokens) * (4.0 * frozen + 6.0 * trained)


class DeviceProfile(Settings):
    """What a kind of device can do.

    Attributes:
        name: its file's.
        memory_mb: what training may take, MiB; fit for `FineTuneConfig.memory_mb`.
        training_gflops: sustained rate of training with small batches, 10⁹ operations a second.
        idle_watts: power drawn while it waits or transfers, the radio's own not counted.
        training_watts: power drawn while it trains, all in all.
        radio_joules_per_mb: energy of moving 10⁶ bytes, either way.
        uplink_mbps: rate of sending, 10⁶ bits a second.
        downlink_mbps: rate of receiving.
        battery_wh: energy that its battery holds; 0 for a device on mains.
        rank: the adapter rank that it trains.
        share: its weight in a fleet whose mix is not given.
        habits: when it is online and willing; None for always.
    """

    name: str = ""
    memory_mb: int = Field(ge=1)
    training_gflops: float = Field(gt=0.0, allow_inf_nan=False)
    idle_watts: float = Field(ge=0.0, allow_inf_nan=False)
    training_watts: float = Field(ge=0.0, allow_inf_nan=False)
    radio_joules_per_mb: float = Field(ge=0.0, allow_inf_nan=False)
    uplink_mbps: float = Field(gt=0.0, allow_inf_nan=False)
    downlink_mbps: float = Field(gt=0.0, allow_inf_nan=False)
    battery_wh: float = Field(ge=0.0, allow_inf_nan=False)
    rank: int = Field(ge=1)
    share: float = Field(ge=0.0, allow_inf_nan=False)
    habits: Habits | None = None

    @field_validator("habits")
    @classmethod
    def _charge_what_has_a_battery(cls, habits: Habits | None, info: ValidationInfo) -> Habits | None:
        if habits is None and info.data.get("battery_wh"):
            raise ValueError("a device with a battery needs [habits]; battery_wh = 0 is a device on mains")
        return habits

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a profile's file and give the profile its name.

        Raises:
            ConfigError: the file cannot be read, is no TOML, or a value is out of its range.
        """
        return super().load(path).model_copy(update={"name": path.stem})

    def training_seconds(self, tokens: int, parameters: int, *, adapter_parameters: int = 0) -> float:
        """Return how long it trains an adapter on a frozen base.

        Args:
            tokens: fed to the model, repeats counted.
            parameters: of the base, without embedding tables that are only looked up.
            adapter_parameters: trained ones.
        """
        return training_flops(tokens, frozen=parameters, trained=adapter_parameters) / (self.training_gflops * _GIGA)

    def transfer_seconds(self, bytes_up: int, bytes_down: int) -> float:
        """Return how long it sends and receives, one after the other; latency is left out."""
        seconds_up = bytes_up * _BITS_PER_BYTE / (self.uplink_mbps * _MEGA)
        return seconds_up + bytes_down * _BITS_PER_BYTE / (self.downlink_mbps * _MEGA)

    def energy_joules(self, *, training_seconds: float, transfer_seconds: float, transfer_bytes: int) -> float:
        """Return the energy drawn for a task: all that the device takes, not only what it takes beyond idling.

        Args:
            training_seconds: at `training_watts`.
            transfer_seconds: at `idle_watts`.
            transfer_bytes: sent and received, at `radio_joules_per_mb`.
        """
        drawn = self.training_watts * training_seconds + self.idle_watts * transfer_seconds
        return drawn + self.radio_joules_per_mb * transfer_bytes / _MEGA

    def battery_share(self, joules: float) -> float:
        """Return what share of a full battery an energy is; 0 for a device on mains."""
        return joules / (self.battery_wh * _JOULES_PER_WH) if self.battery_wh else 0.0


@cache
def read_profiles(folder: Path = _FOLDER) -> Mapping[str, DeviceProfile]:
    """Read all profiles of a folder, by name.

    Raises:
        ConfigError: a file is no profile.
    """
    return {path.stem: DeviceProfile.load(path) for path in sorted(folder.glob("*.toml"))}


def find_profile(name: str) -> DeviceProfile:
    """Return the profile of that name.

    Raises:
        ConfigError: there is none.
    """
    profiles = read_profiles()
    if name not in profiles:
        nearest = difflib.get_close_matches(name, profiles, n=1, cutoff=0.0)[0]
        raise ConfigError(f"no device profile {name!r}", f"did you mean {nearest!r}? known: {', '.join(profiles)}")
    return profiles[name]
