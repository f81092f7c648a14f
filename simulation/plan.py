"""What is compared: the settings of a comparison, and one user's part of the work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from client.annotation import ANNOTATION_POLICIES
from client.gate import Gate
from florilegium.settings import Settings, one_of
from simulation.arms import DEFAULT_ARMS, Arm, find_arms
from simulation.users import UserData

__all__ = ["CompareConfig", "Task"]

_SELECTION: Final = {"model", "arms", "bootstrap_draws"}


class CompareConfig(Settings):
    """What is compared, and what every arm may spend.

    Attributes:
        model: "seedling", a Hub name or a local path.
        arms: names of arms; see `simulation.arms`.
        bins: dialogues that a buffer holds.
        rounds: learning rounds, evenly spread over the stream.
        annotations_per_round: answers asked for in a round to learn from. The rounds' sum is at most `bins`: then every
            policy always holds enough dialogues that were not asked about, and all arms spend the same.
        annotation: which of the buffered dialogues are asked about; see `client.annotation`.
        holdout_share: share of arrivals that the gate keeps for itself.
        holdout_bins: at most this many of them.
        synthesis_count: questions to synthesize for each annotated dialogue; all training arms get that many
            rows more, repeated originals where nothing is synthesized.
        shots: examples that retrieval puts before a question.
        learning_rate: of the adapter.
        strengths: how much of a trained adapter the gate may choose to use; see `client.strength`.
        epochs: passes over a round's rows.
        batch_size: rows of one step.
        rank: of the adapter.
        top_layers: adapt only the highest layers of the model; None adapts all.
        max_new_tokens: longest answer.
        bootstrap_draws: resamples of the intervals.
        seed: everything random but the users derives from it.
        workers: processes; None is one per core. No result depends on it.
    """

    model: str = "seedling"
    arms: tuple[str, ...] = DEFAULT_ARMS
    bins: int = Field(24, ge=1)
    rounds: int = Field(2, ge=1)
    annotations_per_round: int = Field(12, ge=1)
    annotation: Annotated[str, one_of(ANNOTATION_POLICIES)] = "informative"
    holdout_share: float = Field(0.1, ge=0.0, le=0.5)
    holdout_bins: int = Field(16, ge=1)
    synthesis_count: int = Field(2, ge=0, le=16)
    shots: int = Field(3, ge=1, le=16)
    learning_rate: float = Field(2e-3, gt=0)
    strengths: tuple[float, ...] = Gate().strengths
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(8, ge=1)
    rank: int = Field(8, ge=1)
    top_layers: int | None = Field(2, ge=1)
    max_new_tokens: int = Field(32, ge=1)
    bootstrap_draws: int = Field(4000, ge=100)
    seed: int = 0
    workers: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _is_fair(self) -> Self:
        find_arms(self.arms)
        Gate(strengths=self.strengths)
        if not self.arms:
            raise ValueError("arms is empty; name at least one")
        if self.rounds * self.annotations_per_round > self.bins:
            needed = f"{self.rounds} rounds of {self.annotations_per_round} annotations"
            raise ValueError(
                f"{needed} need as many bins, there are {self.bins}: policies that keep what they have could not "
                "spend what the others spend; raise bins, or lower rounds or annotations_per_round"
            )
        return self

    def identity(self) -> dict[str, object]:
        """Return what a measurement depends on, as plain JSON values; the model counts by its weights."""
        return self.model_dump(mode="json", exclude={"workers", *_SELECTION})

    def selection(self) -> dict[str, object]:
        """Return what is measured and summed up: no single measurement depends on it."""
        return self.model_dump(mode="json", include=_SELECTION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One user, to be played under some arms.

    Attributes:
        seed: the draw of users this one belongs to.
        user: stream and held-out questions.
        arms: in this order; what the arms share is computed once.
        config: of the comparison.
        work: a folder for temporary files that hold text, removed with the run's end; None takes the system's.
    """

    seed: int
    user: UserData
    arms: tuple[Arm, ...]
    config: CompareConfig
    work: Path | None = None
