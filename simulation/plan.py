"""What is compared: the settings of a comparison, and one user's part of the work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from client.gate import Gate
from simulation.arms import DEFAULT_ARMS, Arm, find_arms
from simulation.settings import ComparisonSettings
from simulation.users import UserData

__all__ = ["CompareConfig", "Task"]


class CompareConfig(ComparisonSettings):
    """What is compared, and what every arm may spend; see `ComparisonSettings` for the rest.

    All training arms get `synthesis_count` rows more for each annotated dialogue, repeated originals where nothing is
    synthesized.

    Attributes:
        arms: names of arms; see `simulation.arms`.
        rounds: learning rounds, evenly spread over the stream.
        annotations_per_round: answers asked for in a round to learn from. The rounds' sum is at most `bins`: then every
            policy always holds enough dialogues that were not asked about, and all arms spend the same.
        learning_rate: of the adapter.
        strengths: how much of a trained adapter the gate may choose to use; see `client.strength`.
        epochs: passes over a round's rows.
    """

    arms: tuple[str, ...] = DEFAULT_ARMS
    rounds: int = Field(2, ge=1)
    annotations_per_round: int = Field(12, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    strengths: tuple[float, ...] = Gate().strengths
    epochs: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _is_fair(self) -> Self:
        find_arms(self.arms)
        Gate(strengths=self.strengths)
        if self.rounds * self.annotations_per_round > self.bins:
            needed = f"{self.rounds} rounds of {self.annotations_per_round} annotations"
            raise ValueError(
                f"{needed} need as many bins, there are {self.bins}: policies that keep what they have could not "
                "spend what the others spend; raise bins, or lower rounds or annotations_per_round"
            )
        return self


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
