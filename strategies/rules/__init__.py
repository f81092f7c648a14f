"""The rules of sharing: one file each, and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from strategies.rule import Rule
from strategies.rules.fedex import FedEx
from strategies.rules.fedit import FedIT
from strategies.rules.fedsa import FedSA
from strategies.rules.fedsb import FedSB
from strategies.rules.ffa import FFA
from strategies.rules.flexlora import FlexLoRA
from strategies.rules.flora import FLoRA
from strategies.rules.hetlora import HetLoRA
from strategies.rules.kseed import FedKSeed
from strategies.rules.rolora import RoLoRA
from strategies.rules.sketch import Sketch
from strategies.rules.trust import Trust

__all__ = ["RULES"]

RULES: Final[Mapping[str, type[Rule]]] = {
    rule.name: rule
    for rule in (FedIT, FFA, RoLoRA, FedSA, FedSB, FedKSeed, Sketch, FedEx, FLoRA, FlexLoRA, HetLoRA, Trust)
}
