"""The report is one file with every arm in it and nothing from outside; the table has the same numbers."""

import html.parser
import io
import re
from collections.abc import Callable

from rich.console import Console

from simulation.findings import describe
from simulation.report import comparison_table, findings_table, render_report
from simulation.summary import Summary

MakeSummary = Callable[..., Summary]
VOID = {"meta", "br", "line", "circle", "rect", "polyline", "polygon"}


class _Balance(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def _text(table_width: int, summary: Summary) -> str:
    console = Console(width=table_width, record=True, file=io.StringIO())
    console.print(comparison_table(summary))
    return console.export_text()


def test_every_arm_has_its_place_in_every_part(make_summary: MakeSummary) -> None:
    summary = make_summary()
    page = render_report(summary)
    for name in summary.arms:
        # scores, curves and per-user differences, kinds, gate, budgets
        assert len(re.findall(rf">{name}\*?<", page)) >= (8 if name != "none" else 5), name


def test_tags_are_balanced(make_summary: MakeSummary) -> None:
    parser = _Balance()
    parser.feed(render_report(make_summary()))
    assert parser.open == []


def test_the_page_needs_nothing_else(make_summary: MakeSummary) -> None:
    page = render_report(make_summary())
    assert not re.search(r"https?:|//|<script|<link|<img|@import|url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_names_are_escaped(make_summary: MakeSummary) -> None:
    summary = make_summary().model_copy(
        update={"model": "<b>", "config": {"a": "<i>"}, "stream_kinds": {"<u>": 3, "private": 1}}
    )
    page = render_report(summary)
    assert not re.search("<b>[^A-Z]|<i>|<u>", page.replace("<b>Do", ""))
    assert "&lt;u&gt;" in page


def test_the_findings_come_first(make_summary: MakeSummary) -> None:
    summary = make_summary()
    page = render_report(summary)
    assert page.index(summary.contrasts[0].question) < page.index("Scores by arm")


def test_a_report_of_one_arm_and_one_user_can_be_made(make_summary: MakeSummary) -> None:
    for arms in (("none",), ("local-random",), ("retrieval", "none")):
        page = render_report(make_summary(arms, seeds=1, users=1))
        assert all(f">{name}<" in page for name in arms)


def test_more_kinds_than_colours_are_folded(make_summary: MakeSummary) -> None:
    kinds = {f"kind{index}": 100 - index for index in range(12)}
    page = render_report(make_summary().model_copy(update={"stream_kinds": kinds}))
    assert ">kind6<" in page
    assert ">kind7<" not in page
    assert ">other<" in page


def test_what_was_kept_is_shown_once_for_each_policy(make_summary: MakeSummary) -> None:
    page = render_report(make_summary())  # two policies, however many arms use them
    (figure,) = re.findall(r'aria-label="What the buffers held.*?</svg>', page, re.DOTALL)
    assert re.findall(r">(the whole stream|local-\w+|improved|random)<", figure) == [
        "the whole stream",
        "improved",
        "random",
    ]
    assert page.count("train/keep/free-bin") == 1


def test_the_table_shows_the_summary_s_numbers(make_summary: MakeSummary) -> None:
    summary = make_summary()
    text = _text(80, summary)
    arm = summary.arms["local-improved"]
    line = next(line for line in text.splitlines() if line.startswith("local-improved "))
    difference = arm.differences["none"]["rouge1"]
    shown = [f"{arm.metrics['rouge1'].mean:.3f}", f"{arm.metrics['rouge1'].worst10:.3f}"]
    assert line.split()[1:3] == shown
    assert f" {difference.mean:+.3f} [".replace("-", "−") in line
    assert "full-stream*" in text
    assert "…" not in text, "nothing is cut at 80 columns"


def test_the_findings_are_the_contrasts(make_summary: MakeSummary) -> None:
    summary = make_summary()
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(findings_table(summary))
    text = console.export_text()
    for contrast in summary.contrasts:
        assert describe(contrast.metrics["rouge1"]) in text
    assert "Outside that budget: full-stream" in " ".join(text.split())


def test_without_intervals_none_is_shown(make_summary: MakeSummary) -> None:
    summary = make_summary(("none", "local-random"), seeds=1, users=5)
    text = _text(80, summary)
    assert "…" not in text
    assert "[" not in text
    assert "too few for intervals" in render_report(summary)
    assert not re.search(r"± ?\d", text + render_report(summary))
