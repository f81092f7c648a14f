"""Means, spreads and intervals over users.

The unit is one user of one seed. Users of different seeds are different draws from the same source, so they are pooled
and resampled as one sample: with three seeds, resampling whole seeds would have three units and an interval that is far
too short. What differs between seeds is still part of the spread, and the summary lists every seed's own mean.

    interval = quantiles a and 1 − a of the bootstrap means,  a = Φ(−√(n/(n−1)) · t(n−1; 0.975))

is the percentile bootstrap with its two known shortages made good (Hesterberg 2015, arXiv 1411.5279, "expanded
percentile"): resampled means spread by √((n−1)/n) too little, and the spread itself is only estimated, hence Student's
t. Intervals are per quantity; nothing is corrected for how many of them a reader looks at.

No mean of resampled values lies outside the sample, and n values lie all above or all below their distribution's
median with probability 2^(1−n): where that is more than an interval may miss, as with 5 users at 95 %, there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = ["Floats", "Interval", "mean_interval", "share_harmed", "worst_tenth_mean"]

Floats = npt.NDArray[np.float64]
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Interval:
    """A range that covers the unknown value with the stated probability."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def mean_interval(values: Floats, *, seed: int, level: float = 0.95, draws: int = 4000) -> Interval | None:
    """Return the bootstrap interval of a mean.

    Args:
        values: one finite number per user, `(users,)`.
        seed: of the resampling; samples of one size share their resamples under one seed.
        level: the probability to cover.
        draws: the number of resamples.

    Returns:
        The interval, or None for users too few to give one: at 95 %, fewer than six.
    """
    count = len(values)
    if 2.0 ** (1 - count) > 1 - level:
        return None
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    means = weights @ values / count
    tail = stats.norm.cdf(-math.sqrt(count / (count - 1)) * stats.t.ppf((1 + level) / 2, count - 1))
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(float(low), float(high))


def worst_tenth_mean(values: Floats, *, higher_is_better: bool) -> float:
    """Return the mean over the worst-off tenth of users, rounded up to whole users."""
    count = math.ceil(len(values) / 10)
    ordered = np.sort(values if higher_is_better else -values)
    worst = float(ordered[:count].mean())
    return worst if higher_is_better else -worst


def share_harmed(differences: Floats, *, higher_is_better: bool) -> float:
    """Return the share of users whose difference to the reference is for the worse by more than rounding."""
    gains = differences if higher_is_better else -differences
    return float(np.mean(gains < -_ROUNDING))
