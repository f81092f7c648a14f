"""Ablation: the printed rule on domain specific score alone (arXiv 2311.12275, the "DSS" column)."""

from __future__ import annotations

from functools import partial
from typing import Final

from client.selection.policies.paper import Paper

__all__ = ["dss_only"]

dss_only: Final = partial(Paper, metrics=("dss",))
