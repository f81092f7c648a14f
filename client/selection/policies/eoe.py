"""Ablation: the printed rule on entropy of embedding alone (arXiv 2311.12275, the "EOE" column)."""

from __future__ import annotations

from functools import partial
from typing import Final

from client.selection.policies.paper import Paper

__all__ = ["eoe_only"]

eoe_only: Final = partial(Paper, metrics=("eoe",))
