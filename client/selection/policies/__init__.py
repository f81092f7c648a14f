"""Selection policies by name; a new one is one file here and one line in `POLICIES`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Final

from client.selection.policies.dss import dss_only
from client.selection.policies.eoe import eoe_only
from client.selection.policies.fifo import Fifo
from client.selection.policies.idd import idd_only
from client.selection.policies.improved import Improved
from client.selection.policies.k_center import KCenter
from client.selection.policies.paper import Paper
from client.selection.policies.reservoir import Reservoir
from client.selection.policy import Policy
from florilegium.errors import ConfigError

__all__ = ["POLICIES", "make_policy"]

POLICIES: Final[Mapping[str, Callable[[], Policy]]] = {
    "improved": Improved,
    "paper": Paper,
    "random": Reservoir,
    "fifo": Fifo,
    "k-center": KCenter,
    "eoe": eoe_only,
    "dss": dss_only,
    "idd": idd_only,
}


def make_policy(name: str) -> Policy:
    """Return the policy of that name with its default settings.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in POLICIES:
        nearest = difflib.get_close_matches(name, POLICIES, n=1, cutoff=0.0)[0]
        raise ConfigError(f"no selection policy {name!r}", f"did you mean {nearest!r}? known: {', '.join(POLICIES)}")
    return POLICIES[name]()
