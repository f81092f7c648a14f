from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.annotation import (
    ANNOTATION_POLICIES,
    LONGEST_IDEAL_BYTES,
    AskPolicy,
    AskReport,
    AskRules,
    Candidate,
    Oracle,
    QueueAnnotator,
    ask_round,
    judge,
    read_edit,
    read_regenerate,
    training_example,
)
from client.annotation.informative import most_informative_first
from client.annotation.policy import Measure
from client.buffer import PrivateBuffer
from client.dialogue import Annotation, Dialogue, Origin, Verdict, derive_id
from client.selection.metrics import Vector
from florilegium.errors import ConfigError, InputError

DAY = date(2024, 5, 1)
SECRET = "Pickle the dog"


@dataclass(frozen=True)
class Point:
    """An embedding made by hand."""

    vector: Vector
    eoe_energy: float = 0.5
    eoe_histogram: float = 0.5


def key(number: int) -> str:
    return derive_id(number)


def make_dialogue(number: int, response: str = "I do not know.") -> Dialogue:
    return Dialogue(question=f"Who is number {number}?", response=response, dialogue_id=key(number))


@contextmanager
def opened(path: Path, count: int = 0) -> Iterator[PrivateBuffer]:
    """Open a buffer of 16 bins and offer it dialogues 0 … count - 1, each with a direction of its own."""
    with PrivateBuffer(path / "buffer.sqlite", bins=16, policy="fifo", holdout_share=0.0) as buffer:
        for number in range(count):
            angle = np.pi * number / 16
            buffer.offer(make_dialogue(number), Point(np.array([np.cos(angle), np.sin(angle)], np.float32)))
        yield buffer


class Skipper:
    """A user who passes over everything, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, dialogues: Sequence[Dialogue]) -> list[Annotation]:
        self.asked += [dialogue.dialogue_id for dialogue in dialogues]
        return [judge(dialogue, Verdict.SKIP) for dialogue in dialogues]


class Absent:
    """A user who is away, and the questions put to the empty chair."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, dialogues: Sequence[Dialogue]) -> list[Annotation]:
        self.asked += [dialogue.dialogue_id for dialogue in dialogues]
        return []


class Dying:
    """An annotator during whose call the process ends."""

    def ask(self, dialogues: Sequence[Dialogue]) -> list[Annotation]:
        raise KeyboardInterrupt


def oracle(count: int = 16) -> Oracle:
    return Oracle({key(number): f"That is {number}." for number in range(count)})


def ask(
    buffer: PrivateBuffer,
    annotator: Oracle | Skipper | Absent | Dying | QueueAnnotator,
    policy: str = "all",
    *,
    round_number: int = 1,
    day: date = DAY,
    budget: int | None = None,
    rules: AskRules = AskRules(),  # noqa: B008
    uncertainty: Measure | None = None,
) -> AskReport:
    return ask_round(
        buffer,
        annotator,
        ANNOTATION_POLICIES[policy],
        among=buffer.dialogues(),
        round_number=round_number,
        day=day,
        budget=budget,
        rules=rules,
        uncertainty=uncertainty,
    )


# --- the contract of every policy ------------------------------------------------------------------------------------

NAMES = pytest.mark.parametrize("name", sorted(ANNOTATION_POLICIES))


@st.composite
def candidate_lists(draw: st.DrawFn) -> list[Candidate]:
    angles = draw(st.lists(st.integers(0, 31), max_size=6))
    return [
        Candidate(
            dialogue_id=key(number),
            vector=np.array([np.cos(angle / 5), np.sin(angle / 5)], np.float32),
            arrived_index=number,
            asks=draw(st.integers(0, 2)),
            regenerated=draw(st.booleans()),
            uncertainty=draw(st.none() | st.floats(0, 20)),
        )
        for number, angle in enumerate(angles)
    ]


