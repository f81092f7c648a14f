from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.selection.domains import UNKNOWN, dominant_domain
from client.selection.lexicons import Lexicons, copy_lexicons, load_lexicons, parse_lexicon
from client.selection.words import split_words
from florilegium.errors import InputError

WORDS = st.sampled_from(["a", "b", "c", "dog", "dogs", "cat"])
PHRASES = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)


def covered_naively(words: list[str], entries: list[str]) -> int:
    """Try every phrase, with and without a plural s, at every position."""
    covered = set()
    for entry in entries:
        phrase = split_words(entry)
        for form in (phrase, [*phrase[:-1], phrase[-1] + "s"] if phrase[-1] in ("dog", "cat") else phrase):
            for start in range(len(words) - len(form) + 1):
                if words[start : start + len(form)] == form:
                    covered |= set(range(start, start + len(form)))
    return len(covered)


@given(st.lists(WORDS, max_size=30), st.lists(st.lists(PHRASES, min_size=1, max_size=5, unique=True), max_size=4))
def test_coverage_equals_the_naive_count(words: list[str], lists: list[list[str]]) -> None:
    lexicons = Lexicons.of({f"domain{number}": entries for number, entries in enumerate(lists)})
    assert lexicons.coverage(words) == tuple(covered_naively(words, entries) for entries in lists)


def test_coverage_by_hand() -> None:
    # "ice cream" covers 2 positions, the second "cream" alone covers 1 more; "bees" is the plural of "bee".
    lexicons = Lexicons.of({"food": ["ice cream", "cream"], "nature": ["bee", "berry", "fox"]})
    assert lexicons.coverage(split_words("Ice cream and cream for bees, berries, foxes")) == (3, 3)


def test_phrases_of_unspaced_scripts_match() -> None:
    lexicons = Lexicons.of({"健康": ["过敏", "医生"], "饮食": ["吃饭"]})
    assert lexicons.coverage(split_words("我对蜜蜂过敏，要看医生吗？")) == (4, 0)


def test_dominant_domain() -> None:
    assert dominant_domain(("a", "b", "c"), (1, 3, 2)) == "b"
    assert dominant_domain(("a", "b", "c"), (0, 2, 2)) == "b", "the first of equals"
    assert dominant_domain(("a", "b"), (0, 0)) == UNKNOWN, "not the first domain"
    assert dominant_domain((), ()) == UNKNOWN


@pytest.mark.parametrize("text", ["你好，今天过得怎么样？", "مرحبا كيف حالك", "🎉🎉🎉", "hm ok then", ""])
def test_text_without_lexicon_words_is_unknown(text: str) -> None:
    lexicons = load_lexicons()
    assert dominant_domain(lexicons.domains, lexicons.coverage(split_words(text))) == UNKNOWN


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("Which pills did the doctor prescribe for my allergy?", "health"),
        ("What should I cook for dinner with rice and mushrooms?", "food"),
        ("My boss moved the meeting with our colleagues", "work"),
        ("Is my flight to the hotel with a train from the airport?", "travel"),
        ("The washing machine is leaking in the kitchen", "home"),
        ("My sister and her husband bring the children", "family"),
        ("How much interest does my savings account pay?", "money"),
        ("When is the football match at the stadium?", "sport"),
        ("Which novel by that author became a film?", "arts"),
        ("My homework for the chemistry exam at school", "study"),
        ("I want a refund, here is the receipt for the shoes", "shopping"),
        ("The laptop forgot the wifi password after the update", "technology"),
        ("I feel so lonely, anxious and sad", "emotions"),
        ("Water the tulips in the garden before the storm", "nature"),
    ],
)
def test_every_shipped_domain_finds_its_text(text: str, domain: str) -> None:
    lexicons = load_lexicons()
    assert dominant_domain(lexicons.domains, lexicons.coverage(split_words(text))) == domain


def test_shipped_lexicons_are_sized_for_editing() -> None:
    lexicons = load_lexicons()
    assert len(lexicons.domains) >= 8
    for bit in range(len(lexicons.domains)):
        assert sum(mask >> bit & 1 for mask in lexicons.phrases.values()) >= 80


def test_a_folder_of_the_device_stands_for_all(tmp_path: Path) -> None:
    (tmp_path / "bees.txt").write_text("# mine\r\nhive\r\n\r\nqueen bee\r\n", encoding="utf-8-sig")
    (tmp_path / ".hidden.txt").write_bytes(b"\xff")
    (tmp_path / "notes.md").write_bytes(b"\xff")
    lexicons = load_lexicons(tmp_path)
    assert lexicons.domains == ("bees",)
    assert lexicons.coverage(["the", "queen", "bee", "hives"]) == (3,)
    assert load_lexicons(tmp_path / "none") == load_lexicons()


def test_copied_lexicons_are_the_shipped_ones_and_edits_survive(tmp_path: Path) -> None:
    copy_lexicons(tmp_path / "lexicons")
    assert load_lexicons(tmp_path / "lexicons") == load_lexicons()
    (tmp_path / "lexicons" / "food.txt").write_text("only this\n")
    copy_lexicons(tmp_path / "lexicons")
    assert ("only", "this") in load_lexicons(tmp_path / "lexicons").phrases
    assert load_lexicons(tmp_path / "lexicons").fingerprint != load_lexicons().fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\n\xff\xfe\n", "x.txt line 2: not UTF-8"),
        ("fine\ncaf\u00e9\n".encode("latin-1"), "x.txt line 2: not UTF-8"),
        (b"dog\ncat\nDog\n", "x.txt line 3: repeats line 1"),
        (b"ice  cream\n\nice-cream\n", "x.txt line 3: repeats line 1"),
        (b"", "x.txt: no word in the file"),
        (b"# only\n\n   \n", "x.txt: no word in the file"),
        (b"dog\n---\n", "x.txt line 2: no word in it"),
        (b"dog\nca\x00t\n", "x.txt line 2: a control character"),
        ("a\u2028b".encode(), "x.txt line 1: a control character"),
        (b"dog\n" + b"a" * 65, "x.txt line 2: 65 characters, at most 64"),
        (b"a b c d e f g h i", "x.txt line 1: 9 words, at most 8"),
        (b"a\n" * (1 << 20), "x.txt: 2097152 bytes, at most 1048576"),
    ],
)
def test_mistakes_in_a_file_are_named_with_their_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_lexicons(tmp_path)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["unknown.txt", "a b.txt", "-x.txt", ".txt.txt", "x" * 40 + ".txt"])
def test_a_file_name_that_is_no_domain_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("word\n")
    with pytest.raises(InputError):
        load_lexicons(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no \*\.txt file"):
        load_lexicons(tmp_path)


@given(st.binary(max_size=200))
def test_any_bytes_give_entries_or_an_input_error(content: bytes) -> None:
    with contextlib.suppress(InputError):
        assert Lexicons.of({"x": parse_lexicon("x.txt", content)}).phrases
