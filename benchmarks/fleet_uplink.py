"""Bytes that a device sends in a round, by plan and codec, computed from the shapes that each plan declares.

The adapter has its default shape, on the built-in model and on one of the shape of Qwen2.5-0.5B. Counted are the values
of all exchanges of a round, the mean of the second and the third, since some rules take turns; the first, in which some
send something else, stands beside it. What a transport adds is left out. Servers and devices refuse a payload that is
not as declared, so this is what is sent.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from benchmarks.models import HALF_BILLION, half_billion
from benchmarks.report import markdown
from client.adapters import AdapterConfig, fresh_adapter
from client.loading import SEEDLING
from florilegium.errors import ConfigError
from florilegium.tensors import Tensors
from strategies.codecs import CODECS, Shapes, payload_bytes
from strategies.gathering import Shared, prepare
from strategies.personal import PERSONAL_WAYS
from strategies.plan import Plan
from strategies.rule import Linear
from strategies.rules import RULES
from strategies.settings import PlanSettings

__all__ = ["Uplink", "declared", "measure", "sent_bytes", "table"]

SHAPE: Final = AdapterConfig()
ROUNDS: Final = 3
YARDSTICK: Final = "fedit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink:
    """What one plan sends.

    Attributes:
        model: the base.
        plan: its name.
        sent: by codec, bytes of the first rounds; a codec that the plan refuses is not among them.
    """

    model: str
    plan: str
    sent: Mapping[str, Sequence[int]]


def measure() -> list[Uplink]:
    """Return what every rule, and every personal way beside one of them, sends."""
    settings = [PlanSettings(rule=rule) for rule in RULES]
    settings += [PlanSettings(rule="none" if way == "local" else YARDSTICK, personal=way) for way in PERSONAL_WAYS]
    return [
        Uplink(model=model, plan=_plan(each).name, sent=sent_bytes(each, adapter))
        for model, adapter in _adapters().items()
        for each in settings
    ]


def sent_bytes(settings: PlanSettings, adapter: Tensors) -> dict[str, list[int]]:
    """Return the bytes of the first rounds by codec, of a fleet with this fresh adapter."""
    rounds = declared(_plan(settings), adapter)
    found = {}
    for name in CODECS:
        try:
            codec = _plan(settings, name).codec
        except ConfigError:
            continue
        found[name] = [sum(payload_bytes(codec, shapes) for shapes in exchanges) for exchanges in rounds]
    return found


def declared(plan: Plan, adapter: Tensors) -> list[list[Shapes]]:
    """Return the shapes of what leaves a device in each exchange of the first rounds, before it is encoded."""
    if plan.rule is None:
        return [[] for _ in range(ROUNDS)]
    turn = plan.turn(0, 0, rank=SHAPE.rank, scale=SHAPE.alpha / SHAPE.rank)
    state, rounds = plan.rule.start(adapter, turn), []
    for number in range(1, ROUNDS + 1):
        exchanges: list[Shapes] = []
        for at in range(plan.rule.exchanges(number)):
            turn = plan.turn(number, at, rank=SHAPE.rank, scale=SHAPE.alpha / SHAPE.rank)
            shapes = prepare(plan, Shared(state=state), turn, adapter).shapes
            exchanges.append(shapes)
            if isinstance(plan.rule, Linear):  # the others send the same whatever the state
                state = plan.rule.advance(state, {key: torch.zeros(shape) for key, shape in shapes.items()}, turn)
        rounds.append(exchanges)
    return rounds


def _plan(settings: PlanSettings, codec: str = "identity") -> Plan:
    return settings.model_copy(update={"codec": codec}).plan(seed=0, cohort=1)


def _adapters() -> dict[str, Tensors]:
    with tempfile.TemporaryDirectory() as folder:
        with torch.device("meta"):
            half_billion("float32").config.save_pretrained(folder)
        return {SEEDLING: fresh_adapter(SEEDLING, SHAPE, 0), HALF_BILLION: fresh_adapter(folder, SHAPE, 0)}


def table(found: Sequence[Uplink]) -> str:
    """Return KiB by plan and codec, a table for each model."""
    parts = []
    for model in dict.fromkeys(each.model for each in found):
        rows = [each for each in found if each.model == model]
        yardstick = next(each for each in rows if each.plan == YARDSTICK)
        header = ["", *(f"{codec}, KiB" for codec in CODECS), f"identity / {YARDSTICK}", "first round, identity, KiB"]
        parts.append(f"{model}, rank {SHAPE.rank}\n\n" + markdown(header, [_row(each, yardstick) for each in rows]))
    return "\n\n".join(parts)


def _row(each: Uplink, yardstick: Uplink) -> list[str]:
    cells = [f"{_usual(each, codec) / 1024:,.1f}" if codec in each.sent else "–" for codec in CODECS]
    share = _usual(each, "identity") / _usual(yardstick, "identity")
    return [each.plan, *cells, f"{share:.4f}", f"{each.sent['identity'][0] / 1024:,.1f}"]


def _usual(each: Uplink, codec: str) -> float:
    return statistics.mean(each.sent[codec][1:])
