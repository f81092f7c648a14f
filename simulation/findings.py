"""What a comparison shows, in plain words made from its numbers alone.

An interval that includes 0 is said to include 0: the run then shows no difference, which is not the same as none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from simulation.records import METRICS
from simulation.summary import REFERENCE, ContrastSummary, Difference, Summary

__all__ = ["Finding", "Verdict", "describe", "findings", "notes", "signed", "verdict"]

_DIGITS: Final = 3
_ENOUGH_USERS: Final = 8  # below, a 95 % interval covers less than 90 % where users differ in a skewed way


class Verdict(StrEnum):
    """What an interval says of a difference."""

    BETTER = "better"
    WORSE = "worse"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A question with its answer.

    Attributes:
        question: in plain words.
        verdict: what the main metric's interval says.
        answer: sentences with the numbers.
    """

    question: str
    verdict: Verdict
    answer: str


def signed(value: float, digits: int = _DIGITS) -> str:
    """Write a difference with its sign, and a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def verdict(difference: Difference, *, higher_is_better: bool) -> Verdict:
    """Read a difference by its interval; without one nothing can be said."""
    if difference.ci95 is None or difference.ci95[0] <= 0 <= difference.ci95[1]:
        return Verdict.OPEN
    return Verdict.BETTER if (difference.ci95[0] > 0) == higher_is_better else Verdict.WORSE


def describe(difference: Difference) -> str:
    """Write a difference with its interval."""
    if difference.ci95 is None:
        return f"{signed(difference.mean)} (too few users for an interval)"
    low, high = difference.ci95
    return f"{signed(difference.mean)} [{signed(low)}, {signed(high)}]"


def findings(summary: Summary) -> list[Finding]:
    """Answer every question whose two arms were run."""
    return [_finding(contrast) for contrast in summary.contrasts]


def _finding(contrast: ContrastSummary) -> Finding:
    main = contrast.metrics["rouge1"]
    said = verdict(main, higher_is_better=True)
    opening = {
        Verdict.BETTER: "Yes.",
        Verdict.WORSE: "No, the opposite.",
        Verdict.OPEN: "This run does not show it: the interval includes 0."
        if main.ci95
        else "Too few users for an interval.",
    }[said]
    harmed = round(main.share_harmed * main.n)
    return Finding(
        question=contrast.question,
        verdict=said,
        answer=(
            f"{opening} {contrast.arm} against {contrast.reference}: ROUGE-1 {describe(main)}, "
            f"NLL per token {describe(contrast.metrics['nll'])}{_disagreement(contrast, said)}; "
            f"{harmed} of {main.n} users worse off."
        ),
    )


def _disagreement(contrast: ContrastSummary, said: Verdict) -> str:
    by_nll = verdict(contrast.metrics["nll"], higher_is_better=METRICS["nll"].higher_is_better)
    if by_nll is said:
        return ""
    reading = {Verdict.BETTER: "better", Verdict.WORSE: "worse", Verdict.OPEN: "undecided"}[by_nll]
    return f" (by likelihood: {reading})"


def notes(summary: Summary) -> list[str]:
    """Say what a reader should know before trusting the findings: fairness, the gate, forgetting, privacy, how many."""
    said = (_fairness(summary), _gate(summary), _forgetting(summary), *_promises(summary), _sample(summary))
    return [note for note in said if note]


def _fairness(summary: Summary) -> str:
    inside = [arm.budget for arm in summary.arms.values() if not arm.budget.outside_budget]
    trained = [budget for budget in inside if budget.training_rows]
    learning = [budget for budget in inside if budget.annotations]
    if not learning:
        return ""
    equal = summary.budgets_equal
    annotations = learning[0].annotations / summary.users
    said = (
        f"Every arm that learns was given the same {annotations:.0f} annotations a user"
        if equal.annotations
        else "Caution: the arms did not use the same number of annotations"
    )
    if not trained:
        return f"{said}."
    rows = trained[0].training_rows / summary.users
    rest = (
        f"every arm that trains saw the same {rows:.0f} training rows a user"
        if equal.training_rows
        else "caution: the arms did not train on the same number of rows"
    )
    outside = [name for name, arm in summary.arms.items() if arm.budget.outside_budget]
    bound = f" Outside that budget: {', '.join(outside)}." if outside else ""
    return f"{said}; {rest}.{bound}"


def _gate(summary: Summary) -> str:
    gates = [arm.gate for arm in summary.arms.values() if arm.gate]
    tried = sum(gate.promoted + gate.rolled_back for gate in gates)
    if not tried:
        return ""
    turned = sum(gate.rolled_back for gate in gates)
    return f"The gate turned back {turned} of {tried} candidate adapters."


def _forgetting(summary: Summary) -> str:
    worst = max(
        ((arm.metrics["forgetting"].mean, name) for name, arm in summary.arms.items() if name != REFERENCE),
        default=None,
    )
    if worst is None:
        return ""
    return f"General text became at most {signed(worst[0])} nats per token less likely ({worst[1]})."


def _promises(summary: Summary) -> list[str]:
    return [f"Privacy of {name}: {arm.promise}" for name, arm in summary.arms.items() if arm.promise]


def _sample(summary: Summary) -> str:
    users = f"{summary.users} users from {len(summary.seeds)} seeds"
    if next(iter(summary.arms.values())).metrics["rouge1"].ci95 is None:
        return f"{users} are too few for intervals; differences are paired by user."
    said = (
        f"Intervals are 95 % bootstrap intervals over {users}, one quantity at a time; differences are paired by user."
    )
    return said if summary.users >= _ENOUGH_USERS else f"{said} With so few users they are rough."
