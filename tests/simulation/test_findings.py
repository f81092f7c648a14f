"""Findings say what the intervals say, and no more."""

from collections.abc import Callable

import pytest

from simulation.findings import Verdict, describe, findings, notes, signed, verdict
from simulation.sharing.arms import SharingArm
from simulation.summary import Difference, Summary
from strategies.settings import PlanSettings, PrivacySettings

MakeSummary = Callable[..., Summary]


def _difference(mean: float, ci95: tuple[float, float] | None) -> Difference:
    return Difference(mean=mean, ci95=ci95, share_harmed=0.25, n=8, per_user=(mean,) * 8)


@pytest.mark.parametrize(
    ("mean", "ci95", "higher_is_better", "expected"),
    [
        (0.1, (0.05, 0.15), True, Verdict.BETTER),
        (0.1, (0.05, 0.15), False, Verdict.WORSE),
        (-0.1, (-0.15, -0.05), False, Verdict.BETTER),
        (-0.1, (-0.15, -0.05), True, Verdict.WORSE),
        (0.1, (-0.01, 0.2), True, Verdict.OPEN),
        (0.1, (0.0, 0.2), True, Verdict.OPEN),
        (0.1, None, True, Verdict.OPEN),
    ],
)
def test_a_verdict_is_read_off_the_interval(
    mean: float, ci95: tuple[float, float] | None, higher_is_better: bool, expected: Verdict
) -> None:
    assert verdict(_difference(mean, ci95), higher_is_better=higher_is_better) is expected


def test_numbers_carry_their_sign() -> None:
    assert (signed(0.1234), signed(-0.1234), signed(0.5, 1)) == ("+0.123", "−0.123", "+0.5")
    assert describe(_difference(-0.1, (-0.2, 0.05))) == "−0.100 [−0.200, +0.050]"
    assert describe(_difference(0.1, None)) == "+0.100 (too few users for an interval)"


def _with_interval(summary: Summary, ci95: tuple[float, float] | None) -> Summary:
    contrast = summary.contrasts[0]
    changed = contrast.metrics["rouge1"].model_copy(update={"ci95": ci95, "mean": 0.05})
    return summary.model_copy(
        update={"contrasts": [contrast.model_copy(update={"metrics": {**contrast.metrics, "rouge1": changed}})]}
    )


@pytest.mark.parametrize(
    ("ci95", "opening"),
    [
        ((0.01, 0.09), "Yes."),
        ((-0.09, -0.01), "No, the opposite."),
        ((-0.01, 0.09), "This run does not show it: the interval includes 0."),
        (None, "Too few users for an interval."),
    ],
)
def test_an_answer_begins_with_what_the_interval_says(
    make_summary: MakeSummary, ci95: tuple[float, float] | None, opening: str
) -> None:
    (finding,) = findings(_with_interval(make_summary(), ci95))
    assert finding.answer.startswith(opening)


def test_an_answer_counts_the_users_worse_off(make_summary: MakeSummary) -> None:
    summary = make_summary(("none", "local-improved"))
    harmed = summary.contrasts[0].metrics["rouge1"].model_copy(update={"share_harmed": 3 / 12})
    contrast = summary.contrasts[0].model_copy(update={"metrics": {**summary.contrasts[0].metrics, "rouge1": harmed}})
    (finding,) = findings(summary.model_copy(update={"contrasts": [contrast]}))
    assert finding.answer.endswith("; 3 of 12 users worse off.")


def test_notes_say_that_budgets_were_equal(make_summary: MakeSummary) -> None:
    text = " ".join(notes(make_summary()))
    assert "the same 24 annotations a user" in text
    assert "the same 108 training rows a user" in text  # 36 + 72
    assert "Outside that budget: full-stream." in text
    assert "aution" not in text


def test_notes_warn_where_budgets_were_not_equal(make_summary: MakeSummary) -> None:
    summary = make_summary()
    unequal = summary.budgets_equal.model_copy(update={"annotations": False, "training_rows": False})
    text = " ".join(notes(summary.model_copy(update={"budgets_equal": unequal})))
    assert "Caution: the arms did not use the same number of annotations" in text
    assert "caution: the arms did not train on the same number of rows" in text


def test_notes_count_what_the_gate_turned_back(make_summary: MakeSummary) -> None:
    summary = make_summary()
    gates = [arm.gate for arm in summary.arms.values() if arm.gate]
    turned, tried = sum(g.rolled_back for g in gates), sum(g.rolled_back + g.promoted for g in gates)
    assert tried == 3 * 12 * 2  # three training arms, twelve users, two rounds
    assert f"turned back {turned} of {tried} candidate" in " ".join(notes(summary))


def test_notes_say_that_five_users_are_too_few(make_summary: MakeSummary) -> None:
    assert "6 users from 2 seeds, one quantity" in " ".join(notes(make_summary(seeds=2, users=3)))
    assert "5 users from 1 seeds are too few for intervals" in " ".join(notes(make_summary(seeds=1, users=5)))


def test_notes_of_a_run_without_learning_say_little(make_summary: MakeSummary) -> None:
    (only,) = notes(make_summary(("none",)))
    assert "12 users from 3 seeds" in only


def test_what_privacy_comes_to_is_noted(make_summary: MakeSummary) -> None:
    summary = make_summary()
    plan = PlanSettings(privacy=PrivacySettings(clip_norm=0.1, noise_multiplier=1.0, delta=1e-3, max_rounds=5))
    said = SharingArm(name="private", title="private", plan=plan).promise
    assert said is not None
    assert "(8.79, 0.001)-private" in said
    name, arm = next(iter(summary.arms.items()))
    private = summary.model_copy(update={"arms": summary.arms | {name: arm.model_copy(update={"promise": said})}})
    assert f"Privacy of {name}: {said}" in notes(private)
    assert "Privacy" not in " ".join(notes(summary))
