from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from client.rouge import Tokenizer, rouge, rouge1, rouge_l

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "mat", "dog"]), max_size=12)


def naive(candidate: list[str], reference: list[str]) -> tuple[float, float]:
    """Count shared words one by one; find the longest common subsequence by trying every subsequence."""
    left = list(reference)
    shared = 0
    for word in candidate:
        if word in left:
            left.remove(word)
            shared += 1
    best = 0
    short, long = sorted((candidate, reference), key=len)
    for mask in range(2 ** len(short)):
        chosen = [word for at, word in enumerate(short) if mask >> at & 1]
        rest = iter(long)
        if all(word in rest for word in chosen):
            best = max(best, len(chosen))
    return f1(shared, candidate, reference), f1(best, candidate, reference)


def f1(shared: int, candidate: list[str], reference: list[str]) -> float:
    return 2 * shared / (len(candidate) + len(reference)) if shared else 0.0


@given(WORDS.filter(lambda words: len(words) < 9), WORDS)
def test_rouge_equals_counting(candidate: list[str], reference: list[str]) -> None:
    assert rouge(" ".join(candidate), " ".join(reference)) == pytest.approx(naive(candidate, reference))


@given(st.text(st.characters(max_codepoint=127)), st.text(st.characters(max_codepoint=127)))
def test_ascii_text_scores_as_in_the_library(candidate: str, reference: str) -> None:
    assert Tokenizer().tokenize(candidate) == DefaultTokenizer().tokenize(candidate)
    theirs = RougeScorer(["rouge1", "rougeL"], tokenizer=DefaultTokenizer()).score(reference, candidate)
    assert rouge(candidate, reference) == (theirs["rouge1"].fmeasure, theirs["rougeL"].fmeasure)


def test_by_hand() -> None:
    """Shared words: the (twice), cat, sat, mat = 5 of 6 and of 6, so F1 = 5/6; in order: the cat sat the mat."""
    candidate, reference = "The cat sat on the mat.", "the CAT sat by the mat"
    assert rouge1(candidate, reference) == pytest.approx(5 / 6)
    assert rouge_l(candidate, reference) == pytest.approx(5 / 6)
    # Reversed words share all as a multiset; a common subsequence has 1 of 3 words: F1 = 1/3.
    assert rouge("a b c", "c b a") == pytest.approx((1.0, 1 / 3))
    assert rouge("", "a") == rouge("a", "...") == (0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ich wohne in Köln.", ["ich", "wohne", "in", "köln"]),
        ("Ёлка, д. 7", ["ёлка", "д", "7"]),
        ("我喜欢蜜蜂", list("我喜欢蜜蜂")),
        ("ข้าว", ["ข", "้", "า", "ว"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("مرحبا بك", ["مرحبا", "بك"]),
        ("don’t stop", ["don", "t", "stop"]),
        ("🐝!", []),
    ],
)
def test_other_scripts_have_words(text: str, words: list[str]) -> None:
    assert Tokenizer().tokenize(text) == words
    assert rouge(text, text) == ((1.0, 1.0) if words else (0.0, 0.0))


def test_one_text_in_two_unicode_forms_is_one_text() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert rouge1(composed, decomposed) == 1.0
