"""The settings of a comparison of ways of sharing."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from client.bounds import LocalBounds, clamp
from client.finetuning import FineTuneConfig
from client.selection.policies import POLICIES
from florilegium.errors import ConfigError
from florilegium.settings import one_of
from server.asynchronous import AsyncSettings
from server.config import CoordinationConfig
from server.hyperparameters.settings import TunerSettings
from simulation.fleet import FleetConfig
from simulation.hostile import HostileConfig
from simulation.settings import ComparisonSettings
from simulation.sharing.arms import DEFAULT_SHARING_ARMS, SharingArm, find_sharing_arms
from strategies.sampling import SamplingConfig
from strategies.settings import PlanSettings

__all__ = ["SharingConfig"]

_MANY: Final = 1_000_000  # devices, where it is the users that say how many there are
_EQUAL: Final = ("steps", "batch_size", "synthesis_count")  # hyperparameters in which arms must not differ


class SharingConfig(ComparisonSettings):
    """What is compared, and what every arm may spend; see `ComparisonSettings` for the rest.

    A device's stream is cut into stages. At the end of each the device asks its user and writes its rows; the rounds
    are spread evenly over the stages, and a round uses the rows of its stage.

    Attributes:
        arms: names of arms; see `simulation.sharing.arms`.
        plans: arms of one's own, by name.
        unseen: devices of each seed that take no part and receive the shared adapter at the end.
        stages: parts of the stream.
        rounds: of coordination, and as many of learning alone.
        evaluate_every: rounds between two measurements; the last round is always measured.
        cohort: replies that a round wants; None asks all devices. Who learns alone takes as many steps in the mean.
        local_steps: optimizer steps of a device in a round.
        over_selection: devices asked for each reply that a round wants; they count in the steps of who learns alone.
        minimum_replies: fewer leave the shared state as it is, and the round is tried again.
        attempts: times that one round is tried before the run stops.
        deadline_seconds: how long a round waits, by the fleet's clock; None waits for all.
        asynchronous: rounds that wait for no one device.
        tuner: of what devices train with.
        runtime: what carries messages: "inprocess", Flower's simulation engine ("ray"), or its processes as boards
            would run them, on this machine ("deployment"). Adapters come out the same.
        fleet: hardware, days and faults of the devices, on a simulated clock; None has all online, and no clock.
        hostile: devices whose answers are replaced on the way, the same ones for all arms; None has all honest.
        ranks_by_profile: whether devices train at the rank of their hardware, up to `rank`, where the rule takes it.
        measured: measure this many devices alone, and prepare the others when they are first asked; None measures all.
        learning_rate: of the devices.
        learning_rates: of arms that need another one, by arm.
        policy: of selection.
        annotations_per_stage: answers asked for in a stage to learn from. The stages' sum is at most `bins`.
    """

    of_fleets: ClassVar[bool] = True
    arms: tuple[str, ...] = DEFAULT_SHARING_ARMS
    plans: dict[str, PlanSettings] = Field(default_factory=dict)
    unseen: int = Field(0, ge=0)
    stages: int = Field(2, ge=1)
    rounds: int = Field(10, ge=1)
    evaluate_every: int = Field(5, ge=1)
    cohort: int | None = Field(None, ge=1)
    over_selection: float = Field(1.0, ge=1.0)
    minimum_replies: int = Field(1, ge=1)
    attempts: int = Field(10, ge=1)
    deadline_seconds: float | None = Field(None, gt=0)
    asynchronous: AsyncSettings | None = None
    tuner: TunerSettings = Field(default_factory=TunerSettings)
    runtime: Literal["inprocess", "ray", "deployment"] = "inprocess"
    fleet: FleetConfig | None = None
    hostile: HostileConfig | None = None
    ranks_by_profile: bool = False
    measured: int | None = Field(None, ge=1)
    local_steps: int = Field(8, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    learning_rates: dict[str, float] = Field(default_factory=dict)
    policy: Annotated[str, one_of(POLICIES)] = "improved"
    annotations_per_stage: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.stages * self.annotations_per_stage > self.bins:
            raise ValueError(
                f"{self.stages} stages of {self.annotations_per_stage} annotations need as many bins, there are "
                f"{self.bins}; raise bins, or lower stages or annotations_per_stage"
            )
        if self.rounds < self.stages:
            raise ValueError(f"{self.stages} stages need as many rounds, there are {self.rounds}")
        if self.ranks_by_profile and self.fleet is None:
            raise ValueError("ranks_by_profile needs [fleet], which says what hardware there is")
        if self.measured is not None and any(arm.learns and not arm.shares for arm in self.find_arms()):
            raise ValueError("measured leaves devices unprepared, and learning alone needs all of them; leave it out")
        if self.runtime != "inprocess":
            self._can_run_elsewhere()
        elif self.deadline_seconds is not None and self.fleet is None:
            raise ValueError(
                f"deadline_seconds = {self.deadline_seconds:g} would be of this machine's time, on which no result may "
                "depend; add [fleet] for a simulated clock, choose runtime ray or deployment, or leave it out"
            )
        self._spends_the_same()
        for arm in self.find_arms():
            if arm.shares:
                self.coordination(arm, self.cohort or _MANY)
            elif arm.plan is not None:
                arm.plan.plan(seed=self.seed, cohort=1)
        return self

    def _can_run_elsewhere(self) -> None:
        if self.fleet is not None or self.measured is not None:
            raise ValueError(f"runtime {self.runtime} has no simulated clock; leave out fleet and measured")
        if self.hostile is not None:
            raise ValueError(f"runtime {self.runtime} has no way on which answers are replaced; leave out hostile")
        if any(arm.plan is not None and arm.plan.rule == "trust" for arm in self.find_arms()):
            raise ValueError(
                f"trust sends each device its own, and runtime {self.runtime} gives nodes names of its own"
            )

    def _spends_the_same(self) -> None:
        tuner, arms = self.tuner.tuner(), [arm for arm in self.find_arms() if arm.trains]
        drawn = tuner.draw(tuner.start(), server_round=1, device=0, seed=self.seed)
        alone = [arm.name for arm in arms if not arm.shares]
        if 0 < len(alone) < len(arms) and (unequal := [name for name in _EQUAL if name in drawn]):
            raise ValueError(
                f"the tuner names {', '.join(unequal)}, and arms that share must not differ in that from "
                f"{', '.join(alone)}; leave it to the settings, or leave out the arms that learn alone"
            )

    def identity(self) -> dict[str, object]:
        """Return what a measurement depends on, as plain JSON values; recorded windows of a fleet count by content.

        Raises:
            InputError: the trace file cannot be used.
        """
        return super().identity() | ({} if self.fleet is None else {"fleet": self.fleet.identity()})

    @property
    def measured_rounds(self) -> list[int]:
        """The rounds after which devices are measured; 0 is before the first."""
        return [*range(0, self.rounds, self.evaluate_every), self.rounds]

    def find_arms(self) -> tuple[SharingArm, ...]:
        """Return the arms asked for."""
        return find_sharing_arms(self.arms, self.plans)

    def first_round(self, stage: int) -> int:
        """Return the first round that uses the rows of a stage; stages count from 1."""
        return self.rounds * (stage - 1) // self.stages + 1

    def stage_of(self, round_number: int) -> int:
        """Return the stage whose rows a round uses; 0 before the first round."""
        return sum(self.first_round(stage) <= round_number for stage in range(1, self.stages + 1))

    def rounds_since_measured(self, round_number: int) -> range:
        """Return the rounds that a measurement after this one is the first to see."""
        before = [number for number in self.measured_rounds if number < round_number]
        return range(before[-1] + 1 if before else 1, round_number + 1)

    def learning_rate_of(self, arm: str) -> float:
        """Return the learning rate of an arm."""
        return self.learning_rates.get(arm, self.learning_rate)

    def require_possible(self, devices: int) -> None:
        """Refuse what cannot work with a fleet of this size, before anything is prepared.

        Raises:
            ConfigError: a server would wait for more replies than there are devices, or the simulated fleet has another
                size.
        """
        if self.fleet is not None and "devices" in self.fleet.model_fields_set and self.fleet.devices != devices:
            raise ConfigError(
                f"fleet.devices = {self.fleet.devices}, and {devices} devices take part",
                "leave it out: users are devices",
            )
        for arm in self.find_arms():
            if arm.shares:
                self.coordination(arm, devices)

    def coordination(self, arm: SharingArm, devices: int) -> CoordinationConfig:
        """Return the settings of an arm's server.

        Raises:
            ConfigError: they cannot work with so many devices.
        """
        assert arm.plan is not None
        values = {
            "model": self.model,
            "adapter": self.adapter,
            "plan": arm.plan,
            "rounds": self.rounds,
            "cohort": min(self.cohort or devices, devices),
            "over_selection": self.over_selection,
            "minimum_replies": self.minimum_replies,
            "attempts": self.attempts,
            "deadline_seconds": self.deadline_seconds,
            "asynchronous": self.asynchronous,
            "tuner": self.tuner,
            "local_steps": self.local_steps,
            "learning_rate": self.learning_rate_of(arm.name),
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        return CoordinationConfig.parse(values, source=arm.name)

    def finetuning_of(self, arm: str) -> FineTuneConfig:
        """Return how an arm's devices train alone: within the bounds that they keep when a server asks."""
        kept = clamp({"learning_rate": self.learning_rate_of(arm), "batch_size": self.batch_size}, LocalBounds())
        return FineTuneConfig(learning_rate=kept["learning_rate"], batch_size=int(kept["batch_size"]), seed=self.seed)

    def steps_of(self, round_number: int, devices: int) -> int:
        """Return the local steps in a round of a device that takes them alone: on average as many as in cohorts."""
        cohort = min(self.cohort or devices, devices)
        asked = SamplingConfig(cohort=cohort, over_selection=self.over_selection).asked
        steps, share = clamp({"steps": self.local_steps}, LocalBounds())["steps"], min(asked, devices) / devices
        return round(round_number * steps * share) - round((round_number - 1) * steps * share)
