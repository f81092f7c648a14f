"""The gate: how much of a trained adapter to use, and whether it may replace the present one.

Both are decided on the device's own held-out dialogues, which no adapter was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from florilegium.errors import ConfigError

__all__ = ["Gate", "Scores"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How a model did on a set of examples.

    Attributes:
        rouge1: mean ROUGE-1 F1.
        rouge_l: mean ROUGE-L F1.
        nll_per_token: nats per supervised token, over all tokens of the set.
    """

    rouge1: float
    rouge_l: float
    nll_per_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Promote a candidate iff it does no worse than the present adapter on the device's own held-out dialogues.

    The likelihood of the preferred answers decides, because it moves smoothly and a handful of dialogues measures it
    well; ROUGE-1 is a coarse guard against a candidate that likes the answers but no longer writes them, so its
    tolerance is wide.

    Attributes:
        nll_tolerance: how much worse the nats per token may be.
        rouge_tolerance: how much lower ROUGE-1 may be.
        strengths: how much of a trained adapter a candidate may use, see `client.strength`; (1.0,) takes every adapter
            as it was trained.

    Raises:
        ConfigError: a tolerance is negative or not finite, or a strength is not in (0, 1], or there is none.
    """

    nll_tolerance: float = 0.0
    rouge_tolerance: float = 0.05
    strengths: tuple[float, ...] = (1.0, 0.5, 0.25)

    def __post_init__(self) -> None:
        for name, value in (("nll_tolerance", self.nll_tolerance), ("rouge_tolerance", self.rouge_tolerance)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} must be finite and >= 0, got {value}", "0 tolerates no loss")
        if not self.strengths or not all(0 < strength <= 1 for strength in self.strengths):
            raise ConfigError(
                f"strengths must be numbers above 0 and at most 1, got {list(self.strengths)}",
                "1 alone takes every adapter as it was trained",
            )

    def choose_strength(self, nll_per_token: Callable[[float], float]) -> float:
        """Return the strength with the least NLL, the largest of equal ones; of one alone nothing is measured.

        Args:
            nll_per_token: measures the held-out dialogues at a strength, nats; what is not finite is the worst.
        """
        if len(self.strengths) == 1:
            return self.strengths[0]
        measured = {strength: nll_per_token(strength) for strength in sorted(self.strengths, reverse=True)}
        return min(measured, key=lambda strength: measured[strength] if math.isfinite(measured[strength]) else math.inf)

    def better_or_equal(self, candidate: Scores, present: Scores) -> bool:
        """Tell whether `candidate` may replace `present`; one whose scores are not finite never may."""
        if not _is_finite(candidate):
            return False
        if not _is_finite(present):
            return True
        no_less_likely = candidate.nll_per_token <= present.nll_per_token + self.nll_tolerance
        return no_less_likely and candidate.rouge1 >= present.rouge1 - self.rouge_tolerance


def _is_finite(scores: Scores) -> bool:
    return all(math.isfinite(value) for value in (scores.rouge1, scores.rouge_l, scores.nll_per_token))
