"""Which devices take part in a round: a uniform cohort, without replacement, of those that are online.

    cohort = the n online devices below their cap with the smallest hash(seed, round, node id)

The hash scatters all ids at once: two rounds of SplitMix64's mixing (Steele, Lea, Flood, OOPSLA 2014), each with a key.
Every set of n is as likely as another, and as it is a bijection no two devices tie. Nothing else is drawn and nothing
remembered: a round can be drawn again after a restart, the order of ids does not matter, and a device that
comes or goes changes at most one place of the cohort.

The cap here is the server's courtesy; the one that a privacy guarantee rests on is kept by each device's own ledger.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from florilegium.errors import ConfigError

__all__ = ["SamplingConfig", "uniform"]

_Ids: TypeAlias = NDArray[np.uint64]

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
    willing, cap = np.unique(np.fromiter(online, dtype=np.uint64)), config.participation_cap
    if cap is not None:
        spent = [node_id for node_id, count in participations.items() if count >= cap]
        willing = np.setdiff1d(willing, np.array(spent, dtype=np.uint64), assume_unique=True)
    if len(willing) > config.asked:
        hashes = _hashes(willing, f"{seed}:{server_round}")
        willing = np.sort(willing[np.argpartition(hashes, config.asked)[: config.asked]])
    return tuple(willing.tolist())


def _hashes(ids: _Ids, key: str) -> _Ids:
    digest = hashlib.blake2b(key.encode(), digest_size=16, person=b"flori-cohort").digest()
    for part in np.frombuffer(digest, dtype="<u8"):
        ids = _mix(ids ^ part)
    return ids


def _mix(values: _Ids) -> _Ids:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
