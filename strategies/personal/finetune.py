"""Finetune: a copy of the shared adapter, tuned on the device: the strong baseline (Motley, arXiv 2206.09262)."""

from __future__ import annotations

from typing import Final

from strategies.personal.way import Personal

__all__ = ["FINETUNE"]

FINETUNE: Final = Personal(name="finetune", start="shared")
