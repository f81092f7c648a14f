"""The settings of a coordinated run, as a TOML file holds them."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from client.adapters import AdapterConfig
from florilegium.settings import Settings
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
        cohort: replies that a round wants.
        over_selection: devices asked for each reply wanted.
        participation_cap: most rounds that the server asks one device for; None for no cap.
        minimum_replies: fewer leave the state as it is, and the round is tried again with other devices.
        attempts: times that one round is tried before the run stops.
        deadline_seconds: how long a round waits for answers; None waits for all.
        local_steps: optimizer steps of a device in a round, shared and personal together.
        learning_rate: of the devices.
        batch_size: rows of one local step.
        keep_versions: versions of the shared adapter that the registry keeps.
        seed: everything random derives from it.
    """

    model: str = "seedling"
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    plan: PlanSettings = Field(default_factory=PlanSettings)
    rounds: int = Field(10, ge=1)
    cohort: int = Field(8, ge=1)
    over_selection: float = Field(1.0, ge=1.0)
    participation_cap: int | None = Field(None, ge=1)
    minimum_replies: int = Field(1, ge=1)
    attempts: int = Field(10, ge=1)
    deadline_seconds: float | None = Field(None, gt=0)
    local_steps: int = Field(8, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    batch_size: int = Field(8, ge=1)
    keep_versions: int = Field(5, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.minimum_replies > self.cohort:
            raise ValueError(
                f"minimum_replies is {self.minimum_replies}, more than the cohort of {self.cohort}; lower it"
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
