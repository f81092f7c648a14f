"""The settings that all comparisons have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from pydantic import Field, field_validator

from client.annotation import ANNOTATION_POLICIES
from florilegium.settings import Settings, one_of

if TYPE_CHECKING:
    from client.adapters import AdapterConfig

__all__ = ["ComparisonSettings"]

_SELECTION: Final = {"model", "arms", "bootstrap_draws"}
_NOT_OF_A_MEASUREMENT: Final = {"workers", *_SELECTION}


class ComparisonSettings(Settings):
    """What is compared, and what a device may keep, ask and train.

    Attributes:
        model: "seedling", a Hub name or a local path.
        arms: names of what is compared.
        bins: dialogues that a buffer holds.
        annotation: which of the buffered dialogues are asked about; see `client.annotation`.
        holdout_share: share of arrivals that the gate keeps for itself.
        holdout_bins: at most this many of them.
        synthesis_count: questions to synthesize for each annotated dialogue.
        shots: examples that retrieval puts before a question.
        batch_size: rows of one step.
        rank: of the adapters; their scale is 2.
        top_layers: adapt only the highest layers of the model; None adapts all.
        max_new_tokens: longest answer.
        bootstrap_draws: resamples of the intervals.
        seed: everything random but the users derives from it.
        workers: processes; None is one per core. No result depends on it.
        of_fleets: whether a seed's users form a fleet, so that each one's results depend on all; no setting.
    """

    of_fleets: ClassVar[bool] = False
    model: str = "seedling"
    arms: tuple[str, ...]
    bins: int = Field(24, ge=1)
    annotation: Annotated[str, one_of(ANNOTATION_POLICIES)] = "informative"
    holdout_share: float = Field(0.1, ge=0.0, le=0.5)
    holdout_bins: int = Field(16, ge=1)
    synthesis_count: int = Field(2, ge=0, le=16)
    shots: int = Field(3, ge=1, le=16)
    batch_size: int = Field(8, ge=1)
    rank: int = Field(8, ge=1)
    top_layers: int | None = Field(2, ge=1)
    max_new_tokens: int = Field(32, ge=1)
    bootstrap_draws: int = Field(4000, ge=100)
    seed: int = 0
    workers: int | None = Field(None, ge=1)

    @field_validator("arms")
    @classmethod
    def _has_arms(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if not arms:
            raise ValueError("arms is empty; name at least one")
        return arms

    @property
    def adapter(self) -> AdapterConfig:
        """The shape of the adapters."""
        from client.adapters import AdapterConfig

        return AdapterConfig(rank=self.rank, alpha=2.0 * self.rank, top_layers=self.top_layers)

    def identity(self) -> dict[str, object]:
        """Return what a measurement depends on, as plain JSON values; the model counts by its weights."""
        return self.model_dump(mode="json", exclude=_NOT_OF_A_MEASUREMENT)

    def selection(self) -> dict[str, object]:
        """Return what is measured and summed up: no single measurement depends on it."""
        return self.model_dump(mode="json", include=_SELECTION)
