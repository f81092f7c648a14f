"""The device's Flower app: the only door to a server, and a thin one.

A message names the plan, the exchange and the tensors that travel down; the reply is one record of tensors and one of
numbers. Whatever goes wrong on the device becomes a fixed code: the text of an exception would reach the server.

Which device this is, the node says and never the server: `fleet`, a recorded fleet's folder, in the node's
configuration or in the environment variable FLORILEGIUM_FLEET, with Flower's own `partition-id`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from pydantic import Field

from client.bounds import clamp
from client.participant import Assignment
from client.recorded import RecordedFleet, open_fleet
from florilegium.errors import ConfigError, InputError
from florilegium.settings import Settings
from florilegium.tensors import Tensors
from privacy.egress import ErrorCode, code_of
from strategies.rule import Turn
from strategies.settings import PlanSettings

app = ClientApp()

FLEET_VARIABLE: Final = "FLORILEGIUM_FLEET"
_STEPS: Final = 8  # local steps of a round, where the server does not say


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one exchange of a round."""
    try:
        reply = _answer(message.content, context)
    except Exception as error:  # its text must stay here
        reply = _reply({}, {"error": float(code_of(error))})
    return Message(content=reply, reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say what a server must know before it asks: the rank of this device's adapters."""
    try:
        fleet, device = _device(context)
        reply = _reply({}, {"rank": float(fleet.rank(device))})
    except Exception as error:
        reply = _reply({}, {"error": float(code_of(error))})
    return Message(content=reply, reply_to=message)


def _answer(content: RecordDict, context: Context) -> RecordDict:
    fleet, device = _device(context)
    told = _read(content)
    asked = clamp(_numbers(content), fleet.settings.bounds)
    count = asked.get("synthesis_count")
    examples = fleet.examples(device, told.round, synthesis_count=None if count is None else int(count))
    if not examples:
        return _reply({}, {"error": float(ErrorCode.NO_DATA)})
    plan = PlanSettings.from_json(told.plan).plan(seed=told.seed, cohort=told.cohort)
    own = fleet.settings.finetuning
    config = replace(
        own,
        learning_rate=asked.get("learning_rate", own.learning_rate),
        batch_size=int(asked.get("batch_size", own.batch_size)),
    )
    task = Assignment(
        plan=replace(plan, proximal=asked.get("proximal", plan.proximal)),
        turn=told.turn(),
        down=_tensors(content, "down"),
        agreement=_tensors(content, "agreement"),
        steps=int(asked.get("steps", _STEPS)),
        finetuning=config,
        run=told.run,
        improvement_unit=told.improvement_unit,
    )
    holdout = fleet.holdout(device, told.round) if told.improvement_unit > 0 else []
    participant = fleet.participant(device, dropout=asked.get("dropout"), privacy=plan.privacy)
    return _reply(*participant.answer(task, examples, holdout))


def _device(context: Context) -> tuple[RecordedFleet, int]:
    folder = context.node_config.get("fleet") or os.environ.get(FLEET_VARIABLE)
    number = context.node_config.get("partition-id")
    if not folder or number is None:
        raise ConfigError("this node names no device", f"give it fleet, or {FLEET_VARIABLE}, and partition-id")
    return open_fleet(Path(str(folder))), int(str(number))


class _Told(Settings):
    """What a server says beside tensors and hyperparameters."""

    round: int = Field(ge=1)
    exchange: int = Field(ge=0)
    rank: int = Field(ge=1)
    scale: float = Field(gt=0, allow_inf_nan=False)
    seed: int
    run: int
    cohort: int = Field(ge=1)
    plan: str
    improvement_unit: float = Field(0.0, ge=0, allow_inf_nan=False)

    def turn(self) -> Turn:
        """Return where the fleet is."""
        return Turn(round=self.round, exchange=self.exchange, rank=self.rank, scale=self.scale, seed=self.seed)


def _read(content: RecordDict) -> _Told:
    record = content.config_records.get("turn")
    if record is None:
        raise InputError("the message has no turn", "use a server of this version")
    return _Told.parse(dict(record), source="message")


def _numbers(content: RecordDict) -> dict[str, float]:
    record = content.metric_records.get("hyperparameters") or MetricRecord()
    return cast(dict[str, float], dict(record))  # lists are among what a server may send, and `clamp` refuses them


def _tensors(content: RecordDict, name: str) -> Tensors:
    record = content.array_records.get(name)
    return {} if record is None else dict(record.to_torch_state_dict())


def _reply(tensors: Tensors, metrics: dict[str, float]) -> RecordDict:
    return RecordDict({"update": ArrayRecord(dict(tensors)), "metrics": MetricRecord(dict(metrics))})
