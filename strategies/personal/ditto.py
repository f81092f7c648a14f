"""Ditto: a personal adapter of its own, held near the shared one (Li et al., arXiv 2012.04221).

    min over v of  F(v) + λ/2 ‖v − w‖²

λ = 0 is local training, a large λ the shared adapter itself.
"""

from __future__ import annotations

from typing import Final

from strategies.personal.way import Personal

__all__ = ["DITTO"]

DITTO: Final = Personal(name="ditto", anchor=0.01)
