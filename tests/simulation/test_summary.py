"""The summary: its schema, its arithmetic against plain loops, its honesty about budgets."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

import simulation.summary as schema
from simulation.records import METRICS, RoundRecord
from simulation.summary import Summary, summarize

MakeRecords = Callable[..., list[RoundRecord]]
MakeSummary = Callable[..., Summary]
ARMS = ("none", "local-random", "local-improved", "full-stream")


def test_a_summary_survives_json(make_summary: MakeSummary) -> None:
    summary = make_summary()
    assert Summary.model_validate_json(summary.model_dump_json()) == summary
    assert summary.schema_version == schema.SCHEMA_VERSION


def test_another_schema_is_refused(make_summary: MakeSummary) -> None:
    values = json.loads(make_summary().model_dump_json())
    for spoiled in (values | {"schema_version": 1}, values | {"extra": 1}):
        with pytest.raises(ValueError, match="validation error"):
            Summary.model_validate(spoiled)


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "summary-schema.md").read_text(encoding="utf-8")
    for name in schema.__all__:
        model = getattr(schema, name)
        if isinstance(model, type) and issubclass(model, BaseModel):
            for field in model.model_fields:
                assert f"`{field}`" in text, f"{name}.{field}"


def test_estimates_agree_with_plain_arithmetic(make_records: MakeRecords, make_summary: MakeSummary) -> None:
    last = [record for record in make_records(ARMS) if record.round == 2 and record.arm == "local-improved"]
    values = [record.scores["nll"] for record in last]
    estimate = make_summary(ARMS).arms["local-improved"].metrics["nll"]
    assert estimate.n == 12
    assert estimate.mean == pytest.approx(statistics.fmean(values))
    assert estimate.std == pytest.approx(statistics.stdev(values))
    assert estimate.worst10 == pytest.approx(statistics.fmean(sorted(values)[-2:]))  # lower is better; 12 / 10 → 2
    assert estimate.ci95 is not None
    assert estimate.ci95[0] < estimate.mean < estimate.ci95[1]


def test_differences_are_paired_by_seed_and_user(make_records: MakeRecords, make_summary: MakeSummary) -> None:
    scores = {(r.arm, r.seed, r.user): r.scores["rouge1"] for r in make_records(ARMS) if r.round == 2}
    expected = sorted(
        value - scores["none", seed, user] for (arm, seed, user), value in scores.items() if arm == "local-random"
    )
    difference = make_summary(ARMS).arms["local-random"].differences["none"]["rouge1"]
    assert difference.per_user == pytest.approx(expected)
    assert difference.mean == pytest.approx(statistics.fmean(expected))
    assert difference.share_harmed == pytest.approx(sum(value < 0 for value in expected) / 12)


def test_the_order_of_records_is_of_no_account(make_records: MakeRecords) -> None:
    def reduce(records: list[RoundRecord]) -> Summary:
        from simulation.arms import find_arms

        return summarize(records, arms=find_arms(ARMS), model="m", config={}, stream_kinds={}, draws=100)

    records = make_records(ARMS)
    assert reduce(records) == reduce(records[::-1])


def test_contrasts_are_those_whose_arms_were_run(make_summary: MakeSummary) -> None:
    assert [c.name for c in make_summary(ARMS).contrasts] == ["personalization", "selection-random", "headroom"]
    assert make_summary(("local-random", "local-fifo")).contrasts == []


def test_without_the_reference_there_are_no_differences(make_summary: MakeSummary) -> None:
    assert make_summary(("local-random", "local-fifo")).arms["local-random"].differences == {}


def test_the_curve_begins_before_the_first_round(make_summary: MakeSummary) -> None:
    curve = make_summary(ARMS).arms["local-improved"].curve
    assert [(point.round, point.seen, point.annotations) for point in curve] == [(0, 0, 0), (1, 40, 12), (2, 80, 24)]
    assert curve[0].metrics["rouge1"].mean == pytest.approx(0.3)
    assert set(curve[0].metrics) == set(METRICS)


def test_budgets_add_up(make_summary: MakeSummary) -> None:
    budget = make_summary(ARMS).arms["local-improved"].budget
    # 12 users; rows of rounds 1 and 2: 12 · 3 and 24 · 3.
    assert (budget.annotations, budget.training_rows) == (12 * 24, 12 * (36 + 72))
    assert budget.original_rows + budget.synthesized_rows + budget.repeated_rows == budget.training_rows


@pytest.mark.parametrize(
    ("changed", "annotations", "rows"),
    [
        ({"annotations": 23}, False, True),
        ({"repeated_rows": 0}, True, False),
    ],
)
def test_one_user_with_another_budget_is_noticed(
    make_records: MakeRecords, changed: dict[str, int], annotations: bool, rows: bool
) -> None:
    from simulation.arms import find_arms

    def reduce(records: list[RoundRecord]) -> tuple[bool, bool]:
        summary = summarize(records, arms=find_arms(ARMS), model="m", config={}, stream_kinds={}, draws=100)
        return summary.budgets_equal.annotations, summary.budgets_equal.training_rows

    records = make_records(ARMS)
    assert reduce(records) == (True, True)
    spoiled = next(i for i, r in enumerate(records) if (r.seed, r.user, r.arm, r.round) == (1, "u2", "local-random", 2))
    records[spoiled] = records[spoiled].model_copy(update=changed)
    assert reduce(records) == (annotations, rows)


def test_the_upper_bound_may_spend_more(make_records: MakeRecords) -> None:
    from simulation.arms import find_arms

    records = [
        record.model_copy(update={"annotations": 99, "repeated_rows": 500}) if record.arm == "full-stream" else record
        for record in make_records(ARMS)
    ]
    summary = summarize(records, arms=find_arms(ARMS), model="m", config={}, stream_kinds={}, draws=100)
    assert summary.budgets_equal.annotations
    assert summary.budgets_equal.training_rows
    assert summary.arms["full-stream"].budget.outside_budget


def test_five_users_give_means_and_no_intervals(make_summary: MakeSummary) -> None:
    for users in (5, 6):
        metrics = make_summary(ARMS, seeds=1, users=users).contrasts[0].metrics["rouge1"]
        assert (metrics.ci95 is None) == (users == 5)


def test_one_user_gives_means_and_no_intervals(make_summary: MakeSummary) -> None:
    summary = make_summary(ARMS, seeds=1, users=1)
    estimate = summary.arms["local-improved"].metrics["rouge1"]
    assert (estimate.ci95, estimate.std, estimate.n) == (None, 0.0, 1)
    assert summary.contrasts[0].metrics["rouge1"].ci95 is None
