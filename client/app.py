"""The device's Flower app: the only door to a server, and a thin one.

A message names the plan, the exchange and the tensors that travel down; the reply is one record of tensors and one of
numbers. Whatever goes wrong on the device becomes a fixed code: the text of an exception would reach the server.

Which device this is, the node says and never the server, in its configuration or in the environment: `device`, the
directory of a user's device (FLORILEGIUM_DEVICE), or `fleet`, a recorded fleet's folder (FLORILEGIUM_FLEET), with
Flower's own `partition-id`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from pydantic import Field

from client.adapters import AdapterConfig
from client.bounds import clamp
from client.finetuning import FineTuneConfig
from client.member import DeviceMember, Member
from client.participant import Assignment
from client.recorded import open_fleet
from florilegium.errors import ConfigError, InputError
from florilegium.settings import Settings
from florilegium.tensors import Tensors
from florilegium.wire import from_record, to_record
from privacy.egress import ErrorCode, code_of
from strategies.plan import Plan
from strategies.rule import Turn
from strategies.settings import PlanSettings

app = ClientApp()

DEVICE_VARIABLE: Final = "FLORILEGIUM_DEVICE"
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
        with _member(context) as member:
            reply = _reply({}, {"rank": float(member.shape.rank)})
    except Exception as error:
        reply = _reply({}, {"error": float(code_of(error))})
    return Message(content=reply, reply_to=message)


def _answer(content: RecordDict, context: Context) -> RecordDict:
    with _member(context) as member:
        told = _read(content)
        told.check_shape(member.shape)
        plan = told.make_plan()
        asked = clamp({"steps": _STEPS, "proximal": plan.proximal} | _numbers(content), member.bounds)
        count = asked.get("synthesis_count")
        examples = member.examples(told.round, synthesis_count=None if count is None else int(count))
        if not examples:
            return _reply({}, {"error": float(ErrorCode.NO_DATA)})
        task = _assignment(content, told, replace(plan, proximal=asked["proximal"]), asked, member.finetuning)
        holdout = member.holdout(told.round) if told.improvement_unit > 0 else []
        participant = member.participant(dropout=asked.get("dropout"), privacy=task.plan.privacy)
        answer = participant.answer(task, examples, holdout)
        member.choose(participant, task)
    return _reply(*answer)


def _assignment(
    content: RecordDict, told: _Told, plan: Plan, asked: Mapping[str, float], own: FineTuneConfig
) -> Assignment:
    config = replace(
        own,
        learning_rate=asked.get("learning_rate", own.learning_rate),
        batch_size=int(asked.get("batch_size", own.batch_size)),
    )
    return Assignment(
        plan=plan,
        turn=told.turn(),
        down=_tensors(content, "down"),
        agreement=_tensors(content, "agreement"),
        steps=int(asked["steps"]),
        finetuning=config,
        run=told.run,
        improvement_unit=told.improvement_unit,
    )


@contextmanager
def _member(context: Context) -> Iterator[Member]:
    """Have this node's device in the block; what the node's configuration says comes before the environment."""
    own = context.node_config
    named = own if own.get("device") or own.get("fleet") else _environment()
    number = own.get("partition-id")
    if named.get("device"):
        with DeviceMember(Path(str(named["device"]))) as member:
            yield member
    elif named.get("fleet") and number is not None:
        yield open_fleet(Path(str(named["fleet"]))).member(int(str(number)))
    else:
        raise ConfigError(
            "this node names no device", f"give it device, or {DEVICE_VARIABLE}, or fleet and partition-id"
        )


def _environment() -> dict[str, str]:
    variables = {"device": DEVICE_VARIABLE, "fleet": FLEET_VARIABLE}
    return {name: os.environ.get(variable, "") for name, variable in variables.items()}


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

    def make_plan(self) -> Plan:
        """Return the fleet's plan.

        Raises:
            ConfigError: it cannot be made, shares nothing, or asks less often in this round.
        """
        plan = PlanSettings.from_json(self.plan).plan(seed=self.seed, cohort=self.cohort)
        exchanges = 0 if plan.rule is None else plan.rule.exchanges(self.round)
        if self.exchange >= exchanges:
            raise ConfigError(
                f"exchange {self.exchange} was asked for, and the plan has {exchanges} in this round, from 0",
                "use a server of this version",
            )
        return plan

    def check_shape(self, shape: AdapterConfig) -> None:
        """Refuse a fleet whose adapters are none that this device has, or mean something else.

        Raises:
            ConfigError: the rank differs, or α / rank does.
        """
        if self.rank != shape.rank:
            raise ConfigError(
                f"an adapter of rank {self.rank} was asked for, this device's has {shape.rank}", "query its rank"
            )
        own = shape.alpha / shape.rank
        if not math.isclose(self.scale, own):
            raise ConfigError(f"the fleet's alpha / rank is {self.scale}, this device's {own}", "give them the same")


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
    return {} if record is None else from_record(record)


def _reply(tensors: Tensors, metrics: dict[str, float]) -> RecordDict:
    return RecordDict({"update": to_record(tensors), "metrics": MetricRecord(dict(metrics))})
