"""What a device may say beside its tensors, and within which bounds; nothing else leaves it."""

from __future__ import annotations

from typing import Final, Literal

from privacy.egress import Bounds
from strategies.hyperparameters import IMPROVEMENT, IMPROVEMENT_BOUNDS

__all__ = ["ROWS", "ROWS_BOUNDS", "declared_metrics"]

ROWS: Final = "rows"
ROWS_BOUNDS: Final = Bounds(lower=0.0, upper=2.0**16, step=1.0)


def declared_metrics(weighting: Literal["uniform", "rows"], *, improvement: bool) -> dict[str, Bounds]:
    """Return the bounds of each metric that a reply may hold, by name; both sides compute it for themselves.

    Args:
        weighting: of the plan; by rows, a device says how many it has.
        improvement: whether one was asked for.
    """
    rows = {ROWS: ROWS_BOUNDS} if weighting == "rows" else {}
    return rows | ({IMPROVEMENT: IMPROVEMENT_BOUNDS} if improvement else {})
