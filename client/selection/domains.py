"""Give a dialogue its domain.

    Dom = argmax_i |T ∩ l_i|                      dominant domain (arXiv 2311.12275)

Text without a single lexicon word (another language, chit-chat, emoji) is of the domain "unknown", one of its own, and
is compared with its like there; it never falls into the first domain. One domain rather than embedding clusters, since
within it the vectors already tell sets apart (IDD, nearest neighbours), while clusters would hand chit-chat, most of
which meets no lexicon, as many domains as there are clusters to fill a buffer with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["UNKNOWN", "dominant_domain"]

UNKNOWN: Final = "unknown"


def dominant_domain(domains: Sequence[str], coverage: Sequence[int]) -> str:
    """Return the domain with the most words, the first of them in `domains` on a tie, or "unknown" if none has any."""
    best = max(range(len(domains)), key=lambda index: coverage[index], default=None)
    return UNKNOWN if best is None or not coverage[best] else domains[best]
