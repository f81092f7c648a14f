"""Server optimizers by name; a new one is one file here and one line in `SERVER_OPTIMIZERS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from strategies.optimizers.adagrad import Adagrad
from strategies.optimizers.adam import Adam
from strategies.optimizers.average import Average
from strategies.optimizers.momentum import Momentum
from strategies.optimizers.optimizer import Moments, ServerOptimizer, step_part
from strategies.optimizers.yogi import Yogi

__all__ = ["SERVER_OPTIMIZERS", "Moments", "ServerOptimizer", "step_part"]

SERVER_OPTIMIZERS: Final[Mapping[str, type[ServerOptimizer]]] = {
    "average": Average,
    "momentum": Momentum,
    "adagrad": Adagrad,
    "adam": Adam,
    "yogi": Yogi,
}
