"""Synthesis: more training rows from each annotated one, written by the model itself and checked.

A synthesizer is one file with one function (see `Synthesizer`) and one line in the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from client.synthesis.check import Reason, Rules
from client.synthesis.none import synthesize_none
from client.synthesis.pairs import synthesize_pairs
from client.synthesis.questions import synthesize_questions
from client.synthesis.sampling import DEFAULT_TEMPERATURE, Synthesis, Synthesizer

__all__ = ["DEFAULT_TEMPERATURE", "SYNTHESIZERS", "Reason", "Rules", "Synthesis", "Synthesizer"]

SYNTHESIZERS: Final[Mapping[str, Synthesizer]] = {
    "none": synthesize_none,
    "questions": synthesize_questions,
    "pairs": synthesize_pairs,
}
