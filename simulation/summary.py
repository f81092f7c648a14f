"""The summary of a comparison: what `summary.json` holds (documented in `docs/summary-schema.md`), and how it is made.

Every figure is over users: one value per user and seed, after the last round and after the gate. Differences are
paired: the same user, the same stream, the same held-out questions under two arms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from client.dialogue import derive_seed
from simulation.arms import CONTRASTS, Contrast
from simulation.records import METRICS, RoundRecord
from simulation.statistics import Floats, mean_interval, share_harmed, worst_tenth_mean

__all__ = [
    "REFERENCE",
    "SCHEMA_VERSION",
    "ArmSummary",
    "BudgetSummary",
    "ComparedArm",
    "ContrastSummary",
    "CurvePoint",
    "Difference",
    "Estimate",
    "GateSummary",
    "Summary",
    "summarize",
]

SCHEMA_VERSION: Final = 3
REFERENCE: Final = "none"
"""The arm that every other one's differences are taken to, where it was run."""


class ComparedArm(Protocol):
    """What a summary must know of an arm; see `simulation.arms` and `simulation.sharing.arms`."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def title(self) -> str:
        """What it does."""
        ...

    @property
    def policy(self) -> str | None:
        """The selection policy, where arms differ in it."""
        ...

    @property
    def promise(self) -> str | None:
        """What privacy it promises, in a sentence with figures; None where it promises none."""
        ...

    @property
    def learns(self) -> bool:
        """Whether annotations are used."""
        ...

    @property
    def trains(self) -> bool:
        """Whether adapters are trained."""
        ...

    @property
    def within_budget(self) -> bool:
        """Whether it spends what all others spend."""
        ...


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(_Value):
    """A mean over users, and how sure it is.

    Attributes:
        mean: over users.
        std: standard deviation over users (n − 1); 0 for one user.
        worst10: mean over the worst-off tenth of users, at least one.
        ci95: bootstrap interval of the mean; null for fewer than six users.
        n: users, over all seeds.
    """

    mean: float
    std: float
    worst10: float
    ci95: tuple[float, float] | None
    n: int


class Difference(_Value):
    """A paired difference, arm − reference, over users.

    Attributes:
        mean: over users.
        ci95: bootstrap interval of the mean; null for fewer than six users.
        share_harmed: users for whom the arm is worse than the reference.
        n: users, over all seeds.
        per_user: every user's difference, in ascending order.
    """

    mean: float
    ci95: tuple[float, float] | None
    share_harmed: float
    n: int
    per_user: tuple[float, ...]


class CurvePoint(_Value):
    """An arm after one learning round.

    Attributes:
        round: 0 is before the first.
        seen: turns of the stream so far, mean over users.
        annotations: asked for so far, mean over users.
        metrics: metric → estimate.
    """

    round: int
    seen: float
    annotations: float
    metrics: dict[str, Estimate]


class BudgetSummary(_Value):
    """What an arm spent on all users and in all rounds.

    Attributes:
        annotations: asked for to learn from.
        gate_annotations: asked for to judge candidates by.
        training_rows: rows trained on; the sum of the next three.
        original_rows: annotated dialogues.
        synthesized_rows: written by the model.
        repeated_rows: originals once more.
        steps: optimizer steps.
        uplink_bytes: sent by devices to a server.
        downlink_bytes: received by them.
        fleet_hours: of a simulated fleet, mean over seeds.
        energy_wh: drawn by its devices for their tasks.
        outside_budget: the arm is allowed more than the others.
    """

    annotations: int
    gate_annotations: int
    training_rows: int
    original_rows: int
    synthesized_rows: int
    repeated_rows: int
    steps: int
    uplink_bytes: int
    downlink_bytes: int
    fleet_hours: float
    energy_wh: float
    outside_budget: bool


class GateSummary(_Value):
    """How often the gate let a candidate pass.

    Attributes:
        promoted: candidates that replaced the adapter before.
        rolled_back: candidates that did not.
    """

    promoted: int
    rolled_back: int


class ArmSummary(_Value):
    """One arm.

    Attributes:
        title: what it does.
        policy: the selection policy that decides what it learns from; null where none does.
        promise: the privacy that it promises, with its figures; null where it promises none.
        metrics: metric → estimate, after the last round and after the gate.
        before_gate: metric → estimate of the last round's candidate, whether it passed or not; empty without training.
        by_kind: kind of held-out question → metric → estimate.
        by_seed: seed → metric → mean.
        by_user: metric → every user's value, in the order of seeds and users, which is the same for all arms.
        curve: one point per round.
        differences: reference arm → metric → paired difference.
        differences_before_gate: the same of the last round's candidates; empty without training.
        ways: with which of its adapters a device answers at the end → devices; empty where there is no choice.
        budget: what it spent.
        gate: what became of its candidates; null without training.
        kept: kind of turn → dialogues in the buffers at the end.
        decisions: reason → arrivals.
        drops: reason → synthesized texts that were dropped.
        seconds: per user.
    """

    title: str
    policy: str | None
    promise: str | None
    metrics: dict[str, Estimate]
    before_gate: dict[str, Estimate]
    by_kind: dict[str, dict[str, Estimate]]
    by_seed: dict[str, dict[str, float]]
    by_user: dict[str, tuple[float, ...]]
    curve: list[CurvePoint]
    differences: dict[str, dict[str, Difference]]
    differences_before_gate: dict[str, dict[str, Difference]]
    ways: dict[str, int]
    budget: BudgetSummary
    gate: GateSummary | None
    kept: dict[str, int]
    decisions: dict[str, int]
    drops: dict[str, int]
    seconds: Estimate


class ContrastSummary(_Value):
    """A question, and the paired difference that answers it.

    Attributes:
        name: "personalization", "synthesis", ….
        question: in plain words.
        arm: whose gain it is.
        reference: what it is compared with.
        metrics: metric → paired difference.
    """

    name: str
    question: str
    arm: str
    reference: str
    metrics: dict[str, Difference]


class Equality(_Value):
    """Whether all arms within the budget spent the same, user by user.

    Attributes:
        annotations: of the arms that learn.
        training_rows: of the arms that train.
    """

    annotations: bool
    training_rows: bool


class Summary(_Value):
    """A comparison's result.

    Attributes:
        schema_version: raised when a field comes, goes or changes its meaning.
        model: the base model's name.
        config: what was asked for.
        seeds: the draws of users.
        users: users over all seeds.
        stream_kinds: kind of turn → turns in all streams.
        arms: arm → its summary, in the order asked for.
        contrasts: the questions whose two arms were run.
        budgets_equal: whether the comparison was fair.
        unseen: the same of devices that took no part; null where there are none.
    """

    schema_version: Literal[3] = SCHEMA_VERSION
    model: str
    config: dict[str, object]
    seeds: list[int]
    users: int
    stream_kinds: dict[str, int]
    arms: dict[str, ArmSummary]
    contrasts: list[ContrastSummary]
    budgets_equal: Equality
    unseen: Summary | None = None


_Rounds = Sequence[RoundRecord]
"""One record per user of one arm after the same round, in the order of seeds and users."""


def summarize(
    records: Iterable[RoundRecord],
    *,
    arms: Sequence[ComparedArm],
    model: str,
    config: Mapping[str, object],
    stream_kinds: Mapping[str, int],
    draws: int = 4000,
    contrasts: Sequence[Contrast] = CONTRASTS,
    references: Sequence[str] = (REFERENCE,),
    unseen: Summary | None = None,
) -> Summary:
    """Reduce all records of a finished run to its summary.

    Args:
        records: every round of every seed, user and arm.
        arms: in the order to show them.
        model: the base model's name.
        config: what was asked for.
        stream_kinds: kind of turn → turns in all streams.
        draws: bootstrap resamples.
        contrasts: the questions to answer, where both arms were run.
        references: arms that every other one's differences are taken to, where they were run.
        unseen: the summary of devices that took no part.
    """
    tables = _by_arm(records)
    last = {name: rounds[max(rounds)] for name, rounds in tables.items()}
    answered = [
        ContrastSummary(
            name=c.name,
            question=c.question,
            arm=c.arm,
            reference=c.reference,
            metrics=_differences(last[c.arm], last[c.reference], draws),
        )
        for c in contrasts
        if c.arm in last and c.reference in last
    ]
    first = last[arms[0].name]
    return Summary(
        model=model,
        config=dict(config),
        seeds=sorted({record.seed for record in first}),
        users=len(first),
        stream_kinds=dict(stream_kinds),
        arms={arm.name: _arm(arm, tables[arm.name], last, references, draws) for arm in arms},
        contrasts=answered,
        budgets_equal=_equality(arms, tables),
        unseen=unseen,
    )


def _by_arm(records: Iterable[RoundRecord]) -> dict[str, dict[int, list[RoundRecord]]]:
    tables: dict[str, dict[int, list[RoundRecord]]] = {}
    for record in sorted(records, key=lambda record: (*record.key, record.round)):
        tables.setdefault(record.arm, {}).setdefault(record.round, []).append(record)
    return tables


def _arm(
    arm: ComparedArm,
    rounds: Mapping[int, list[RoundRecord]],
    last: Mapping[str, list[RoundRecord]],
    references: Sequence[str],
    draws: int,
) -> ArmSummary:
    every = [record for records in rounds.values() for record in records]
    final = last[arm.name]
    others = {name: last[name] for name in references if name in last and name != arm.name}
    candidates = [record.model_copy(update={"scores": record.candidate}) for record in final if record.candidate]
    return ArmSummary(
        title=arm.title,
        policy=arm.policy if arm.within_budget else None,
        promise=arm.promise,
        metrics=_estimates([record.scores for record in final], draws),
        before_gate=_estimates([record.candidate for record in final if record.candidate], draws),
        by_kind={
            kind: _estimates([record.by_kind[kind] for record in final if kind in record.by_kind], draws)
            for kind in sorted({kind for record in final for kind in record.by_kind})
        },
        by_seed=_by_seed(final),
        by_user={name: tuple(_values([record.scores for record in final], name).tolist()) for name in METRICS},
        curve=[_point(number, records, draws) for number, records in sorted(rounds.items())],
        differences={name: _differences(final, other, draws) for name, other in others.items()},
        differences_before_gate={name: _differences(candidates, other, draws) for name, other in others.items()}
        if len(candidates) == len(final)
        else {},
        ways=dict(Counter(record.way for record in final if record.way)),
        budget=_budget(arm, rounds),
        gate=_gate(every) if arm.trains else None,
        kept=_total(record.kept for record in final),
        decisions=_total(record.decisions for record in final),
        drops=_total(record.drops for record in final),
        seconds=_estimate(_per_user(every, lambda record: record.seconds), draws, higher_is_better=False),
    )


def _values(scores: Sequence[Mapping[str, float]], metric: str) -> Floats:
    return np.array([each[metric] for each in scores])


def _estimate(values: Floats, draws: int, *, higher_is_better: bool) -> Estimate:
    return Estimate(
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        worst10=worst_tenth_mean(values, higher_is_better=higher_is_better),
        ci95=_ci95(values, draws),
        n=len(values),
    )


def _ci95(values: Floats, draws: int) -> tuple[float, float] | None:
    interval = mean_interval(values, seed=derive_seed("bootstrap"), draws=draws)
    return (interval.low, interval.high) if interval else None


def _estimates(scores: Sequence[Mapping[str, float]], draws: int) -> dict[str, Estimate]:
    shared = [name for name in METRICS if scores and all(name in each for each in scores)]
    return {
        name: _estimate(_values(scores, name), draws, higher_is_better=METRICS[name].higher_is_better)
        for name in shared
    }


def _differences(arm: _Rounds, reference: _Rounds, draws: int) -> dict[str, Difference]:
    assert [(r.seed, r.user) for r in arm] == [(r.seed, r.user) for r in reference], "differences are paired by user"
    result = {}
    for name, metric in METRICS.items():
        values = _values([r.scores for r in arm], name) - _values([r.scores for r in reference], name)
        result[name] = Difference(
            mean=float(values.mean()),
            ci95=_ci95(values, draws),
            share_harmed=share_harmed(values, higher_is_better=metric.higher_is_better),
            n=len(values),
            per_user=tuple(np.sort(values).tolist()),
        )
    return result


def _by_seed(records: _Rounds) -> dict[str, dict[str, float]]:
    return {
        str(seed): {
            name: float(_values([record.scores for record in records if record.seed == seed], name).mean())
            for name in METRICS
        }
        for seed in sorted({record.seed for record in records})
    }


def _point(number: int, records: _Rounds, draws: int) -> CurvePoint:
    return CurvePoint(
        round=number,
        seen=float(np.mean([record.seen for record in records])),
        annotations=float(np.mean([record.annotations for record in records])),
        metrics=_estimates([record.scores for record in records], draws),
    )


def _budget(arm: ComparedArm, rounds: Mapping[int, list[RoundRecord]]) -> BudgetSummary:
    every = [record for records in rounds.values() for record in records]
    final = rounds[max(rounds)]
    return BudgetSummary(
        annotations=sum(record.annotations for record in final),
        gate_annotations=sum(record.gate_annotations for record in final),
        training_rows=sum(record.rows for record in every),
        original_rows=sum(record.original_rows for record in every),
        synthesized_rows=sum(record.synthesized_rows for record in every),
        repeated_rows=sum(record.repeated_rows for record in every),
        steps=sum(record.steps for record in every),
        uplink_bytes=sum(record.uplink_bytes for record in final),
        downlink_bytes=sum(record.downlink_bytes for record in final),
        fleet_hours=float(np.mean([record.fleet_hours for record in final])),
        energy_wh=sum(record.energy_wh for record in final),
        outside_budget=arm.learns and not arm.within_budget,
    )


def _gate(records: _Rounds) -> GateSummary:
    verdicts = Counter(record.promoted for record in records)
    return GateSummary(promoted=verdicts[True], rolled_back=verdicts[False])


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _per_user(records: _Rounds, value: Callable[[RoundRecord], float]) -> Floats:
    totals: dict[tuple[int, str], float] = {}
    for record in records:
        totals[record.seed, record.user] = totals.get((record.seed, record.user), 0.0) + value(record)
    return np.array(list(totals.values()))


def _equality(arms: Sequence[ComparedArm], tables: Mapping[str, Mapping[int, list[RoundRecord]]]) -> Equality:
    def alike(wanted: Iterable[ComparedArm], spent: Callable[[RoundRecord], float]) -> bool:
        spendings = [[[spent(r) for r in rounds[number]] for number in sorted(rounds)] for rounds in map(of, wanted)]
        return all(spending == spendings[0] for spending in spendings)

    def of(arm: ComparedArm) -> Mapping[int, list[RoundRecord]]:
        return tables[arm.name]

    return Equality(
        annotations=alike((arm for arm in arms if arm.within_budget), lambda record: record.annotations),
        training_rows=alike((arm for arm in arms if arm.within_budget and arm.trains), lambda record: record.rows),
    )