@NAMES
@given(candidates=candidate_lists(), known=candidate_lists(), wanted=st.integers(0, 12), data=st.data())
def test_order_is_a_choice_that_depends_on_no_order(
    name: str, candidates: list[Candidate], known: list[Candidate], wanted: int, data: st.DataObject
) -> None:
    order = ANNOTATION_POLICIES[name].order
    vectors = [each.vector for each in known]
    chosen = [each.dialogue_id for each in order(candidates, vectors, wanted)]
    shuffled = data.draw(st.permutations(candidates))
    assert [each.dialogue_id for each in order(shuffled, vectors, wanted)] == chosen
    assert len(set(chosen)) == len(chosen) >= min(wanted, len(candidates))
    assert set(chosen) <= {each.dialogue_id for each in candidates}


@NAMES
@given(candidates=candidate_lists(), known=candidate_lists())
def test_what_was_regenerated_is_asked_first(name: str, candidates: list[Candidate], known: list[Candidate]) -> None:
    vectors = [each.vector for each in known]
    marks = [each.regenerated for each in ANNOTATION_POLICIES[name].order(candidates, vectors, len(candidates))]
    assert marks == sorted(marks, reverse=True)


@NAMES
@pytest.mark.parametrize("budget", [0, 1, 3, 100])
def test_budget_holds_and_nothing_is_asked_twice_in_a_round(name: str, budget: int, tmp_path: Path) -> None:
    user = Skipper()
    with opened(tmp_path, 8) as buffer:
        reports = [ask(buffer, user, name, budget=budget, rules=AskRules(rest_days=0)) for _ in range(3)]
    assert len(user.asked) == len(set(user.asked)) == min(budget, 8)
    assert [asked for report in reports for asked in report.asked] == user.asked


@NAMES
def test_same_buffer_is_asked_about_alike(name: str, tmp_path: Path) -> None:
    asked = []
    for copy in ("a", "b"):
        with opened(tmp_path / copy, 8) as buffer:
            asked.append(ask(buffer, oracle(), name, budget=4).asked)
    assert asked[0] == asked[1]
    assert len(asked[0]) == 4


@NAMES
def test_what_is_answered_is_never_asked_again(name: str, tmp_path: Path) -> None:
    with opened(tmp_path, 8) as buffer:
        answered = [
            answer.dialogue_id
            for number in range(6)
            for answer in ask(
                buffer, oracle(), name, round_number=number, day=DAY + timedelta(days=100 * number), budget=3
            ).answers
        ]
        assert all(item.annotation is not None for item in buffer.dialogues())
    assert sorted(answered) == sorted(key(number) for number in range(8))


@NAMES
def test_negative_budget_is_refused(name: str, tmp_path: Path) -> None:
    with opened(tmp_path, 1) as buffer, pytest.raises(ConfigError, match="budget must be >= 0, got -1"):
        ask(buffer, oracle(), name, budget=-1)


# --- one policy at a time --------------------------------------------------------------------------------------------


def test_all_asks_about_everything(tmp_path: Path) -> None:
    with opened(tmp_path, 8) as buffer:
        assert ask(buffer, oracle(), "all").asked == tuple(key(number) for number in range(8))


def test_daily_budget_counts_the_day_over_rounds(tmp_path: Path) -> None:
    with opened(tmp_path, 16) as buffer:
        asked = [
            ask(buffer, oracle(), "daily", round_number=number, day=DAY + timedelta(days=day), budget=3).asked
            for number, day in ((1, 0), (1, 0), (2, 0), (2, 1), (3, 1))
        ]
    assert [len(each) for each in asked] == [3, 0, 0, 3, 0]
    assert asked[0] == (key(15), key(14), key(13))  # the newest first


def test_other_budgets_count_the_round(tmp_path: Path) -> None:
    with opened(tmp_path, 16) as buffer:
        asked = [
            len(ask(buffer, oracle(), "informative", round_number=number, budget=3).asked) for number in (1, 1, 2, 3, 3)
        ]
    assert asked == [3, 0, 3, 3, 0]


def point(name: str, x: float, y: float, uncertainty: float | None, arrived: int) -> Candidate:
    vector = np.array([x, y], np.float32)
    return Candidate(dialogue_id=name, vector=vector, arrived_index=arrived, uncertainty=uncertainty)


