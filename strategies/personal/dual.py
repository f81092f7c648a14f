"""Dual: a shared and a personal adapter, both active (FedDPA, arXiv 2403.19211; FedALT, arXiv 2503.11880).

    y = W x + s (B_s A_s + B_p A_p) x

The shared adapter is trained without the personal one, so that nothing of it can reach the server; then the personal
one is trained beside the frozen shared one, and learns what that lacks: beside the shared one as it was received, since
what the device itself has just trained is gone once it is averaged. Ours: the two add up with weight 1 each, where
FedDPA weighs them by the input and FedALT by a learned gate.
"""

from __future__ import annotations

from typing import Final

from strategies.personal.way import Personal

__all__ = ["DUAL"]

DUAL: Final = Personal(name="dual", beside_shared=True)
