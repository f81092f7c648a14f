"""The report: a summary as one HTML file, and as a table for the terminal.

Everything is made from `Summary`, which holds numbers and short codes only, so no user's text can reach a report, and a
report can be made again from `summary.json` alone. The file needs no network, no script and no other file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from simulation.figures import (
    COLOURED_PARTS,
    Point,
    Series,
    Whisker,
    costs,
    curves,
    shares,
    slopes,
    user_bars,
    whiskers,
)
from simulation.findings import Verdict, describe, findings, notes, signed, verdict
from simulation.records import METRICS
from simulation.summary import REFERENCE, ArmSummary, Difference, Estimate, Summary

__all__ = ["comparison_table", "findings_table", "render_report"]

_MAIN_METRICS: Final = ("rouge1", "nll")
_LOCAL: Final = "local"
_KIB: Final = 1024
_RICH_STYLES: Final = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.OPEN: ""}


def comparison_table(summary: Summary) -> Table:
    """Return the comparison as a table of 80 columns: scores with 95 % intervals, the worst-off tenth, differences."""
    table = _plain_table(
        f"{summary.users} users, {len(summary.seeds)} seeds, 95 % intervals; low 10%: the worst-off tenth's mean"
    )
    table.add_column("arm", no_wrap=True)
    reference = _main_reference(summary)
    for heading in ("ROUGE-1", "low 10%", "NLL", f"ROUGE-1 − {reference}", "harmed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, arm in summary.arms.items():
        difference = arm.differences.get(reference, {}).get("rouge1")
        table.add_row(
            f"{name}*" if arm.budget.outside_budget else name,
            f"{arm.metrics['rouge1'].mean:.3f}",
            f"{arm.metrics['rouge1'].worst10:.3f}",
            f"{arm.metrics['nll'].mean:.3f}",
            _coloured(difference) if difference else "",
            f"{difference.share_harmed:.0%}" if difference else "",
        )
    return table


def findings_table(summary: Summary) -> Table:
    """Return the questions that a comparison answers, each with its paired difference in ROUGE-1."""
    table = _plain_table("Paired differences in ROUGE-1")
    for heading in ("question", "arm − reference"):
        table.add_column(heading)
    table.add_column("difference", justify="right", no_wrap=True)
    for contrast in summary.contrasts:
        table.add_row(
            contrast.question, f"{contrast.arm} − {contrast.reference}", _coloured(contrast.metrics["rouge1"])
        )
    table.caption = " ".join(notes(summary))
    return table


def _main_reference(summary: Summary) -> str:
    """Return what arms are held against: learning alone where arms share, else no learning."""
    return _LOCAL if any(_LOCAL in arm.differences for arm in summary.arms.values()) else REFERENCE


def _plain_table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _coloured(difference: Difference) -> Text:
    # Without an interval the number stands alone: why there is none is said below the table, where there is room.
    text = describe(difference) if difference.ci95 else signed(difference.mean)
    return Text(text, style=_RICH_STYLES[verdict(difference, higher_is_better=True)])


def render_report(summary: Summary) -> str:
    """Return the report as the text of one HTML file."""
    css = files("simulation").joinpath("report.css").read_text(encoding="utf-8")
    sections = (
        _heading(summary),
        _findings(summary),
        _section("Scores by arm", _scores(summary), _SCORES),
        _section("Learning over the stream", _curves(summary), _CURVES),
        _section("Every user", _users(summary), _USERS),
        _section("Device by device", _slopes(summary), _SLOPES),
        _section("Whom it helps, whom it harms", _harmed(summary), _HARMED),
        _section("What crosses the network", _traffic(summary), _TRAFFIC),
        _section("Devices that took no part", _unseen(summary), _UNSEEN),
        _section("By kind of question", _kinds(summary), _KINDS),
        _section("What the buffer kept", _kept(summary), _KEPT),
        _section("What synthesis dropped", _drops(summary), _DROPS),
        _section("What the gate did", _gates(summary), _GATES),
        _section("What it cost", _budgets(summary), _BUDGETS),
        _about(summary),
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>florilegium comparison</title><style>{css}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


_BUDGET_FIELDS: Final = {
    "annotations": "annotations",
    "gate_annotations": "for the gate",
    "training_rows": "training rows",
    "original_rows": "original",
    "synthesized_rows": "synthesized",
    "repeated_rows": "repeated",
    "steps": "steps",
}
_SCORES: Final = (
    "Held-out questions after the last round, with the adapter that the gate left in place. Dot: mean over users. Bar: "
    "95 % interval of the mean. Hollow dot: mean of the worst-off tenth of users. Dashed: the base model. "
    "Star: outside the budget, an upper bound."
)
_CURVES: Final = (
    "ROUGE-1 on the held-out questions after each learning round (mean and 95 % interval), the other arms in grey. "
    "Left: before any learning."
)
_USERS: Final = (
    "ROUGE-1 minus that of the base model, one bar per user, sorted: an average gain can hide users who lose."
)
_SLOPES: Final = (
    "ROUGE-1 of each device when it learns alone (left) and under an arm (right); losses in another colour."
)
_HARMED: Final = (
    "Mean paired differences in ROUGE-1, and the share of devices that are worse off: with the adapters as the plan "
    "means them (before the gate), and with what each device chose on its own hold-out (after). The last columns: how "
    "many devices chose what."
)
_TRAFFIC: Final = (
    "ROUGE-1 (mean and 95 % interval) against what a device sent up in the whole run. Only adapters' tensors and "
    "declared numbers cross the network."
)
_UNSEEN: Final = (
    "Users of the same world whose devices never took part: they receive the shared adapter at the end, train nothing, "
    "and choose on their own hold-out whether to use it."
)
_KINDS: Final = "ROUGE-1 by what the held-out question probes; ± is half the 95 % interval."
_KEPT: Final = (
    "Dialogues in the buffers at the end, by selection policy and by where in the stream they came from. No policy "
    "sees these kinds; the first bar is the stream itself."
)
_DROPS: Final = "Synthesized texts that the checks refused, by reason, over all users."
_GATES: Final = (
    "Candidates over all users and rounds, and the last round's scores of the candidates (before) and of the adapters "
    "in place (after). Forgetting: nats per token that general text became less likely than to the base model."
)
_BUDGETS: Final = (
    "Per user, over all rounds. Arms within the budget must agree in annotations, and trained ones in rows. Seconds "
    "include the measuring. What several arms share is counted for the first of them, but for the base model's answers "
    "and embeddings of the stream: they precede all arms and are counted for none."
)


def _section(title: str, body: str, caption: str) -> str:
    return f'<section><h2>{title}</h2><p class="quiet">{caption}</p>{body}</section>' if body else ""


def _heading(summary: Summary) -> str:
    facts = (
        f"base model {summary.model}",
        f"{summary.users} users from {len(summary.seeds)} seeds",
        f"{len(summary.arms)} arms",
        f"{next(iter(summary.arms.values())).curve[-1].round} learning rounds",
    )
    return f'<h1>Which way to personalize?</h1><p class="quiet">{escape(" · ".join(facts))}</p>'


def _findings(summary: Summary) -> str:
    items = "".join(
        f'<li class="card {finding.verdict}"><b>{escape(finding.question)}</b><p>{escape(finding.answer)}</p></li>'
        for finding in findings(summary)
    )
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes(summary))
    return f'<ul class="findings">{items}</ul><ul class="notes">{remarks}</ul>'


def _scores(summary: Summary) -> str:
    panels = []
    for metric in _MAIN_METRICS:
        title = METRICS[metric].title
        scores = {name: _of_estimate(arm, metric) for name, arm in summary.arms.items()}
        base = scores[REFERENCE].mean if REFERENCE in scores else None
        panels.append(whiskers(_starred(summary, scores), title=f"{title} ({_direction(metric)})", reference=base))
        gains = {
            name: _of_difference(arm, arm.differences[REFERENCE][metric])
            for name, arm in summary.arms.items()
            if REFERENCE in arm.differences
        }
        if gains:
            panels.append(whiskers(_starred(summary, gains), title=f"{title} − base model, paired", reference=0.0))
    return f'<div class="pair">{"".join(f"<div class=card>{panel}</div>" for panel in panels)}</div>'


def _of_estimate(arm: ArmSummary, metric: str) -> Whisker:
    estimate = arm.metrics[metric]
    low, high = _bounds(estimate)
    return Whisker(mean=estimate.mean, low=low, high=high, worst=estimate.worst10, stands_out=arm.budget.outside_budget)


def _of_difference(arm: ArmSummary, difference: Difference) -> Whisker:
    low, high = difference.ci95 or (difference.mean, difference.mean)
    return Whisker(mean=difference.mean, low=low, high=high, stands_out=arm.budget.outside_budget)


def _starred(summary: Summary, rows: Mapping[str, Whisker]) -> dict[str, Whisker]:
    return {f"{name}*" if summary.arms[name].budget.outside_budget else name: row for name, row in rows.items()}


def _direction(metric: str) -> str:
    return "higher is better" if METRICS[metric].higher_is_better else "lower is better"


def _curves(summary: Summary) -> str:
    return (
        f'<div class="card">{_curve_panels(summary, "rouge1")}</div>'
        f"<details><summary>The same by {METRICS['nll'].title}</summary>"
        f'<div class="card">{_curve_panels(summary, "nll")}</div></details>'
    )


def _curve_panels(summary: Summary, metric: str) -> str:
    by_round = _main_reference(summary) == _LOCAL
    series = {name: _series(arm, metric, by_round=by_round) for name, arm in summary.arms.items()}
    title = f"{METRICS[metric].title} over the {'rounds' if by_round else 'stream'}"
    return curves(series, title=title, x_label="rounds" if by_round else "turns")


def _series(arm: ArmSummary, metric: str, *, by_round: bool) -> Series:
    estimates = [point.metrics[metric] for point in arm.curve]
    return Series(
        x=[point.round if by_round else point.seen for point in arm.curve],
        y=[each.mean for each in estimates],
        low=[_bounds(each)[0] for each in estimates],
        high=[_bounds(each)[1] for each in estimates],
    )


def _users(summary: Summary) -> str:
    differences = {
        name: arm.differences[REFERENCE]["rouge1"].per_user
        for name, arm in summary.arms.items()
        if REFERENCE in arm.differences
    }
    if not differences:
        return ""
    return f'<div class="card">{user_bars(differences, title="ROUGE-1 minus the base model, by user")}</div>'


def _slopes(summary: Summary) -> str:
    local = summary.arms.get(_LOCAL)
    if local is None:
        return ""
    pairs = {
        name: (local.by_user["rouge1"], arm.by_user["rouge1"])
        for name, arm in summary.arms.items()
        if _LOCAL in arm.differences and name != REFERENCE
    }
    drawn = slopes(pairs, left=_LOCAL, title="ROUGE-1 of each device, alone and under the arm") if pairs else ""
    return f'<div class="card">{drawn}</div>' if drawn else ""


def _harmed(summary: Summary) -> str:
    arms = {name: arm for name, arm in summary.arms.items() if arm.differences_before_gate}
    ways = sorted({way for arm in arms.values() for way in arm.ways})
    references = [name for name in (REFERENCE, _LOCAL) if any(name in arm.differences for arm in arms.values())]
    if _LOCAL not in references:
        return ""
    headings = ["arm"]
    for reference in references:
        headings += [f"− {reference}", "harmed before gate", "after"]
    rows = [
        [
            _name(name, arm),
            *(cell for reference in references for cell in _against(arm, reference)),
            *(str(arm.ways.get(way, 0)) for way in ways),
        ]
        for name, arm in arms.items()
    ]
    return _table([*headings, *map(escape, ways)], rows)


def _against(arm: ArmSummary, reference: str) -> list[str]:
    if reference not in arm.differences:
        return ["", "", ""]
    before, after = arm.differences_before_gate[reference]["rouge1"], arm.differences[reference]["rouge1"]
    return [describe(after), f"{before.share_harmed:.0%}", f"{after.share_harmed:.0%}"]


def _traffic(summary: Summary) -> str:
    if not any(arm.budget.uplink_bytes for arm in summary.arms.values()):
        return ""
    timed = any(arm.budget.fleet_hours for arm in summary.arms.values())
    points, rows = {}, []
    for name, arm in summary.arms.items():
        estimate, up, down = arm.metrics["rouge1"], *_kib(arm, summary)
        points[name] = Point(up, estimate.mean, *_bounds(estimate))
        spent = (
            [f"{arm.budget.fleet_hours:,.1f}", f"{1000 * arm.budget.energy_wh / summary.users:,.1f}"] if timed else []
        )
        rows.append([_name(name, arm), _cell(estimate), f"{up:,.0f}", f"{down:,.0f}", *spent])
    drawn = costs(points, title="ROUGE-1 against uplink", x_label="KiB sent up by a device")
    headings = ["arm", "ROUGE-1", "KiB up a device", "KiB down a device"]
    table = _table([*headings, "hours of the fleet", "mWh a device"] if timed else headings, rows)
    return f'<div class="card">{drawn}</div>{table}'


def _kib(arm: ArmSummary, summary: Summary) -> tuple[float, float]:
    unit = summary.users * _KIB
    return arm.budget.uplink_bytes / unit, arm.budget.downlink_bytes / unit


def _unseen(summary: Summary) -> str:
    if summary.unseen is None:
        return ""
    rows = [
        [
            _name(name, arm),
            _cell(arm.metrics["rouge1"]),
            _cell(arm.metrics["nll"]),
            *(_against(arm, REFERENCE) if arm.differences_before_gate else ["", "", ""]),
        ]
        for name, arm in summary.unseen.arms.items()
    ]
    headings = ["arm", "ROUGE-1", "NLL per token", f"ROUGE-1 − {REFERENCE}", "harmed before gate", "after"]
    return _table(headings, rows)


def _kinds(summary: Summary) -> str:
    kinds = sorted({kind for arm in summary.arms.values() for kind in arm.by_kind})
    if not kinds:
        return ""
    rows = [
        [_name(name, arm), *(_cell(arm.by_kind[kind]["rouge1"]) if kind in arm.by_kind else "" for kind in kinds)]
        for name, arm in summary.arms.items()
    ]
    return _table(["arm", *map(escape, kinds)], rows)


def _kept(summary: Summary) -> str:
    held = {policy: arm.kept for policy, arm in _by_policy(summary).items() if arm.kept}
    if not held or not summary.stream_kinds:
        return ""
    order = _order(summary.stream_kinds)
    rows = {"the whole stream": summary.stream_kinds, **held}
    folded = {name: _folded(counts, order) for name, counts in rows.items()}
    drawn = shares(folded, order, title="What the buffers held at the end")
    return f'<div class="card">{drawn}</div>{_decisions(summary)}'


def _by_policy(summary: Summary) -> dict[str, ArmSummary]:
    """Return one arm for each selection policy: selection does not depend on what an arm does with the dialogues."""
    return {arm.policy: arm for arm in reversed(summary.arms.values()) if arm.policy}


def _order(kinds: Mapping[str, int]) -> list[str]:
    """Return the kinds to colour, most frequent first; what is beyond the palette is folded into one."""
    names = [name or "unlabelled" for name in kinds]
    return names if len(names) <= COLOURED_PARTS else [*names[: COLOURED_PARTS - 1], "other"]


def _folded(counts: Mapping[str, int], order: Sequence[str]) -> dict[str, int]:
    folded: dict[str, int] = {}
    for kind, count in counts.items():
        name = kind or "unlabelled"
        name = name if name in order else "other"
        folded[name] = folded.get(name, 0) + count
    return folded


def _decisions(summary: Summary) -> str:
    arms = _by_policy(summary)
    reasons = list(dict.fromkeys(reason for arm in arms.values() for reason in arm.decisions))
    rows = [[escape(reason), *(f"{arm.decisions.get(reason, 0):,}" for arm in arms.values())] for reason in reasons]
    table = _table(["part / action / reason", *map(escape, arms)], rows)
    return f"<details><summary>Why: decisions by reason, over all users</summary>{table}</details>"


def _drops(summary: Summary) -> str:
    arms = {name: arm for name, arm in summary.arms.items() if arm.drops or arm.budget.synthesized_rows}
    if not arms:
        return ""
    total = sum((Counter(arm.drops) for arm in arms.values()), Counter[str]())
    rows = [[escape(reason), *(f"{arm.drops.get(reason, 0):,}" for arm in arms.values())] for reason in sorted(total)]
    return _table(["reason", *map(escape, arms)], rows)


def _budgets(summary: Summary) -> str:
    rows = [
        [
            _name(name, arm),
            *(_per_user(getattr(arm.budget, field), summary) for field in _BUDGET_FIELDS),
            f"{arm.seconds.mean:.1f}",
        ]
        for name, arm in summary.arms.items()
    ]
    return _table(["arm", *_BUDGET_FIELDS.values(), "seconds"], rows)


def _gates(summary: Summary) -> str:
    rows = [
        [
            _name(name, arm),
            str(arm.gate.promoted),
            str(arm.gate.rolled_back),
            _cell(arm.before_gate["rouge1"]),
            _cell(arm.metrics["rouge1"]),
            _cell(arm.before_gate["nll"]),
            _cell(arm.metrics["nll"]),
            signed(arm.metrics["forgetting"].mean),
        ]
        for name, arm in summary.arms.items()
        if arm.gate and arm.before_gate
    ]
    headings = ["arm", "promoted", "rolled back", "ROUGE-1 before", "after", "NLL before", "after", "forgetting"]
    return _table(headings, rows) if rows else ""


def _about(summary: Summary) -> str:
    seeds = [
        [_name(name, arm), *(f"{arm.by_seed[str(seed)]['rouge1']:.3f}" for seed in summary.seeds)]
        for name, arm in summary.arms.items()
    ]
    table = _table(["arm", *(f"seed {seed}" for seed in summary.seeds)], seeds)
    config = escape(json.dumps(summary.config, indent=2))
    return (
        f"<section><h2>About this run</h2><details><summary>ROUGE-1 by seed</summary>{table}</details>"
        f"<details><summary>Settings</summary><pre>{config}</pre></details></section>"
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _name(name: str, arm: ArmSummary) -> str:
    mark = '<span class="quiet" title="outside the budget">*</span>' if arm.budget.outside_budget else ""
    return f'<span title="{escape(arm.title)}">{escape(name)}</span>{mark}'


def _cell(estimate: Estimate) -> str:
    return f'{estimate.mean:.3f} <span class="quiet">{_margin(estimate)}</span>'


def _bounds(estimate: Estimate) -> tuple[float, float]:
    return estimate.ci95 or (estimate.mean, estimate.mean)


def _spread(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} {_margin(estimate)}".rstrip()


def _margin(estimate: Estimate) -> str:
    """Return half the interval, or nothing where too few users give none."""
    return f"± {(estimate.ci95[1] - estimate.ci95[0]) / 2:.3f}" if estimate.ci95 else ""


def _per_user(total: int, summary: Summary) -> str:
    return f"{total / summary.users:,.4g}" if total else "0"