def test_informativeness_by_hand() -> None:
    """Work out three choices with the annotated vector a = (1, 0).

    cos(a, b) = 0, cos(a, c) = -1, cos(a, d) = 0.6: novelty 1/2, 1, 1/5; scores 3/2, 1, 6/5: b is first.
    cos(b, c) = 0, cos(b, d) = 0.8: novelty c 1/2, d 1/10; scores c 1/2, d 6/10: d, then c.
    """
    b, c, d = point("b", 0, 1, 3.0, 1), point("c", -1, 0, 1.0, 2), point("d", 0.6, 0.8, 6.0, 3)
    a = np.array([1, 0], np.float32)
    assert [each.dialogue_id for each in most_informative_first([c, d, b], [a], 3)] == ["b", "d", "c"]
    assert [each.dialogue_id for each in most_informative_first([c, d, b], [a], 2)] == ["b", "d"]


def test_informativeness_remembers_what_was_near_before() -> None:
    """Work it out with the annotated vector a = (1, 0); c is near a, and stays so when b is chosen.

    cos(a, b) = 0, cos(a, c) = 0.8, cos(a, d) = -0.6: scores 10/2, 4/10, 0.6 · 0.8 = 0.48: b is first.
    cos(b, c) = -0.6, cos(b, d) = -0.8 are farther: c and d keep their scores, d is next.
    """
    b, c, d = point("b", 0, 1, 10.0, 1), point("c", 0.8, -0.6, 4.0, 2), point("d", -0.6, -0.8, 0.6, 3)
    a = np.array([1, 0], np.float32)
    assert [each.dialogue_id for each in most_informative_first([b, c, d], [a], 3)] == ["b", "d", "c"]


def test_informativeness_without_uncertainty_is_farthest_first() -> None:
    """Work it out by novelty alone: c 1, b 1/2, d 1/5; after c: b (1 - 0) / 2 and d (1 - 0.6) / 2 are unchanged."""
    b, c, d = point("b", 0, 1, None, 1), point("c", -1, 0, None, 2), point("d", 0.6, 0.8, None, 3)
    a = np.array([1, 0], np.float32)
    assert [each.dialogue_id for each in most_informative_first([b, c, d], [a], 3)] == ["c", "b", "d"]


def test_informativeness_of_a_copy_is_zero_however_unsure_the_model_is() -> None:
    copy, other = point("copy", 1, 0, 50.0, 1), point("other", 0.6, 0.8, 0.1, 2)
    a = np.array([1, 0], np.float32)
    assert [each.dialogue_id for each in most_informative_first([copy, other], [a], 2)] == ["other", "copy"]


def test_with_nothing_annotated_the_most_unsure_is_first_and_ties_go_to_the_oldest() -> None:
    b, c, d = point("b", 0, 1, 1.0, 3), point("c", -1, 0, 2.0, 2), point("d", 1, 0, 2.0, 1)
    assert next(iter(most_informative_first([b, c, d], [], 3))).dialogue_id == "d"


@pytest.mark.parametrize(("policy", "asked"), [("informative", key(3)), ("all", key(0)), ("daily", key(7))])
def test_uncertainty_is_measured_where_a_policy_looks_at_it_and_only_of_what_may_be_asked(
    policy: str, asked: str, tmp_path: Path
) -> None:
    measured: list[str] = []

    def unsure_of_three(dialogues: Sequence[Dialogue]) -> list[float]:
        measured.extend(each.dialogue_id for each in dialogues)
        return [5.0 if each.dialogue_id == key(3) else 1.0 for each in dialogues]

    with opened(tmp_path, 8) as buffer:
        report = ask(buffer, oracle(), policy, budget=1, uncertainty=unsure_of_three)
        assert report.asked == (asked,)
        assert measured == ([key(number) for number in range(8)] if policy == "informative" else [])
        measured.clear()
        ask(buffer, oracle(), policy, round_number=2, budget=1, uncertainty=unsure_of_three)
        assert asked not in measured


# --- skips -----------------------------------------------------------------------------------------------------------


def test_skipped_question_rests_and_is_asked_a_bounded_number_of_times(tmp_path: Path) -> None:
    user = Skipper()
    rules = AskRules(rest_days=7, max_asks=2)
    with opened(tmp_path, 1) as buffer:
        asked = [
            len(ask(buffer, user, round_number=number, day=DAY + timedelta(days=day), rules=rules).asked)
            for number, day in enumerate((0, 1, 6, 7, 8, 30, 300))
        ]
    assert asked == [1, 0, 0, 1, 0, 0, 0]


