"""Ways of choosing what devices train with, by name; a new one is one file here and one line in `TUNERS`.

`halving` is not among them: it chooses between runs, and a tuner within one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from server.hyperparameters.fedex_hpo import FedExHPO
from server.hyperparameters.fixed import Fixed
from server.hyperparameters.schedule import Schedule
from server.hyperparameters.tuner import Tuner

__all__ = ["TUNERS", "Tuner"]

TUNERS: Final[Mapping[str, type[Tuner]]] = {
    "fixed": Fixed,
    "schedule": Schedule,
    "fedex_hpo": FedExHPO,
}
