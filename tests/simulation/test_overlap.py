from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.rouge import rouge1
from simulation.overlap import LIMIT, KnownTexts, overlap_f1

texts = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=14).map(" ".join)


@given(texts, texts)
def test_overlap_is_rouge_1(left: str, right: str) -> None:
    assert overlap_f1(left, right) == pytest.approx(rouge1(left, right))


@given(st.lists(texts | st.text(max_size=5), max_size=12), texts | st.text(max_size=5))
def test_the_index_finds_what_comparing_with_each_finds(known: list[str], text: str) -> None:
    assert KnownTexts(known).give_away(text) == any(overlap_f1(text, each) > LIMIT for each in known)


@given(known=st.lists(texts, min_size=1, max_size=12), more=st.lists(st.sampled_from("abxy"), max_size=4))
def test_near_copies_of_long_texts_are_found(known: list[str], more: list[str]) -> None:
    text = " ".join([known[0], *more])
    assert KnownTexts(known).give_away(text) == any(overlap_f1(text, each) > LIMIT for each in known)


@pytest.mark.parametrize(
    ("text", "given_away"),
    [
        ("when does MY train leave", True), ("When does his bus leave?", False),
        ("🙂", True), ("🙁", False), ("我明天几点上班", True),
    ],
)  # fmt: skip
def test_examples(text: str, given_away: bool) -> None:
    # Of the eight characters of the Chinese question and the seven of the text, seven are shared: 14 / 15.
    known = KnownTexts(["When does my train leave?", "🙂", "我明天几点就上班？"])
    assert known.give_away(text) is given_away