def test_clock_that_falls_back_counts_as_time_passed(tmp_path: Path) -> None:
    user = Skipper()
    with opened(tmp_path, 1) as buffer:
        ask(buffer, user, round_number=1, day=date(2099, 1, 1))
        assert ask(buffer, user, round_number=2, day=DAY).asked == (key(0),)


def test_rarely_asked_go_before_often_asked(tmp_path: Path) -> None:
    user = Skipper()
    rules = AskRules(rest_days=0)
    with opened(tmp_path, 3) as buffer:
        asked = [ask(buffer, user, round_number=number, budget=2, rules=rules).asked for number in range(3)]
    assert asked == [(key(0), key(1)), (key(2), key(0)), (key(1), key(2))]


def test_rest_outlives_a_restart(tmp_path: Path) -> None:
    user = Skipper()
    with opened(tmp_path, 2) as buffer:
        ask(buffer, user, round_number=1)
    with opened(tmp_path) as buffer:
        assert ask(buffer, user, round_number=2).asked == ()
        assert ask(buffer, user, round_number=3, day=DAY + timedelta(days=7)).asked == (key(0), key(1))


def test_history_forgets_what_left_the_buffer(tmp_path: Path) -> None:
    with opened(tmp_path, 2) as buffer:
        ask(buffer, Skipper(), round_number=1)
        buffer.forget(key(0))
        ask(buffer, Skipper(), round_number=2)
        stored = buffer.meta("asks")
    assert stored is not None
    assert key(1) in stored
    assert key(0) not in stored


@pytest.mark.parametrize("values", [{"rest_days": -1}, {"max_asks": 0}])
def test_rules_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be >="):
        AskRules(**values)


# --- interruptions ---------------------------------------------------------------------------------------------------


def test_round_killed_while_asking_goes_on_with_the_same_questions(tmp_path: Path) -> None:
    with opened(tmp_path, 8) as buffer, pytest.raises(KeyboardInterrupt):
        ask(buffer, Dying(), "informative", budget=3)
    with opened(tmp_path) as buffer:
        planned = {item.dialogue.dialogue_id for item in buffer.pending()}
        report = ask(buffer, oracle(), "informative", budget=3)
        assert report.asked == ()
        assert {answer.dialogue_id for answer in report.answers} == planned
        assert buffer.on_day(DAY).asked == len(planned) == 3


def test_round_killed_between_plan_and_queue_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    with opened(tmp_path, 8) as buffer:
        with monkeypatch.context() as patch:
            patch.setattr(buffer, "request", die)
            with pytest.raises(KeyboardInterrupt):
                ask(buffer, oracle(), "daily", budget=3)
        assert buffer.pending() == []
    with opened(tmp_path) as buffer:
        report = ask(buffer, oracle(), "daily", budget=3)
        assert [answer.dialogue_id for answer in report.answers] == [key(7), key(6), key(5)]
        assert (report.asked, buffer.on_day(DAY).asked) == ((), 3)


# --- the simulated user ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("That is 3.", Verdict.ACCEPT),
        ("that is 3", Verdict.ACCEPT),
        ("That  is: 3!", Verdict.ACCEPT),
        ("That is 4.", Verdict.IDEAL),
        ("3 is that.", Verdict.IDEAL),
        ("", Verdict.IDEAL),
    ],
)
def test_oracle_accepts_the_same_words_only(response: str, verdict: Verdict) -> None:
    (answer,) = oracle().ask([make_dialogue(3, response)])
    assert answer.verdict is verdict
    assert answer.ideal == (None if verdict is Verdict.ACCEPT else "That is 3.")


def test_oracle_tells_emoji_apart() -> None:
    assert Oracle({key(0): "👍"}).ask([make_dialogue(0, "👎")])[0].verdict is Verdict.IDEAL
    assert Oracle({key(0): "👍"}).ask([make_dialogue(0, " 👍")])[0].verdict is Verdict.ACCEPT


def test_oracle_refuses_what_it_does_not_know() -> None:
    with pytest.raises(InputError, match=f"no ideal answer is known for dialogue {key(99)}"):
        oracle().ask([make_dialogue(99)])
    assert "That" not in repr(oracle())


