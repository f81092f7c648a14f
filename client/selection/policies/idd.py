"""Ablation: the printed rule on in-domain dissimilarity alone (arXiv 2311.12275, the "IDD" column)."""

from __future__ import annotations

from functools import partial
from typing import Final

from client.selection.policies.paper import Paper

__all__ = ["idd_only"]

idd_only: Final = partial(Paper, metrics=("idd",))
