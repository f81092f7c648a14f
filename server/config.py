"""The settings of a coordinated run, as a TOML file holds them."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from client.adapters import AdapterConfig
from florilegium.errors import ConfigError
from florilegium.settings import Settings
from server.asynchronous import AsyncSettings, require_bufferable
from server.hyperparameters.settings import TunerSettings
from strategies.plan import Plan
from strategies.sampling import SamplingConfig
from strategies.settings import PlanSettings

__all__ = ["CoordinationConfig"]


class CoordinationConfig(Settings):
    """A coordinated run.

    Attributes:
        model: the frozen base that all devices have: "seedling", a Hub name or a local path.
        adapter: the shared adapter's shape on the server; devices may have a lower rank where the rule takes it.
        plan: how the fleet shares.
        rounds: how many.
        cohort: replies that a round wants; in buffered rounds K, replies that are merged at once.
        over_selection: devices asked for each reply wanted; not of buffered rounds.
        participation_cap: most rounds that one device takes part in, with a reply that was merged; None for no cap.
        minimum_replies: fewer leave the state as it is, and the round is tried again with other devices.
        attempts: times that one round is tried before the run stops.
        deadline_seconds: how long answers are waited for; None waits for all.
        local_steps: optimizer steps of a device in a round, shared and personal together.
        learning_rate: of the devices.
        batch_size: rows of one local step.
        tuner: of what devices train with, in place of the three above where it names them.
        improvement_unit: nats per token that count as an improvement of 1, which a tuner may learn from.
        asynchronous: rounds that wait for no one device; None for rounds that wait for their cohort.
        keep_versions: versions of the shared adapter that the registry keeps.
        seed: everything random derives from it, but for noise; 63 bits.
    """

    model: str = "seedling"
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    plan: PlanSettings = Field(default_factory=PlanSettings)
    rounds: int = Field(10, ge=1)
    cohort: int = Field(8, ge=1)
    over_selection: float = Field(1.0, ge=1.0, allow_inf_nan=False)
    participation_cap: int | None = Field(None, ge=1)
    minimum_replies: int = Field(1, ge=1)
    attempts: int = Field(10, ge=1)
    deadline_seconds: float | None = Field(None, gt=0)
    local_steps: int = Field(8, ge=1)
    learning_rate: float = Field(2e-3, gt=0, allow_inf_nan=False)
    batch_size: int = Field(8, ge=1)
    tuner: TunerSettings = Field(default_factory=TunerSettings)
    improvement_unit: float = Field(1.0, gt=0, allow_inf_nan=False)
    asynchronous: AsyncSettings | None = None
    keep_versions: int = Field(5, ge=1)
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.minimum_replies > self.cohort:
            raise ConfigError(
                f"minimum_replies is {self.minimum_replies}, more than the cohort of {self.cohort}",
                "lower it, or let more devices take part",
            )
        return self

    @model_validator(mode="after")
    def _can_be_tuned(self) -> Self:
        tuner, privacy = self.tuner.tuner(), self.plan.privacy
        drawn = tuner.draw(tuner.start(), server_round=1, device=0, seed=self.seed)
        if "rank" in drawn:
            raise ValueError(
                "the tuner draws a rank, and adapters keep their shape through a run; give devices ranks of their own, "
                "or search with halving, run by run"
            )
        if tuner.sensitivity == 0:
            return self
        if self.asynchronous is not None:
            raise ValueError(
                f"tuner {self.tuner.way} weighs what it hears by how likely it was drawn, which in buffered rounds is "
                "another number when the reply comes; choose fixed or schedule"
            )
        if self.plan.secure_aggregation:
            raise ValueError(
                f"tuner {self.tuner.way} is told each device's improvement, and secure aggregation shows sums alone; "
                "choose fixed or schedule"
            )
        if privacy is not None and privacy.placement == "local":
            raise ValueError(
                f"tuner {self.tuner.way} needs each device's improvement, and a number from -1 to 1 says nothing under "
                "the noise that a device would add; choose fixed or schedule, or placement central"
            )
        return self

    @model_validator(mode="after")
    def _can_be_buffered(self) -> Self:
        if self.asynchronous is not None:
            require_bufferable(self.make_plan(), self.rounds)
            if self.over_selection != 1:
                raise ValueError("over_selection is for rounds that wait; in buffered ones, raise concurrency")
        return self

    @model_validator(mode="after")
    def _can_be_played(self) -> Self:
        plan = self.make_plan()
        if plan.rule is None:
            raise ConfigError(f"{plan.name} shares nothing that a server could coordinate", "choose a rule of sharing")
        if plan.robust is not None and plan.robust.minimum > self.cohort:
            raise ConfigError(
                f"{self.plan.robust} needs {plan.robust.minimum} replies, more than the cohort of {self.cohort}",
                "raise cohort, let more devices take part, or choose a robust rule that needs fewer",
            )
        if plan.secure_aggregation:  # last, so that what it can never go with is refused for that reason
            raise ConfigError(
                "secure_aggregation is not available yet: every update reaches the server in the clear", "leave it off"
            )
        return self

    def make_plan(self) -> Plan:
        """Return the plan."""
        return self.plan.plan(seed=self.seed, cohort=self.cohort)

    @property
    def sampling(self) -> SamplingConfig:
        """How a round's devices are drawn."""
        return SamplingConfig(
            cohort=self.cohort, over_selection=self.over_selection, participation_cap=self.participation_cap
        )
