"""Local: nothing is shared; every step trains the personal adapter. The baseline that coordination has to beat."""

from __future__ import annotations

from typing import Final

from strategies.personal.way import Personal

__all__ = ["LOCAL"]

LOCAL: Final = Personal(name="local", share=1.0)
