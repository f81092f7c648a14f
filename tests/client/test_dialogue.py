import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.dialogue import Annotation, Dialogue, Example, Origin, Verdict, derive_id, derive_seed, shown_id
from florilegium.errors import InputError

SECRET = "my locker code is 4711"


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_identifiers_are_equal_only_for_equal_parts(left: list[str], right: list[str]) -> None:
    assert (derive_id(*left) == derive_id(*right)) == (left == right)


def test_parts_do_not_run_together() -> None:
    assert derive_id("ab", "c") != derive_id("a", "bc")


@given(st.text())
def test_seeds_fit_torch_generators(part: str) -> None:
    assert 0 <= derive_seed(part) < 2**63


def test_nothing_prints_its_text() -> None:
    dialogue = Dialogue(question=SECRET, response=SECRET, dialogue_id="d1")
    values = [
        dialogue,
        Annotation(dialogue_id="d1", verdict=Verdict.IDEAL, ideal=SECRET),
        Example.original(dialogue, SECRET),
    ]
    for value in values:
        assert SECRET not in repr(value)
        assert SECRET not in str(value)
        assert SECRET not in f"{value}"


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_empty_questions_and_ideals_are_refused_without_a_traceback_of_text(blank: str) -> None:
    with pytest.raises(InputError, match="question is empty"):
        Dialogue(question=blank, response="yes")
    with pytest.raises(InputError, match="ideal answer is empty"):
        Annotation(dialogue_id="d", verdict=Verdict.IDEAL, ideal=blank)


def test_an_ideal_answer_goes_with_its_verdict_alone() -> None:
    with pytest.raises(InputError):
        Annotation(dialogue_id="d", verdict=Verdict.ACCEPT, ideal="x")
    with pytest.raises(InputError):
        Annotation(dialogue_id="d", verdict=Verdict.IDEAL)
    assert Annotation(dialogue_id="d", verdict=Verdict.SKIP).origin is Origin.ASKED


@pytest.mark.parametrize("dialogue_id", ["", "my locker code", "ключ", "x" * 65, "a/b", "d1\n"])
def test_an_identifier_cannot_be_a_text(dialogue_id: str) -> None:
    for make in (
        lambda: Dialogue(question="q", response="r", dialogue_id=dialogue_id),
        lambda: Annotation(dialogue_id=dialogue_id, verdict=Verdict.SKIP),
    ):
        with pytest.raises(InputError, match=f"{len(dialogue_id)} characters of any kind") as caught:
            make()
        assert len(dialogue_id) < 2 or dialogue_id not in str(caught.value)
    assert shown_id(dialogue_id) == f"of {len(dialogue_id)} characters"


def test_an_identifier_may_be_a_program_s_own() -> None:
    for dialogue_id in ("d1", "2026-01-02T10:00:00", "user_7.chat-3:12", "x" * 64):
        assert Dialogue(question="q", response="r", dialogue_id=dialogue_id).dialogue_id == shown_id(dialogue_id)


def test_an_original_is_its_own_source() -> None:
    original = Example.original(Dialogue(question="q", response="r", dialogue_id="d"), "ideal")
    assert (original.example_id, original.source_id, original.response) == ("d", "d", "ideal")
    assert not original.is_synthesized
    assert Example(question="q2", response="ideal", source_id="d", example_id="c").is_synthesized