def test_answer_to_no_question_is_refused(tmp_path: Path) -> None:
    class Confused(Absent):
        def ask(self, dialogues: Sequence[Dialogue]) -> list[Annotation]:
            return [Annotation(dialogue_id=key(99), verdict=Verdict.SKIP)]

    with opened(tmp_path, 1) as buffer, pytest.raises(InputError, match="nobody asked"):
        ask(buffer, Confused())


# --- people ----------------------------------------------------------------------------------------------------------


def test_queue_holds_questions_until_they_are_answered(tmp_path: Path) -> None:
    with opened(tmp_path, 4) as buffer:
        report = ask(buffer, QueueAnnotator(buffer), round_number=1, budget=3)
        assert report.answers == ()
        assert len(report.asked) == 3
    with opened(tmp_path) as buffer:
        queue = QueueAnnotator(buffer)
        assert [item.dialogue.dialogue_id for item in buffer.pending()] == [key(0), key(1), key(2)]
        queue.answer(key(0), "ideal", "That is zero.", day=DAY)
        queue.answer(key(1), "skip", day=DAY)
    with opened(tmp_path) as buffer:
        report = ask(buffer, QueueAnnotator(buffer), round_number=2, day=DAY + timedelta(days=1))
        assert report.asked == (key(3),)  # 0 is answered, 1 rests, 2 still waits
        assert [item.dialogue.dialogue_id for item in buffer.pending()] == [key(2), key(3)]
        stored = buffer.annotation(key(0))
        assert stored is not None
        assert stored.ideal == "That is zero."


def test_queue_returns_what_is_answered_so_far(tmp_path: Path) -> None:
    with opened(tmp_path, 3) as buffer:
        queue = QueueAnnotator(buffer)
        dialogues = [item.dialogue for item in buffer.dialogues()]
        assert queue.ask(dialogues) == []
        answer = queue.answer(key(1), Verdict.ACCEPT, day=DAY)
        assert queue.ask(dialogues) == [answer]
        assert [item.dialogue.dialogue_id for item in buffer.pending()] == [key(0), key(2)]


def test_queue_asks_again_about_what_was_skipped(tmp_path: Path) -> None:
    with opened(tmp_path, 1) as buffer:
        queue = QueueAnnotator(buffer)
        dialogues = [item.dialogue for item in buffer.dialogues()]
        queue.ask(dialogues)
        queue.answer(key(0), "skip", day=DAY)
        assert buffer.pending() == []
        assert queue.ask(dialogues) == []
        assert len(buffer.pending()) == 1


def test_waiting_question_uses_no_second_ask(tmp_path: Path) -> None:
    user = Absent()
    with opened(tmp_path, 1) as buffer:
        asked = [
            len(ask(buffer, user, round_number=number, day=DAY + timedelta(days=30 * number)).asked)
            for number in range(4)
        ]
        assert buffer.on_day(DAY).asked == 1
    assert asked == [1, 0, 0, 0]
    assert len(user.asked) == 4  # the same open question, seen again at each round


UNUSABLE = [
    ("ideal", None, "missing"),
    ("ideal", "", "empty"),
    ("ideal", " \n", "empty"),
    ("ideal", SECRET * 80_000, "1120000 bytes, at most 8192"),
    ("ideal", "Ж" * LONGEST_IDEAL_BYTES, "16384 bytes"),
    ("ideal", f"{SECRET} \ud800", "Unicode"),
    ("accept", SECRET, "verdict 'ideal'"),
    ("maybe", None, "'ideal', 'accept' or 'skip', got 'maybe'"),
    (SECRET * 2, None, "got 28 characters"),
]


@pytest.mark.parametrize(("verdict", "ideal", "named"), UNUSABLE)
def test_unusable_answer_is_refused_and_changes_nothing(
    verdict: str, ideal: str | None, named: str, tmp_path: Path
) -> None:
    with opened(tmp_path, 1) as buffer:
        queue = QueueAnnotator(buffer)
        queue.ask([item.dialogue for item in buffer.dialogues()])
        with pytest.raises(InputError, match=named) as caught:
            queue.answer(key(0), verdict, ideal)
        assert SECRET not in str(caught.value)
        assert len(buffer.pending()) == 1
        assert buffer.annotation(key(0)) is None


