"""Robust rules by name; a new one is one file here and one line in `ROBUST_RULES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from strategies.robust.median import Median
from strategies.robust.multi_krum import MultiKrum
from strategies.robust.norm_bound import NormBound
from strategies.robust.rule import RobustRule
from strategies.robust.trimmed_mean import TrimmedMean

__all__ = ["ROBUST_RULES", "RobustRule"]

ROBUST_RULES: Final[Mapping[str, type[RobustRule]]] = {
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "multi_krum": MultiKrum,
    "norm_bound": NormBound,
}
