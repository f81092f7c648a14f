"""None: no synthesis, the control that no printed curve shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from client.dialogue import Example
from client.model import BaseModel
from client.synthesis.check import DEFAULT_RULES, Rules
from client.synthesis.sampling import DEFAULT_TEMPERATURE, Synthesis

__all__ = ["synthesize_none"]


def synthesize_none(
    model: BaseModel,
    examples: Sequence[Example],
    *,
    count: int = 3,
    seed: int,
    temperature: float = DEFAULT_TEMPERATURE,
    rules: Rules = DEFAULT_RULES,
) -> list[Synthesis]:
    """Return no children; see `Synthesizer`."""
    return [Synthesis(children=(), drops=Counter()) for _ in examples]
