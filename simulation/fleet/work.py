"""Work: what a server's request asks of any device, before anybody has done it.

    tokens = steps · rows of a step · tokens of a row,   bytes down = the request's,   bytes up = as the plan declares

Nothing is trained for that: shapes follow from the plan, and steps from the hyperparameters as a device clamps them. A
gradient reads every row once. Two forward passes take the 4 operations a base weight of one forward and one backward
pass: so a zeroth-order step counts as one of training, and judging an improvement, on the hold-out before the work and
after it, as reading that once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from client.bounds import LocalBounds, clamp
from florilegium.tensors import Tensors
from server.transport import Request
from simulation.fleet.tasks import TaskCost
from strategies.codecs import payload_bytes
from strategies.factors import join, layers, truncate
from strategies.gathering import declared_shapes
from strategies.hyperparameters import HYPERPARAMETERS
from strategies.plan import Plan

__all__ = ["LocalWork"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalWork:
    """The cost of requests of one run; call it with one.

    Attributes:
        plan: of the fleet, with a rule.
        adapter: the shared one, of the server's rank; only its shapes count.
        parameters: of the frozen base, without embedding tables that are only looked up.
        row_tokens: mean length of a row.
        rows: mean number of rows that a device learns from.
        holdout_rows: mean number of rows that it judges by.
    """

    plan: Plan
    adapter: Tensors = field(repr=False)
    parameters: int
    row_tokens: float
    rows: float
    holdout_rows: float = 0.0

    def __call__(self, request: Request) -> TaskCost:
        """Return what the request asks."""
        like = join({layer: truncate(pair, request.turn.rank) for layer, pair in layers(self.adapter).items()})
        shapes = declared_shapes(self.plan, request.down, like, request.turn)
        return TaskCost(
            tokens=round(self._rows_read(request) * self.row_tokens),
            parameters=self.parameters,
            adapter_parameters=sum(tensor.numel() for tensor in like.values()),
            bytes_up=payload_bytes(self.plan.codec, shapes),
            bytes_down=_bytes(request.down) + _bytes(request.agreement),
        )

    def _rows_read(self, request: Request) -> float:
        assert self.plan.rule is not None
        work = self.plan.rule.duty(request.turn).work
        if work in ("gradient", "nothing"):
            return self.rows if work == "gradient" else 0.0
        asked = clamp(request.hyperparameters, LocalBounds())
        steps, batch_size = (asked.get(name, HYPERPARAMETERS[name].default) for name in ("steps", "batch_size"))
        judged = self.holdout_rows if request.improvement_unit > 0 else 0.0
        return steps * min(batch_size, self.rows) + judged


def _bytes(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
