"""Which devices take part in a round: a uniform cohort, without replacement, of those that are online.

    cohort = the n online devices below their cap with the smallest hash(seed, round, node id)

Hashes of different devices are independent and uniform, so every set of n is equally likely. Nothing else is drawn and
nothing remembered: a round can be drawn again after a restart, the order of ids does not matter, and a device that
comes or goes changes at most one place of the cohort.

The cap here is the server's courtesy; the one that a privacy guarantee rests on is kept by each device's own ledger.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from florilegium.errors import ConfigError

__all__ = ["SamplingConfig", "uniform"]

# 100 · 1.1 is a little more than 110 in floating point, and 110 is meant.
_SLACK: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How many devices a round asks.

    Attributes:
        cohort: replies that the round wants.
        over_selection: devices asked for each reply wanted, for those that will drop out; 1.3 asks 13 for 10.
        participation_cap: most rounds in which a device takes part; None for no cap.

    Raises:
        ConfigError: a value is out of its range.
    """

    cohort: int = 10
    over_selection: float = 1.0
    participation_cap: int | None = None

    def __post_init__(self) -> None:
        if self.cohort < 1:
            raise ConfigError(f"cohort must be >= 1, got {self.cohort}", "a round wants at least one reply")
        if not 1 <= self.over_selection < math.inf:
            raise ConfigError(
                f"over_selection must be finite and >= 1, got {self.over_selection}", "1 expects no device to drop out"
            )
        if self.participation_cap is not None and self.participation_cap < 1:
            raise ConfigError(
                f"participation_cap must be >= 1, got {self.participation_cap}", "leave it out for no cap"
            )

    @property
    def asked(self) -> int:
        """Devices that a round asks if so many are there."""
        return math.ceil(self.cohort * self.over_selection - _SLACK)


def uniform(
    online: Iterable[int],
    *,
    config: SamplingConfig,
    seed: int,
    server_round: int,
    participations: Mapping[int, int],
) -> tuple[int, ...]:
    """Draw the devices of a round.

    Args:
        online: node ids of the devices that can be asked now; one that is named twice counts once.
        config: how many, how often.
        seed: the run's.
        server_round: number of the round.
        participations: in how many rounds each device has taken part; 0 for those that are not named.

    Returns:
        Their node ids, rising: `config.asked` of them, or all that are online and below their cap, maybe none.
    """
    willing, cap = set(online), config.participation_cap
    if cap is not None:
        willing = {node_id for node_id in willing if participations.get(node_id, 0) < cap}
    key = hashlib.blake2b(f"{seed}:{server_round}".encode(), digest_size=32, person=b"flori-cohort").digest()
    keyed = hashlib.blake2b(digest_size=16, key=key)
    drawn = heapq.nsmallest(config.asked, ((_hash(keyed, node_id), node_id) for node_id in willing))
    return tuple(sorted(node_id for _, node_id in drawn))


def _hash(keyed: hashlib.blake2b, node_id: int) -> bytes:
    hasher = keyed.copy()
    hasher.update(str(node_id).encode())
    return hasher.digest()
