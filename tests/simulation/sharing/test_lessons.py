"""What a device learns from, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from client.dialogue import Example
from client.model import BaseModel
from simulation.sharing.config import SharingConfig
from simulation.sharing.lessons import prepare, schedule
from tests.simulation.test_compare import make_user

CONFIG = SharingConfig(
    stages=3, rounds=7, bins=6, annotations_per_stage=2, holdout_share=0.3, synthesis_count=1, max_new_tokens=6
)


def row(name: int) -> Example:
    return Example(question=f"{name}?", response=f"{name}.", source_id=f"{name}", example_id=f"{name}")


@given(st.lists(st.frozensets(st.integers(0, 4)), min_size=3, max_size=3))
def test_a_round_has_the_rows_of_its_stage(stages: Sequence[frozenset[int]]) -> None:
    lessons = schedule([[row(name) for name in sorted(names)] for names in stages], CONFIG)
    for number in range(1, CONFIG.rounds + 1):
        held = {
            lesson.example.example_id
            for lesson in lessons
            if lesson.since <= number and (lesson.until is None or number <= lesson.until)
        }
        assert held == {str(name) for name in stages[CONFIG.stage_of(number) - 1]}


def test_stages_have_their_first_rounds() -> None:
    assert [CONFIG.first_round(stage) for stage in (1, 2, 3)] == [1, 3, 5]
    assert [CONFIG.stage_of(number) for number in range(8)] == [0, 1, 1, 2, 2, 3, 3, 3]


def test_a_device_asks_within_its_budget_and_never_trains_on_its_holdout(tiny_model: BaseModel, tmp_path: Path) -> None:
    user = make_user("ada", turns=40)
    curriculum = prepare(user, tiny_model, CONFIG, draw=0, work=tmp_path)
    assert curriculum.asked == (2, 4, 6)
    originals = {lesson.example for lesson in curriculum.lessons if not lesson.example.is_synthesized}
    assert len(originals) == 6
    answers = {turn.turn_id: turn.preferred for turn in user.stream}
    assert all(row.response == answers[row.source_id] for row in originals)
    judged = {lesson.example.source_id for lesson in curriculum.holdout}
    assert judged
    assert not judged & {lesson.example.source_id for lesson in curriculum.lessons}
    assert not list(tmp_path.iterdir())


def test_the_same_user_prepares_the_same(tiny_model: BaseModel, tmp_path: Path) -> None:
    user = make_user("ada", turns=20)
    assert prepare(user, tiny_model, CONFIG, draw=0, work=tmp_path) == prepare(
        user, tiny_model, CONFIG, draw=0, work=tmp_path
    )
