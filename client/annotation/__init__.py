"""Annotation: who is asked what, and how rarely.

A policy is one file with one function (see `AskPolicy`) and one line in the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from client.annotation.annotators import Annotator, Oracle, QueueAnnotator
from client.annotation.answers import (
    LONGEST_IDEAL_BYTES,
    annotated_examples,
    judge,
    read_edit,
    read_regenerate,
    training_example,
)
from client.annotation.asking import AskReport, AskRules, ask_round
from client.annotation.daily import DAILY
from client.annotation.every import ALL
from client.annotation.informative import INFORMATIVE
from client.annotation.policy import AskPolicy, Candidate

__all__ = [
    "ANNOTATION_POLICIES",
    "LONGEST_IDEAL_BYTES",
    "Annotator",
    "AskPolicy",
    "AskReport",
    "AskRules",
    "Candidate",
    "Oracle",
    "QueueAnnotator",
    "annotated_examples",
    "ask_round",
    "judge",
    "read_edit",
    "read_regenerate",
    "training_example",
]

ANNOTATION_POLICIES: Final[Mapping[str, AskPolicy]] = {"all": ALL, "daily": DAILY, "informative": INFORMATIVE}
