"""The fleet: which device is what, drawn one by one.

Device i is drawn from (seed, i) alone: it is the same in a fleet of ten and of ten thousand, and no list of devices is
ever held. What is drawn for one purpose shares no number with another: turning faults on changes no trace.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from client.dialogue import derive_id
from florilegium.settings import Settings
from simulation.fleet.availability import DAY_SECONDS, Always, Source, Trace, draw_daily
from simulation.fleet.draws import uniforms
from simulation.fleet.faults import FaultConfig
from simulation.fleet.profile import DeviceProfile, find_profile, read_profiles
from simulation.fleet.recorded import Recorded, read_recorded

__all__ = ["DeviceSpec", "FleetConfig", "assign", "draw_device"]


class FleetConfig(Settings):
    """What a simulated fleet looks like.

    Attributes:
        devices: how many there are.
        mix: weights of profiles by name, divided by their sum; empty takes the profiles' own shares.
        availability: whether devices come and go; else all are online all the time.
        trace_file: recorded windows (see `simulation.fleet.recorded`) in place of drawn ones, dealt out in turn.
        time_zones: hours by which local time is ahead of fleet time; each device draws one.
        faults: how often what goes wrong.
        join_share: share of devices that join late, some time within `days`.
        leave_share: share that leave for good, some time between joining and the end of `days`.
        days: the simulated life in which devices join and leave.
        seed: everything random derives from it.
    """

    devices: int = Field(100, ge=1)
    mix: dict[str, float] = Field(default_factory=dict)
    availability: bool = True
    trace_file: Path | None = None
    time_zones: tuple[float, ...] = Field((0.0, 1.0, 2.0), min_length=1)
    faults: FaultConfig = FaultConfig()
    join_share: float = Field(0.0, ge=0.0, le=1.0)
    leave_share: float = Field(0.0, ge=0.0, le=1.0)
    days: float = Field(30.0, gt=0.0, allow_inf_nan=False)
    seed: int = 0

    @field_validator("mix")
    @classmethod
    def _name_profiles(cls, mix: dict[str, float]) -> dict[str, float]:
        known = read_profiles()
        for name, weight in mix.items():
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"no device profile {name!r}; did you mean {nearest!r}? known: {', '.join(known)}")
            if not 0 <= weight < math.inf:
                raise ValueError(f"the weight of {name} must be finite and >= 0, got {weight}")
        if mix and not sum(mix.values()) > 0:
            raise ValueError("the weights must not all be 0")
        return mix

    @field_validator("trace_file")
    @classmethod
    def _use_traces(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and not info.data.get("availability", True):
            raise ValueError("recorded traces need availability = true")
        return path

    @field_validator("time_zones")
    @classmethod
    def _lie_on_earth(cls, zones: tuple[float, ...]) -> tuple[float, ...]:
        if not all(-12 <= zone <= 14 for zone in zones):
            raise ValueError("time zones must be in [-12, 14] hours")
        return zones

    def identity(self) -> dict[str, object]:
        """Return what tells fleets apart, as plain JSON values; recorded windows count, and not where they lie.

        Raises:
            InputError: the trace file cannot be used.
        """
        values = self.model_dump(mode="json")
        if self.trace_file is not None:
            windows = [(each.starts, each.ends) for each in read_recorded(self.trace_file).values()]
            values["trace_file"] = derive_id("windows", json.dumps(windows))
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One device of a fleet.

    Attributes:
        index: from 0.
        profile: what it can do.
        trace: when it is online.
    """

    index: int
    profile: DeviceProfile
    trace: Trace


def assign(config: FleetConfig) -> Iterator[DeviceSpec]:
    """Yield the devices of a fleet, one by one.

    Raises:
        InputError: the trace file cannot be used.
    """
    recorded = tuple(read_recorded(config.trace_file).values()) if config.trace_file else ()
    for index in range(config.devices):
        yield draw_device(config, index, recorded)


def draw_device(config: FleetConfig, index: int, recorded: Sequence[Recorded] = ()) -> DeviceSpec:
    """Draw one device.

    Args:
        config: the fleet; how many devices it has does not matter.
        index: of the device, from 0.
        recorded: windows to take in place of drawn ones.
    """
    profile = _draw_profile(config, index)
    joins_at, leaves_at = _draw_stay(config, index)
    source = recorded[index % len(recorded)] if recorded else _source(config, profile, index)
    return DeviceSpec(index=index, profile=profile, trace=Trace(source=source, joins_at=joins_at, leaves_at=leaves_at))


def _draw_profile(config: FleetConfig, index: int) -> DeviceProfile:
    mix = config.mix or {name: profile.share for name, profile in read_profiles().items()}
    # By name, so that the order in which a file gives the weights changes no device.
    names = sorted(name for name, weight in mix.items() if weight > 0)
    (uniform,) = uniforms(1, "profile", config.seed, index)
    left = uniform * math.fsum(mix.values())
    for name in names:
        left -= mix[name]
        if left < 0:
            return find_profile(name)
    return find_profile(names[-1])


def _draw_stay(config: FleetConfig, index: int) -> tuple[float, float]:
    late, joins, early, leaves = uniforms(4, "stay", config.seed, index)
    end = config.days * DAY_SECONDS
    joins_at = joins * end if late < config.join_share else 0.0
    if early >= config.leave_share:
        return joins_at, math.inf
    # Who joins at the very end may have no number between; it leaves at the next one.
    return joins_at, max(joins_at + leaves * (end - joins_at), math.nextafter(joins_at, math.inf))


def _source(config: FleetConfig, profile: DeviceProfile, index: int) -> Source:
    if not config.availability or profile.habits is None:
        return Always()
    return draw_daily(config.seed, index, profile.habits, config.time_zones)
