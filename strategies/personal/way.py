"""Personal: what a device does for itself alone, on top of whatever it shares.

The personal adapter never leaves its device. A way of being personal is a value: how much of a round's local steps it
takes, where it starts from, what it stays near to, and whether the shared adapter is active beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from florilegium.errors import ConfigError

__all__ = ["Personal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Personal:
    """How the personal adapter is trained, after the shared one in the same round.

    Attributes:
        name: on the command line and in files.
        share: of a round's local steps, in (0, 1]; the rest trains the shared adapter.
        beside_shared: whether the shared adapter is active, frozen, in training and in use; else the personal one
            stands alone.
        start: "present" goes on from the last round's, "shared" from a copy of the shared adapter.
        anchor: weight of a pull towards the shared adapter.

    Raises:
        ConfigError: a value is out of its range.
    """

    name: str
    share: float = 0.5
    beside_shared: bool = False
    start: Literal["present", "shared"] = "present"
    anchor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"the personal share must be in (0, 1], got {self.share}", "0.5 is a good start")
        if not 0 <= self.anchor < math.inf:
            raise ConfigError(f"the anchor must be finite and >= 0, got {self.anchor}", "0 is no anchor")

    @property
    def needs_one_rank(self) -> bool:
        """Whether the personal adapter must have the shared one's shape."""
        return self.start == "shared" or self.anchor > 0