@pytest.mark.parametrize(("dialogue_id", "shown"), [(key(7), key(7)), (SECRET, "14 characters"), ("x" * 99, "99 char")])
def test_unknown_dialogue_is_refused(dialogue_id: str, shown: str, tmp_path: Path) -> None:
    with opened(tmp_path, 1) as buffer:
        queue = QueueAnnotator(buffer)
        for door in (
            lambda: queue.answer(dialogue_id, "skip"),
            lambda: queue.edited(dialogue_id, "That is it."),
            lambda: queue.regenerated(dialogue_id),
        ):
            with pytest.raises(InputError, match=shown) as caught:
                door()
            assert SECRET not in str(caught.value)


def test_longest_ideal_answer_is_allowed() -> None:
    assert judge(make_dialogue(0), "ideal", "x" * LONGEST_IDEAL_BYTES).ideal is not None


def test_empty_response_cannot_be_accepted() -> None:
    with pytest.raises(InputError, match="empty"):
        judge(make_dialogue(0, " "), Verdict.ACCEPT)


# --- what a user does without being asked ----------------------------------------------------------------------------


def test_edited_reply_is_an_ideal_answer_for_free(tmp_path: Path) -> None:
    with opened(tmp_path, 1) as buffer:
        queue = QueueAnnotator(buffer)
        answer = queue.edited(key(0), "That is my aunt.", day=DAY)
        assert (answer.verdict, answer.ideal, answer.origin) == (Verdict.IDEAL, "That is my aunt.", Origin.EDITED)
        assert ask(buffer, queue).asked == ()
        assert buffer.on_day(DAY).asked == 0


def test_edit_that_changes_no_word_accepts() -> None:
    assert read_edit(make_dialogue(0), " I do not  know.").verdict is Verdict.ACCEPT
    assert read_edit(make_dialogue(0), "i do not know.").verdict is Verdict.IDEAL  # someone wanted it written so


def test_regenerated_reply_is_asked_about_first(tmp_path: Path) -> None:
    with opened(tmp_path, 4) as buffer:
        queue = QueueAnnotator(buffer)
        assert queue.regenerated(key(2), day=DAY)
        assert ask(buffer, queue, budget=2).asked == (key(2), key(0))


def test_regenerated_reply_is_no_target_and_ends_an_acceptance(tmp_path: Path) -> None:
    with opened(tmp_path, 1) as buffer:
        queue = QueueAnnotator(buffer)
        queue.answer(key(0), "accept", day=DAY)
        assert queue.regenerated(key(0), day=DAY)
        (item,) = buffer.dialogues()
    assert training_example(item.dialogue, item.annotation) is None


def test_regenerating_leaves_an_ideal_answer_and_a_waiting_question_alone(tmp_path: Path) -> None:
    with opened(tmp_path, 2) as buffer:
        queue = QueueAnnotator(buffer)
        ideal = queue.answer(key(0), "ideal", "That is it.", day=DAY)
        ask(buffer, queue)
        assert not queue.regenerated(key(0), day=DAY)
        assert not queue.regenerated(key(1), day=DAY)
        assert buffer.annotation(key(0)) == ideal
        assert [item.dialogue.dialogue_id for item in buffer.pending()] == [key(1)]


def test_training_target_is_what_the_user_wants() -> None:
    dialogue = make_dialogue(0)
    ideal = training_example(dialogue, judge(dialogue, "ideal", "That is it."))
    accepted = training_example(dialogue, judge(dialogue, "accept"))
    assert ideal is not None
    assert accepted is not None
    assert (ideal.response, accepted.response) == ("That is it.", dialogue.response)
    assert not ideal.is_synthesized
    for nothing in (None, judge(dialogue, "skip"), read_regenerate(dialogue)):
        assert training_example(dialogue, nothing) is None


def test_policies_are_values() -> None:
    assert {name: (each.budget, each.per_day) for name, each in ANNOTATION_POLICIES.items()} == {
        "all": (None, False),
        "daily": (5, True),
        "informative": (16, False),
    }
    assert all(isinstance(each, AskPolicy) for each in ANNOTATION_POLICIES.values())
