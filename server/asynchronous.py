"""The settings of buffered asynchronous rounds, and which plans can be played in them; see `server.buffered`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from florilegium.errors import ConfigError
from florilegium.settings import Settings, one_of
from strategies.plan import Plan
from strategies.rule import Linear
from strategies.staleness import STALENESS_WEIGHTS, StalenessWeight, staleness_weight

__all__ = ["AsyncSettings", "require_bufferable"]


class AsyncSettings(Settings):
    """Buffered asynchronous rounds. K, the replies that are merged at once, is the run's cohort.

    Attributes:
        concurrency: devices that are at work at the same time.
        staleness: how the weight of a reply falls with its age; see `strategies.staleness`.
        staleness_options: of that.
        maximum_staleness: replies that are more rounds old are refused.
    """

    concurrency: int = Field(16, ge=1)
    staleness: Annotated[str, one_of(STALENESS_WEIGHTS)] = "polynomial"
    staleness_options: dict[str, float | int] = Field(default_factory=dict)
    maximum_staleness: int = Field(20, ge=0)

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        self.weight()
        return self

    def weight(self) -> StalenessWeight:
        """Return the weight that these settings describe.

        Raises:
            ConfigError: an option is unknown or out of its range.
        """
        return staleness_weight(self.staleness, self.staleness_options)


def require_bufferable(plan: Plan, rounds: int) -> None:
    """Refuse a plan whose replies cannot be merged when they were made from different states.

    Args:
        plan: of the fleet.
        rounds: of the run.

    Raises:
        ConfigError: it is such a plan; the message says why.
    """
    reason = _reason(plan, rounds)
    if reason is not None:
        raise ConfigError(f"{plan.name} cannot be played in buffered rounds: {reason[0]}", reason[1])


def _reason(plan: Plan, rounds: int) -> tuple[str, str] | None:
    """Return why a plan is refused, and what to do instead."""
    rule, simple = plan.rule, "choose fedit, ffa, fedsa or fedkseed, or rounds that wait for their cohort"
    if rule is None:
        return "it shares nothing", "choose a rule of sharing"
    if not isinstance(rule, Linear):
        return "it looks at the replies of one round side by side", simple
    turns = [plan.turn(number, 0, rank=1, scale=1.0) for number in range(1, rounds + 1)]
    if any(rule.exchanges(turn.round) > 1 for turn in turns):
        return "a device is asked twice in a round, and the round would be over by then", simple
    if not all(rule.sums_updates(turn) for turn in turns):
        return "what a device sends is no change of the server's state", simple
    if len({rule.duty(turn) for turn in turns}) > 1:
        return "devices train another part in each round, and a late one sends what the round has no use for", simple
    if plan.robust is not None:
        return "a robust rule compares replies that began alike", "leave robust out"
    if plan.weighting != "uniform":
        return "the sum is divided by the buffer's size, so that weights would scale the step", "weigh uniformly"
    if plan.secure_aggregation:
        return "each reply is weighed by its age, and secure aggregation shows their sum alone", "choose one of them"
    if plan.privacy is not None and plan.privacy.placement == "central":
        return (
            "one device more moves others to another buffer, so that the noise of one sum does not cover it",
            "let devices add the noise (placement local)",
        )
    return None
