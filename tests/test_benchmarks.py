"""The pages that benchmarks write; what they measure is never timed here."""

from __future__ import annotations

from benchmarks.__main__ import HEAD, sections
from benchmarks.report import machine, markdown, spread


def test_a_table_aligns_numbers_to_the_right() -> None:
    assert markdown(["side", "s"], [["ours", "1"]]) == "| side | s |\n| --- | ---: |\n| ours | 1 |"


def test_several_values_show_how_far_they_spread() -> None:
    assert spread([1.0]) == "1.00"
    assert spread([3.0, 1.0, 2.5], 1) == "2.5 (1.0–3.0)"


def test_the_machine_is_one_line_without_a_path() -> None:
    line = machine()
    assert "\n" not in line
    assert "/" not in line
    assert "torch" in line


def test_sections_of_a_page_are_found_again() -> None:
    page = HEAD + "\n## one\n\ntext\n" + "\n## two\n\n| a |\n"
    assert sections(page) == {"one": "\ntext\n", "two": "\n| a |\n"}
