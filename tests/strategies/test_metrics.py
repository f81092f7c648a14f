"""What a device may say."""

from __future__ import annotations

from typing import Literal

import pytest

from strategies.hyperparameters import IMPROVEMENT, IMPROVEMENT_BOUNDS
from strategies.metrics import ROWS, ROWS_BOUNDS, declared_metrics


@pytest.mark.parametrize("weighting", ["uniform", "rows"])
@pytest.mark.parametrize("improvement", [True, False])
def test_only_what_is_needed_may_be_said(weighting: Literal["uniform", "rows"], improvement: bool) -> None:
    declared = declared_metrics(weighting, improvement=improvement)
    assert declared.get(ROWS) == (ROWS_BOUNDS if weighting == "rows" else None)
    assert declared.get(IMPROVEMENT) == (IMPROVEMENT_BOUNDS if improvement else None)
    assert declared.keys() <= {ROWS, IMPROVEMENT}


def test_rows_are_whole_and_nobody_claims_more_than_65536() -> None:
    assert [ROWS_BOUNDS.quantize(rows) for rows in (-3.0, 0.4, 7.0, 65535.6, 1e30)] == [0.0, 0.0, 7.0, 65536.0, 65536.0]
