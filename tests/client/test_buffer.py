from __future__ import annotations

import errno
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import buffer as buffer_module
from client import buffer_tables
from client.buffer import DayCounts, PrivateBuffer
from client.dialogue import Annotation, Dialogue, Example, Verdict
from client.selection import POLICIES, Lexicons
from client.selection.held import Held
from client.selection.metrics import Vector
from client.selection.policy import Action, Decision, Scored
from client.selection.scoring import pack_vector
from florilegium.errors import ConfigError, FlorilegiumError, InputError, StorageError

DAY = date(2030, 1, 2)
LEXICONS = Lexicons.of({"food": ["soup", "rice"], "health": ["doctor"]})


@dataclass(frozen=True)
class Embedded:
    vector: Vector
    eoe_energy: float = 0.5
    eoe_histogram: float = 1.5


def embedded(key: int, hidden: int = 8, eoe: float | None = None) -> Embedded:
    rng = np.random.default_rng(key)
    return Embedded(rng.normal(size=hidden).astype(np.float32), float(rng.random()) if eoe is None else eoe)


def dialogue(key: int | str, question: str | None = None, response: str = "fine") -> Dialogue:
    return Dialogue(question=question or f"how is soup {key}", response=response, dialogue_id=f"d{key}")


def child(key: int | str, number: int, question: str = "is the soup fine") -> Example:
    return Example(question=question, response="yes", source_id=f"d{key}", example_id=f"d{key}-{number}")


class Opener:
    """Open buffers on one file, closing the one before."""

    def __init__(self, path: Path) -> None:
        self.path, self.open = path, list[PrivateBuffer]()

    def __call__(self, **settings: object) -> PrivateBuffer:
        self.close()
        defaults: dict[str, object] = {"bins": 4, "holdout_share": 0.0, "policy": "fifo", "lexicons": LEXICONS}
        self.open.append(PrivateBuffer(self.path, **{**defaults, **settings}))  # type: ignore[arg-type]
        return self.open[-1]

    def close(self) -> None:
        for buffer in self.open:
            buffer.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    opener = Opener(tmp_path / "device" / "buffer.sqlite")
    yield opener
    opener.close()


def ids(buffer: PrivateBuffer) -> list[str]:
    return [item.dialogue.dialogue_id for item in buffer.dialogues()]


def state(buffer: PrivateBuffer) -> list[object]:
    """Return all that a buffer says of itself, in values that compare."""
    items = [
        (
            item.dialogue,
            replace(item.scored, vector=np.empty(0, np.float32), idd=0),
            item.scored.idd,
            item.scored.vector.tobytes(),
            item.annotation,
            item.arrived_index,
            item.decision,
            buffer.children(item.dialogue.dialogue_id),
            buffer.child_drops(item.dialogue.dialogue_id),
        )
        for item in [*buffer.dialogues(), *buffer.heldout()]
    ]
    pending = [item.dialogue.dialogue_id for item in buffer.pending()]
    return [
        repr(items),
        pending,
        buffer.decisions(limit=10**6),
        replace(buffer.stats(), file_bytes=0),
        buffer.on_day(DAY),
    ]


def test_a_kept_dialogue_comes_back_as_it_was(opened: Opener) -> None:
    buffer = opened()
    told = Dialogue(question="Süppchen 🍲? \u202eאבג 我饿了\x00\n", response="", dialogue_id="d1")
    decision = buffer.offer(told, Embedded(np.array([3, 4], np.float32), 0.7), day=DAY)
    (item,) = opened().dialogues()
    assert item.dialogue == told
    assert item.decision == decision
    assert decision.action is Action.KEEP
    assert item.scored.vector.tolist() == pytest.approx([0.6, 0.8], abs=1 / 4096)
    assert (item.scored.eoe, item.scored.domain, item.scored.idd) == (0.7, "unknown", 1.0)
    assert (item.arrived_index, item.annotation) == (1, None)


def test_a_decision_says_why_in_numbers_alone(opened: Opener) -> None:
    buffer = opened(policy="paper", bins=1)
    buffer.offer(dialogue(1, "the soup canary"), embedded(1, eoe=0.1), day=DAY)
    buffer.offer(dialogue(2, "soup soup canary"), embedded(2, eoe=0.9), day=DAY)
    newest, oldest = buffer.decisions()
    assert (newest.dialogue_id, newest.sequence, newest.part, newest.day) == ("d2", 2, "train", DAY)
    assert newest.decision.evidence.keys() >= {"eoe", "dss", "idd", "beaten"}
    assert newest.decision.evidence["eoe"] == pytest.approx(0.9)
    # Of 4 words 2 are in one of two lexicons.
    assert newest.decision.evidence["dss"] == pytest.approx(0.25)
    assert oldest.decision.reason == "room"
    assert "canary" not in repr(buffer.decisions())
    assert "canary" not in repr(buffer.dialogues())


def test_what_replaced_a_dialogue_can_be_asked(opened: Opener) -> None:
    buffer = opened(bins=1)
    buffer.offer(dialogue(1), embedded(1))
    buffer.offer(dialogue(2), embedded(2))
    newest, oldest = buffer.decisions("d1")
    assert (newest.dialogue_id, newest.decision.victim_id, newest.decision.reason) == ("d2", "d1", "oldest")
    assert (oldest.dialogue_id, oldest.decision.action) == ("d1", Action.KEEP)


def test_offering_again_changes_nothing(opened: Opener) -> None:
    buffer = opened(bins=2)
    decisions = [buffer.offer(dialogue(key), embedded(key)) for key in range(5)]
    before = state(buffer)
    assert [buffer.offer(dialogue(key, "another text"), embedded(9)) for key in range(5)] == decisions
    assert state(buffer) == before
    assert opened(bins=2).offer(dialogue(0), embedded(0)) == decisions[0]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_reopened_buffer_is_and_decides_as_one_that_stayed_open(tmp_path: Path, policy: str) -> None:
    def run(path: Path, reopen_every: int) -> list[object]:
        opener = Opener(path)
        buffer = opener(policy=policy, bins=5, holdout_share=0.2, holdout_bins=3)
        for key in range(60):
            if key % reopen_every == 0:
                buffer = opener(policy=policy, bins=5, holdout_share=0.2, holdout_bins=3)
            words = ["soup", "doctor", "what"][key % 3]
            buffer.offer(dialogue(key, f"{words} {key}"), embedded(key % 37), day=DAY)
        result = state(buffer)
        opener.close()
        return result

    assert run(tmp_path / "a.sqlite", 1000) == run(tmp_path / "b.sqlite", 7)


def test_memory_equals_the_file_after_every_call(opened: Opener) -> None:
    buffer = opened(policy="improved")
    for key in range(30):
        buffer.offer(dialogue(key), embedded(key))
        current = [(item.dialogue, item.scored.idd) for item in buffer.dialogues()]
        with PrivateBuffer(opened.path, bins=4, lexicons=LEXICONS, read_only=True) as reader:
            assert [(item.dialogue, item.scored.idd) for item in reader.dialogues()] == current


# --- bounds ---


def test_a_dialogue_that_does_not_fit_its_bin_is_dropped_whole(opened: Opener) -> None:
    # 16 numbers of two bytes, the tag "unknown" of 7 and the text must not exceed 100 bytes.
    buffer = opened(bin_bytes=100)
    fits = buffer.offer(dialogue(1, "é" * 30, "x"), embedded(1, hidden=16))
    exceeds = buffer.offer(dialogue(2, "é" * 30, "xx"), embedded(2, hidden=16))
    assert fits.action is Action.KEEP
    assert (exceeds.action, exceeds.reason, dict(exceeds.evidence)) == (
        Action.DROP, "too-large", {"bytes": 101.0, "bin_bytes": 100.0},
    )  # fmt: skip
    assert ids(buffer) == ["d1"]
    assert buffer.stats().held_bytes == 100


def test_a_megabyte_in_one_turn_is_dropped(opened: Opener) -> None:
    assert opened().offer(dialogue(1, "soup " * 200_000), embedded(1)).reason == "too-large"
    assert opened.path.stat().st_size < 200_000


@pytest.mark.parametrize(
    "embedding",
    [
        Embedded(np.array([np.nan, 1], np.float32)),
        Embedded(np.array([np.inf, 1], np.float32)),
        Embedded(np.zeros(2, np.float32)),
        Embedded(np.ones(2, np.float32), eoe_energy=np.nan),
    ],
)
def test_an_embedding_that_says_nothing_is_refused_without_an_error(opened: Opener, embedding: Embedded) -> None:
    decision = opened().offer(dialogue(1), embedding)
    assert (decision.action, decision.reason) == (Action.DROP, "bad-embedding")


def test_an_embedding_of_another_base_model_is_an_error_that_stores_nothing(opened: Opener) -> None:
    buffer = opened()
    buffer.offer(dialogue(1), embedded(1, hidden=8))
    with pytest.raises(StorageError, match="holds embeddings of 8 numbers, got one of 9"):
        buffer.offer(dialogue(2), embedded(2, hidden=9))
    assert buffer.seen == 1
    assert buffer.offer(dialogue(2), embedded(2)).action is Action.KEEP


class Stubborn:
    """A policy that never replaces."""

    def decide(self, newcomer: Scored, held: Held, rng: np.random.Generator) -> Decision:
        return Decision(action=Action.KEEP if held.has_room else Action.DROP, reason="stubborn")


def test_a_wanted_dialogue_takes_the_bin_of_the_oldest_that_nobody_answered_about(opened: Opener) -> None:
    buffer = opened(bins=3, policy=Stubborn())
    for key in range(3):
        buffer.offer(dialogue(key), embedded(key))
    buffer.annotate(Annotation(dialogue_id="d0", verdict=Verdict.ACCEPT))
    assert buffer.offer(dialogue(9), embedded(9)).action is Action.DROP
    decision = buffer.adopt(dialogue(9), embedded(9))
    assert (decision.action, decision.victim_id, decision.reason) == (Action.REPLACE, "d1", "wanted")
    assert buffer.adopt(dialogue(9), embedded(9)) == decision, "what is here stays"
    assert buffer.adopt(dialogue(7), embedded(7)).victim_id == "d2"
    for key in (9, 7):
        buffer.annotate(Annotation(dialogue_id=f"d{key}", verdict=Verdict.ACCEPT))
    assert buffer.adopt(dialogue(8), embedded(8)).victim_id == "d0", "all are answered: the oldest goes"
    before = state(buffer)
    assert len(buffer.decisions("d9")) == 1
    assert buffer.seen == 7, "a dialogue that is adopted arrives once more"
    reopened = opened(bins=3, policy=Stubborn())
    assert state(reopened) == before
    assert ids(reopened) == ["d9", "d7", "d8"]


def test_a_dialogue_that_was_never_offered_can_be_adopted(opened: Opener) -> None:
    assert opened().adopt(dialogue(1), embedded(1)).action is Action.KEEP


@pytest.mark.parametrize("verdict", list(Verdict))
def test_policies_are_told_what_was_answered_before_and_after_a_restart(opened: Opener, verdict: Verdict) -> None:
    told: list[list[bool]] = []

    class Listening(Stubborn):
        def decide(self, newcomer: Scored, held: Held, rng: np.random.Generator) -> Decision:
            told.append(held.answered.tolist())
            return super().decide(newcomer, held, rng)

    buffer = opened(bins=2, policy=Listening())
    for key in range(2):
        buffer.offer(dialogue(key), embedded(key))
    ideal = "yes" if verdict is Verdict.IDEAL else None
    buffer.annotate(Annotation(dialogue_id="d1", verdict=verdict, ideal=ideal))
    told.clear()
    buffer.offer(dialogue(2), embedded(2))
    opened(bins=2, policy=Listening()).offer(dialogue(3), embedded(3))
    assert told == [[False, verdict is not Verdict.SKIP]] * 2


def test_a_waiting_embedding_of_another_base_model_does_not_stop_the_others(opened: Opener) -> None:
    buffer = opened()
    with buffer.frozen():
        for key, hidden in enumerate((8, 9, 8)):
            buffer.offer(dialogue(key), embedded(key, hidden=hidden))
    assert ids(buffer) == ["d0", "d2"]
    assert buffer.decisions("d1")[0].decision.reason == "bad-embedding"


def test_text_that_is_no_unicode_is_an_error_that_quotes_nothing(opened: Opener) -> None:
    buffer = opened()
    with pytest.raises(InputError, match="not valid Unicode") as caught:
        buffer.offer(dialogue(1, "canary \ud800"), embedded(1))
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert buffer.seen == 0


def test_the_decision_log_is_pruned_but_not_of_what_is_held(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_module, "DECISION_ROWS", 10)
    monkeypatch.setattr(buffer_module, "PRUNE_EVERY", 5)
    buffer = opened(policy="paper", bins=2)
    for key in range(40):
        buffer.offer(dialogue(key, "no lexicon word"), embedded(key))
    logged = [entry.sequence for entry in reversed(buffer.decisions(limit=100))]
    assert logged == [1, 2, *range(31, 41)], "the two that are held, and the last ten"
    assert buffer.stats().outcomes == {"train/keep/room": 2, "train/drop/beats-none": 38}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bins": 0}, "bins must be from 1 to 1,000,000, got 0"),
        ({"bin_bytes": 0}, "bin_bytes must be at least 1, got 0"),
        ({"holdout_share": 1.0}, "holdout_share must be at least 0 and below 1, got 1.0"),
        ({"holdout_bins": 0}, "holdout_bins must be at least 1, got 0"),
        ({"eoe": "softmax"}, "eoe must be one of energy, histogram, got 'softmax'"),
        ({"policy": "papr"}, "did you mean 'paper'"),
    ],
)
def test_settings_out_of_range_are_refused(opened: Opener, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(**settings)


def test_with_fewer_bins_the_oldest_that_nobody_answered_about_are_let_go_and_logged(opened: Opener) -> None:
    buffer = opened(bins=4)
    for key in range(4):
        buffer.offer(dialogue(key), embedded(key))
    buffer.annotate(Annotation(dialogue_id="d0", verdict=Verdict.ACCEPT))
    with PrivateBuffer(opened.path, bins=2, lexicons=LEXICONS, read_only=True) as reader:
        assert len(reader.dialogues()) == 4, "looking lets nothing go"
    buffer = opened(bins=2)
    assert ids(buffer) == ["d0", "d3"]
    assert [buffer.decisions(key)[0].decision.reason for key in ("d1", "d2")] == ["fewer-bins"] * 2
    assert (buffer.seen, buffer.offer(dialogue(1), embedded(1)).reason) == (4, "fewer-bins")
    assert buffer.offer(dialogue(5), embedded(5)).victim_id == "d0"
    assert ids(opened(bins=9)) == ["d3", "d5"]


def test_with_fewer_bins_the_held_out_part_is_as_if_there_had_never_been_more(tmp_path: Path) -> None:
    def heldout(path: Path, *bins: int) -> set[str]:
        for holdout_bins in bins:
            with PrivateBuffer(path, holdout_share=0.9, holdout_bins=holdout_bins, lexicons=LEXICONS) as buffer:
                for key in range(12):
                    buffer.offer(dialogue(key), embedded(key))
                found = {item.dialogue.dialogue_id for item in buffer.heldout()}
        return found

    assert heldout(tmp_path / "a", 9, 4) == heldout(tmp_path / "b", 4)


def test_the_reading_of_entropy_is_a_setting(opened: Opener) -> None:
    buffer = opened(eoe="histogram")
    buffer.offer(dialogue(1), embedded(1))
    assert buffer.dialogues()[0].scored.eoe == 1.5


# --- hold-out ---


def test_a_share_is_held_out_and_never_among_what_trains(opened: Opener) -> None:
    buffer = opened(bins=500, holdout_share=0.25, holdout_bins=500)
    for key in range(400):
        buffer.offer(dialogue(key), embedded(key))
    held_out = {item.dialogue.dialogue_id for item in buffer.heldout()}
    assert not held_out & set(ids(buffer))
    assert len(held_out) + len(ids(buffer)) == 400
    # Binomial(400, 1/4): mean 100, standard deviation 8.7; four of them.
    assert abs(len(held_out) - 100) < 35


def test_a_question_that_is_asked_again_comes_to_the_same_side(opened: Opener) -> None:
    buffer = opened(bins=500, holdout_share=0.5, holdout_bins=500)
    for key in range(20):
        for form, question in enumerate((f"Where is box {key}?", f"where is  BOX {key}", f"Where is box {key}")):
            buffer.offer(dialogue(f"{key}-{form}", question), embedded(3 * key + form))
        buffer.offer(dialogue(f"dots{key}", "?" * (key + 1)), embedded(100 + key))
    sides = [[item.dialogue for item in part] for part in (buffer.dialogues(), buffer.heldout())]
    numbers = [{each.dialogue_id.split("-")[0] for each in side} for side in sides]
    assert all(numbers)
    assert not numbers[0] & numbers[1]
    for side in sides:
        assert any("dots" in each.dialogue_id for each in side), "a question without words goes by its text"


def test_the_held_out_part_is_bounded_and_independent_of_order_and_response(tmp_path: Path) -> None:
    def hold_out(path: Path, order: list[int], seed: int) -> set[str]:
        with PrivateBuffer(
            path, bins=9, holdout_share=0.5, holdout_bins=6, seed=seed, lexicons=LEXICONS, policy="fifo"
        ) as buffer:
            for key in order:
                buffer.offer(dialogue(key, response=path.name), embedded(key))
            return {item.dialogue.dialogue_id for item in buffer.heldout()}

    order = list(range(60))
    first = hold_out(tmp_path / "a", order, 0)
    assert len(first) == 6
    assert hold_out(tmp_path / "b", order[::-1], 0) == first
    assert hold_out(tmp_path / "c", order, 1) != first


# --- what came of a dialogue ---


def test_annotations_answer_asks_and_outlive_a_restart(opened: Opener) -> None:
    buffer = opened()
    for key in range(3):
        buffer.offer(dialogue(key), embedded(key), day=DAY)
    assert buffer.request(["d2", "d0", "gone", "d2"], day=DAY) == 2
    assert buffer.request(["d0"], day=DAY) == 0
    buffer = opened()
    assert [item.dialogue.dialogue_id for item in buffer.pending()] == ["d2", "d0"]
    said = Annotation(dialogue_id="d2", verdict=Verdict.IDEAL, ideal="Sehr gut 🍲")
    assert buffer.annotate(said, day=DAY)
    assert buffer.annotate(said, day=DAY), "twice is once"
    buffer = opened()
    assert buffer.annotation("d2") == said
    assert buffer.annotation("d0") is None
    assert [item.annotation for item in buffer.dialogues()] == [None, None, said]
    assert [item.dialogue.dialogue_id for item in buffer.pending()] == ["d0"]
    assert buffer.on_day(DAY) == DayCounts(seen=3, kept=3, asked=2, annotated=1)
    assert buffer.on_day(date(2030, 1, 3)) == DayCounts()


def test_an_annotation_of_what_is_gone_is_not_stored(opened: Opener) -> None:
    buffer = opened(bins=1)
    buffer.offer(dialogue(1), embedded(1))
    buffer.offer(dialogue(2), embedded(2))
    assert not buffer.annotate(Annotation(dialogue_id="d1", verdict=Verdict.ACCEPT))
    assert buffer.annotation("d1") is None
    with pytest.raises(InputError, match="the ideal answer has 99999 bytes"):
        buffer.annotate(Annotation(dialogue_id="d2", verdict=Verdict.IDEAL, ideal="x" * 99_999))


def test_children_live_and_die_with_their_source(opened: Opener) -> None:
    buffer = opened(bins=2)
    buffer.offer(dialogue(1), embedded(1))
    buffer.annotate(Annotation(dialogue_id="d1", verdict=Verdict.ACCEPT))
    children = [child(1, 1, "is the soup fine?"), child(1, 0, "a soup 🍲")]
    buffer.store_children("d1", children, {"copy": 2, "empty": 1})
    assert opened(bins=2).children("d1") == children
    buffer = opened(bins=2)
    assert buffer.child_drops("d1") == {"copy": 2, "empty": 1}
    buffer.store_children("d1", children[:1], {})
    assert (buffer.children("d1"), buffer.child_drops("d1")) == (children[:1], {})
    buffer.annotate(Annotation(dialogue_id="d1", verdict=Verdict.ACCEPT))
    assert buffer.children("d1"), "the same verdict again changes nothing"
    buffer.annotate(Annotation(dialogue_id="d1", verdict=Verdict.IDEAL, ideal="other"))
    assert not buffer.children("d1"), "children carry the old answer"
    buffer.store_children("d1", children, {})
    for key in (2, 3):
        buffer.offer(dialogue(key), embedded(key))
    assert not buffer.children("d1"), "their source was replaced"
    with pytest.raises(InputError, match="no dialogue d1"):
        buffer.store_children("d1", children, {})
    with pytest.raises(InputError, match="no child of d2"):
        buffer.store_children("d2", children, {})
    with pytest.raises(InputError, match="larger than a bin"):
        buffer.store_children("d2", [child(2, 0, "x" * 99_999)], {})


def test_values_of_a_caller(opened: Opener) -> None:
    buffer = opened()
    assert buffer.meta("round") is None
    buffer.set_meta("round", '{"number": 1}')
    buffer.set_meta("scrub", "a name the buffer also uses")
    assert opened().meta("round") == '{"number": 1}'
    opened().set_meta("round", None)
    assert opened().meta("round") is None
    assert opened().meta("scrub") == "a name the buffer also uses"


def test_several_values_are_stored_together_or_not_at_all(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = opened()
    buffer.update_meta({"round": "1", "seen": "8"})
    put, calls = buffer_tables.put_value, iter(range(9))

    def fail_at_the_second(*values: object) -> None:
        if next(calls):
            raise sqlite3.OperationalError("disk I/O error")
        put(*values)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr("client.buffer.tables.put_value", fail_at_the_second)
        with pytest.raises(StorageError):
            buffer.update_meta({"round": "2", "seen": "9"})
    assert (buffer.meta("round"), buffer.meta("seen")) == ("1", "8")


def test_children_are_dropped_with_the_word_of_how_the_next_are_written(opened: Opener) -> None:
    buffer = opened()
    for key in range(2):
        buffer.offer(dialogue(key), embedded(key))
        buffer.store_children(f"d{key}", [child(key, 0)], {"copy": 1})
    buffer.drop_children({"written": "anew"})
    buffer = opened()
    assert [buffer.children(f"d{key}") for key in range(2)] == [[], []]
    assert buffer.child_drops("d0") == {}
    assert buffer.meta("written") == "anew"


def test_what_another_model_embedded_is_embedded_again(opened: Opener) -> None:
    def embed(dialogues: Sequence[Dialogue]) -> list[Embedded]:
        told.append(len(dialogues))
        return [embedded(100 + int(each.dialogue_id[1:]), hidden=16, eoe=0.25) for each in dialogues]

    told: list[int] = []
    settings: dict[str, object] = {"bins": 9, "holdout_share": 0.5}
    buffer = opened(**settings)
    assert not buffer.follow_model("one", embed), "there was nothing to embed"
    for key in range(8):
        buffer.offer(dialogue(key), embedded(key))
    assert not buffer.follow_model("one", embed)
    assert buffer.follow_model("two", embed)
    before = state(buffer)
    buffer = opened(**settings)
    assert state(buffer) == before
    items = [*buffer.dialogues(), *buffer.heldout()]
    assert {(len(item.scored.vector), item.scored.eoe) for item in items} == {(16, 0.25)}
    assert not buffer.follow_model("two", embed)
    assert opened(**settings, eoe="histogram").follow_model("two", embed), "another reading is another number"
    assert told == [8, 8]
    assert opened(**settings).offer(dialogue(9), embedded(9, hidden=16)).action is Action.KEEP


def test_what_another_model_says_nothing_of_is_let_go(opened: Opener) -> None:
    buffer = opened()
    for key in range(3):
        buffer.offer(dialogue(key), embedded(key))
    buffer.follow_model("two", lambda each: [Embedded(np.full(4, float(n), np.float32)) for n in range(len(each))])
    assert ids(buffer) == ["d1", "d2"]
    assert buffer.decisions("d0")[0].decision.reason == "bad-embedding"
    before = state(buffer)
    assert state(opened()) == before


def test_an_identifier_is_known_by_its_beginning(opened: Opener) -> None:
    buffer = opened(bins=1)
    for key in ("abc", "abd", "ab"):
        buffer.offer(dialogue(key), embedded(len(key)))
    assert [buffer.identify(prefix) for prefix in ("dabc", "dabd", "dab")] == ["dabc", "dabd", "dab"]
    assert buffer.forget("dab")
    with pytest.raises(InputError, match="2 dialogues match the identifier dab; give more"):
        buffer.identify("dab")
    assert buffer.forget("dabc")
    assert buffer.identify("dab") == "dabd"
    for prefix, shown in (("x", "x"), ("forgotten", "forgotten"), ("%", "of 1 char"), ("my secret", "of 9 characters")):
        with pytest.raises(InputError, match=f"no dialogue matches the identifier {shown}"):
            buffer.identify(prefix)


def test_edited_lexicons_are_followed_at_the_next_opening(opened: Opener) -> None:
    buffer = opened(holdout_share=0.5)
    for key in range(6):
        buffer.offer(dialogue(key, "soup for the doctor and the doctor"), embedded(key))
    assert set(buffer.stats().domains) == {"health"}
    buffer = opened(holdout_share=0.5, lexicons=Lexicons.of({"meals": ["soup"], "x": ["none"]}))
    items = [*buffer.dialogues(), *buffer.heldout()]
    assert {item.scored.domain for item in items} == {"meals"}
    # 1 of 8 words (with the response) in one of two lexicons.
    assert {item.scored.dss for item in items} == {1 / 8 / 2}


# --- freezing ---


@pytest.mark.parametrize("policy", POLICIES)
def test_newcomers_during_a_round_are_decided_after_it_as_if_nothing_was(tmp_path: Path, policy: str) -> None:
    def run(path: Path, freeze: bool) -> list[object]:
        opener = Opener(path)
        buffer = opener(policy=policy, holdout_share=0.2)
        for key in range(10):
            buffer.offer(dialogue(key), embedded(key), day=DAY)
        if freeze:
            with buffer.frozen():
                before = ids(buffer)
                for key in range(10, 20):
                    assert buffer.offer(dialogue(key), embedded(key), day=DAY).action is Action.QUEUE
                assert buffer.offer(dialogue(10), embedded(10)).reason == "frozen"
                assert ids(buffer) == before
                assert buffer.stats().queued == 10
        else:
            for key in range(10, 20):
                buffer.offer(dialogue(key), embedded(key), day=DAY)
        held, *rest = state(buffer)
        opener.close()
        stats = replace(cast("buffer_module.BufferStats", rest[2]), outcomes={})
        return [held, rest[0], rest[1], stats, rest[3]]

    assert run(tmp_path / "a", True) == run(tmp_path / "b", False)


def test_newcomers_wait_through_a_crash(opened: Opener) -> None:
    buffer = opened(bins=2)
    buffer._freezes = 1  # a round that is never left: the process dies in it
    for key in range(3):
        buffer.offer(dialogue(key), embedded(key))
    buffer.annotate(Annotation(dialogue_id="d2", verdict=Verdict.ACCEPT))
    assert ids(buffer) == []
    buffer = opened(bins=2)
    assert ids(buffer) == ["d1", "d2"]
    assert buffer.annotation("d2") is not None, "what was said while it waited stays"
    assert buffer.stats().queued == 0


def test_what_was_corrected_while_it_waited_is_kept(opened: Opener) -> None:
    buffer = opened(bins=1, policy=Stubborn())
    buffer.offer(dialogue(0), embedded(0))
    with buffer.frozen():
        for key in (1, 2):
            buffer.offer(dialogue(key), embedded(key))
        assert buffer.annotate(Annotation(dialogue_id="d1", verdict=Verdict.IDEAL, ideal="yes"))
    assert ids(buffer) == ["d1"]
    assert buffer.annotation("d1") is not None
    assert buffer.decisions("d2")[0].decision.action is Action.DROP


def test_nested_freezes_end_with_the_outer_one(opened: Opener) -> None:
    buffer = opened()
    with buffer.frozen(), buffer.frozen():
        buffer.offer(dialogue(1), embedded(1))
    assert ids(buffer) == ["d1"]
    with buffer.frozen():
        with buffer.frozen():
            buffer.offer(dialogue(2), embedded(2))
        assert ids(buffer) == ["d1"]


def test_the_queue_is_bounded(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.admission.QUEUE_ROWS", 2)
    buffer = opened()
    with buffer.frozen():
        reasons = [buffer.offer(dialogue(key), embedded(key)).reason for key in range(3)]
    assert reasons == ["frozen", "frozen", "queue-full"]
    assert ids(buffer) == ["d0", "d1"]


# --- forgetting ---

CANARY = "xylophone-canary-🐤-7c1e"


def test_forgetting_leaves_no_copy_in_any_file(opened: Opener) -> None:
    buffer = opened(bins=30)
    for key in range(20):
        buffer.offer(dialogue(key, f"filler text number {key}" * 20), embedded(key))
    secret = dialogue("secret", f"soup {CANARY}", f"doctor {CANARY}")
    buffer.offer(secret, embedded(99))
    buffer.annotate(Annotation(dialogue_id="dsecret", verdict=Verdict.IDEAL, ideal=f"ideal {CANARY}"))
    buffer.store_children("dsecret", [child("secret", n, f"{n} {CANARY}" * 50) for n in range(9)], {"copy": 1})
    buffer.request(["dsecret"])
    vector = pack_vector(buffer.dialogues()[-1].scored.vector)
    needles = [CANARY.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")] + [vector, b"dsecret"]

    def found() -> list[bool]:
        content = b"".join(file.read_bytes() for file in opened.path.parent.iterdir())
        return [needle in content for needle in needles]

    assert found() == [True, False, False, True, True], "the search itself works"
    assert buffer.forget("dsecret")
    assert found() == [False] * 5
    assert not buffer.forget("dsecret")
    assert (len(buffer), buffer.children("dsecret"), buffer.decisions("dsecret")) == (20, [], [])
    assert (buffer.annotation("dsecret"), buffer.pending(), buffer.child_drops("dsecret")) == (None, [], {})
    opened.close()
    assert found() == [False] * 5


def test_a_forgotten_victim_is_not_named_and_a_forgotten_bin_is_filled(opened: Opener) -> None:
    buffer = opened(bins=3)
    for key in range(4):
        buffer.offer(dialogue(key), embedded(key))
    assert buffer.forget("d0"), "it was replaced, but the log knew it"
    assert [entry.decision.victim_id for entry in buffer.decisions()] == ["forgotten", None, None]
    assert buffer.forget("d1")
    assert ids(buffer) == ["d2", "d3"]
    assert buffer.offer(dialogue(5), embedded(5)).action is Action.KEEP
    before = state(buffer)
    assert state(opened(bins=3)) == before


def test_several_are_forgotten_together_with_a_word_for_the_caller(opened: Opener) -> None:
    buffer = opened()
    for key in range(3):
        buffer.offer(dialogue(key), embedded(key))
    assert not buffer.forget("nobody", meta={"mark": "1"})
    assert buffer.meta("mark") is None
    assert buffer.forget("d0", "nobody", "d2", meta={"mark": "1"})
    assert (ids(buffer), buffer.meta("mark")) == (["d1"], "1")


def test_forgetting_what_is_held_out_or_waits(opened: Opener) -> None:
    buffer = opened(holdout_share=0.5, holdout_bins=9)
    for key in range(12):
        buffer.offer(dialogue(key), embedded(key))
    keys = [item.dialogue.dialogue_id for item in buffer.heldout()]
    assert len(keys) > 2
    assert buffer.forget(keys[0])
    assert [item.dialogue.dialogue_id for item in buffer.heldout()] == keys[1:]
    with buffer.frozen():
        for key in range(20, 23):
            buffer.offer(dialogue(key), embedded(key))
        assert buffer.forget("d21")
        assert buffer.stats().queued == 2
    assert buffer.stats().queued == 0
    assert not buffer.decisions("d21")


def test_forgetting_that_was_cut_short_is_ended_at_the_next_opening(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = opened()
    buffer.offer(dialogue(1, f"{CANARY} soup"), embedded(1))
    with monkeypatch.context() as patched:
        patched.setattr(buffer._database, "scrub", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            buffer.forget("d1")
    opened()
    assert CANARY.encode() not in b"".join(file.read_bytes() for file in opened.path.parent.iterdir())


def test_a_reader_that_holds_deleted_pages_is_named(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.storage._BUSY_SECONDS", 0.05)
    buffer = opened()
    buffer.offer(dialogue(1), embedded(1))
    reader = sqlite3.connect(opened.path)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM dialogues").fetchall()
    with pytest.raises(StorageError, match="reader still holds"):
        buffer.forget("d1")
    assert len(buffer) == 0
    reader.close()
    assert not buffer.forget("d1"), "it is gone, and now its traces are too"


# --- trouble ---


def one_line(error: FlorilegiumError) -> str:
    text = str(error)
    assert "\n" not in text
    assert "soup" not in text
    assert error.__cause__ is None
    return text


def test_a_full_disk_loses_nothing(opened: Opener) -> None:
    buffer = opened(bins=1000, policy="random")
    buffer.offer(dialogue("first"), embedded(0))
    (pages,) = buffer._database._connection.execute("PRAGMA page_count").fetchone()
    buffer._database._connection.execute(f"PRAGMA max_page_count = {pages + 3}")
    stored = ["dfirst"]

    def fill() -> None:
        for key in range(100):
            buffer.offer(dialogue(key, "soup " * 500), embedded(key), day=DAY)
            stored.append(f"d{key}")

    with pytest.raises(StorageError, match="the disk is full; free some space") as caught:
        fill()
    one_line(caught.value)
    assert ids(buffer) == stored
    assert len(buffer._loaded().held) == len(stored)
    with pytest.raises(StorageError, match="the disk is full"):
        buffer.set_meta("key", "x" * 100_000)
    buffer._database._connection.execute("PRAGMA max_page_count = 1000000")
    key = len(stored) - 1
    assert buffer.offer(dialogue(key, "soup " * 500), embedded(key), day=DAY).action is Action.KEEP
    assert ids(opened(bins=1000)) == [*stored, f"d{key}"]


def test_a_failing_commit_leaves_memory_as_the_file(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = opened(bins=2)
    for key in range(3):
        buffer.offer(dialogue(key), embedded(key))
    before = state(buffer)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr("client.buffer.tables.add_to_day", fail)
        with pytest.raises(StorageError):
            buffer.offer(dialogue(9), embedded(9))
    assert state(buffer) == before
    assert buffer.offer(dialogue(9), embedded(9)).action is Action.REPLACE


@pytest.mark.parametrize("content", [b"not a database at all" * 50, b"SQLite format 3\x00" + bytes(range(256)) * 40])
def test_a_damaged_file_is_named(opened: Opener, content: bytes) -> None:
    opened.path.parent.mkdir()
    opened.path.write_bytes(content)
    with pytest.raises(StorageError, match=r"damaged|not a database|database error") as caught:
        opened()
    one_line(caught.value)
    assert opened.path.read_bytes() == content


def test_a_truncated_file_is_named(opened: Opener) -> None:
    buffer = opened(bins=200)
    for key in range(100):
        buffer.offer(dialogue(key, "soup " * 200), embedded(key))
    opened.close()
    content = opened.path.read_bytes()
    opened.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StorageError, match="damaged") as caught:
        opened(bins=200).dialogues()
    one_line(caught.value)


def test_a_database_of_another_program_is_left_alone(opened: Opener) -> None:
    opened.path.parent.mkdir()
    with sqlite3.connect(opened.path) as other:
        other.execute("CREATE TABLE dialogues (x)")
    other.close()
    with pytest.raises(StorageError, match="of another program"):
        opened()


def test_a_newer_schema_is_refused(opened: Opener) -> None:
    opened()
    opened.close()
    with sqlite3.connect(opened.path) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(StorageError, match="schema version 99, this program knows up to 1; update florilegium"):
        opened()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="Not a directory") as caught:
        PrivateBuffer(tmp_path / "file" / "buffer.sqlite")
    one_line(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        PrivateBuffer(tmp_path / "buffer.sqlite")


def test_a_refusal_of_the_system_is_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("client.storage.os.open", refuse)
    with pytest.raises(StorageError, match="Read-only file system; check the folder"):
        PrivateBuffer(tmp_path / "buffer.sqlite")


def test_a_second_writer_is_refused_until_the_first_ends(opened: Opener) -> None:
    opened()
    with pytest.raises(StorageError, match=rf"in use by process {os.getpid()}; stop that process"):
        PrivateBuffer(opened.path, lexicons=LEXICONS)
    opened.close()
    PrivateBuffer(opened.path, lexicons=LEXICONS).close()


def test_a_foreign_lock_is_waited_for_and_then_named(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.storage._BUSY_SECONDS", 0.05)
    buffer = opened()
    foreign = sqlite3.connect(opened.path, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="another process is using it"):
        buffer.offer(dialogue(1), embedded(1))
    foreign.execute("ROLLBACK")
    foreign.close()
    assert buffer.seen == 0
    assert buffer.offer(dialogue(1), embedded(1)).action is Action.KEEP


def test_a_reader_writes_nothing(opened: Opener) -> None:
    buffer = opened()
    buffer.offer(dialogue(1), embedded(1))
    with PrivateBuffer(opened.path, bins=4, lexicons=LEXICONS, read_only=True) as reader:
        assert ids(reader) == ["d1"]
        buffer.offer(dialogue(2), embedded(2))
        assert ids(reader) == ["d1", "d2"], "a reader sees what was written since"
        with pytest.raises(StorageError, match="it is read-only"):
            reader.set_meta("key", "value")
    with pytest.raises(StorageError, match="no such file"):
        PrivateBuffer(opened.path.parent / "none.sqlite", lexicons=LEXICONS, read_only=True)


def test_files_are_for_their_owner_alone(opened: Opener) -> None:
    old = os.umask(0)
    try:
        buffer = opened()
        buffer.offer(dialogue(1), embedded(1))
        assert stat.S_IMODE(opened.path.parent.stat().st_mode) == 0o700
        files = list(opened.path.parent.iterdir())
        assert len(files) == 4, "the file, its log, the log's index, the lock"
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    finally:
        os.umask(old)


def test_the_file_is_set_up_for_durability_and_erasure(opened: Opener) -> None:
    connection = opened()._database._connection
    values = {
        name: connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "secure_delete", "foreign_keys", "temp_store")
    }
    assert values == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1, "temp_store": 2}


# --- together ---


def test_threads_may_share_a_buffer(opened: Opener) -> None:
    buffer = opened(bins=8)
    failures: list[BaseException] = []

    def work(first: int, act: Callable[[int], object]) -> None:
        try:
            for key in range(first, first + 25):
                act(key)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(0, lambda key: buffer.offer(dialogue(key), embedded(key)))),
        threading.Thread(target=work, args=(100, lambda key: buffer.offer(dialogue(key), embedded(key)))),
        threading.Thread(target=work, args=(0, lambda _: (buffer.dialogues(), buffer.stats()))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert buffer.seen == 50
    assert len(buffer) == 8


def test_a_reading_process_sees_whole_states_while_another_writes(opened: Opener) -> None:
    buffer = opened(bins=3)
    buffer.offer(dialogue(0), embedded(0))
    program = """
import sys
from pathlib import Path
from client.buffer import PrivateBuffer
with PrivateBuffer(Path(sys.argv[1]), bins=3, read_only=True) as reader:
    print("ready", flush=True)
    seen = 0
    while seen < 40:
        held = [item.arrived_index for item in reader.dialogues()]
        assert held == list(range(held[0], held[0] + len(held))) and held[-1] >= seen, held
        seen = held[-1]
print("whole")
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(opened.path)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for key in range(1, 40):
            buffer.offer(dialogue(key), embedded(key))
        assert reader.communicate(timeout=60)[0] == "whole\n"


OPERATIONS = ("offer", "offer", "offer", "again", "annotate", "request", "children", "forget", "reopen", "freeze")


def operate(opener: Opener, count: int, seed: int, bins: int, policy: str) -> None:
    """Do random things to a buffer and hold it to a model in plain dictionaries."""
    rng = random.Random(seed)
    settings: dict[str, object] = {"bins": bins, "policy": policy, "holdout_share": 0.2, "holdout_bins": 3}
    buffer = opener(**settings)
    decided: dict[str, Decision] = {}
    held: set[str] = set()
    annotations: dict[str, Annotation] = {}
    arrivals = 0

    def follow(key: str, decision: Decision) -> None:
        decided[key] = decision
        if decision.victim_id is not None:
            held.remove(decision.victim_id)
            annotations.pop(decision.victim_id, None)
        if decision.action in {Action.KEEP, Action.REPLACE}:
            held.add(key)

    def offer() -> str:
        nonlocal arrivals
        arrivals += 1
        follow(f"d{arrivals}", buffer.offer(dialogue(arrivals, "soup"), embedded(rng.randrange(9), hidden=4), day=DAY))
        return f"d{arrivals}"

    for _ in range(count):
        operation = rng.choice(OPERATIONS)
        key = f"d{rng.randint(1, arrivals + 1)}"
        if operation == "offer":
            offer()
        elif operation == "again" and key in decided:
            assert buffer.offer(dialogue(key[1:]), embedded(0, hidden=4)) == decided[key]
        elif operation == "annotate":
            annotation = Annotation(dialogue_id=key, verdict=Verdict.IDEAL, ideal=str(rng.random()))
            assert buffer.annotate(annotation, day=DAY) == (key in held)
            if key in held:
                annotations[key] = annotation
        elif operation == "request":
            buffer.request([key], day=DAY)
        elif operation == "children" and key in held:
            buffer.store_children(key, [child(key[1:], 0)], {})
        elif operation == "forget" and rng.random() < 0.1:
            assert buffer.forget(key) == (key in decided or any(key == each.victim_id for each in decided.values()))
            decided.pop(key, None)
            held.discard(key)
            annotations.pop(key, None)
            for other, decision in decided.items():
                if decision.victim_id == key:
                    decided[other] = replace(decision, victim_id="forgotten")
        elif operation == "reopen" and rng.random() < 0.1:
            buffer = opener(**settings)
        elif operation == "freeze" and rng.random() < 0.2:
            with buffer.frozen():
                waiting = [offer() for _ in range(rng.randrange(3))]
            for each in waiting:
                follow(each, buffer.decisions(each)[-1].decision)
        present = {item.dialogue.dialogue_id: item for item in [*buffer.dialogues(), *buffer.heldout()]}
        assert set(present) == held
        assert {
            item.dialogue.dialogue_id: item.annotation for item in present.values() if item.annotation
        } == annotations
        assert len(buffer) <= bins
    assert buffer.seen == arrivals
    with PrivateBuffer(opener.path, bins=bins, lexicons=LEXICONS, read_only=True) as reader:
        assert state(reader) == state(buffer)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.sampled_from(sorted(POLICIES)))
def test_random_operations(tmp_path_factory: pytest.TempPathFactory, seed: int, bins: int, policy: str) -> None:
    opener = Opener(tmp_path_factory.mktemp("buffer") / "buffer.sqlite")
    operate(opener, 60, seed, bins, policy)
    opener.close()


@pytest.mark.slow
def test_ten_thousand_random_operations(opened: Opener) -> None:
    operate(opened, 10_000, 0, 16, "improved")


KILLED = """
import sys, os
import numpy as np
from pathlib import Path
sys.path.insert(0, "tests/client")
from client.buffer import PrivateBuffer
from client.dialogue import Annotation, Dialogue, Verdict
class Embedded:
    eoe_energy = eoe_histogram = 0.5
    def __init__(self, key):
        self.vector = np.random.default_rng(key).normal(size=8)
buffer = PrivateBuffer(Path(sys.argv[1]), bins=4, policy="fifo", holdout_share=0)
for key in range(int(sys.argv[2]), 10**6):
    buffer.offer(Dialogue(question="soup", response="", dialogue_id=f"d{key}"), Embedded(key))
    print("offered", key, flush=True)
    if key % 3 == 0:
        buffer.annotate(Annotation(dialogue_id=f"d{key}", verdict=Verdict.ACCEPT))
        print("annotated", key, flush=True)
"""


def test_killed_at_any_moment_nothing_acknowledged_is_lost(opened: Opener) -> None:
    rng, first = random.Random(0), 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(opened.path), str(first)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            acknowledged = [process.stdout.readline().split() for _ in range(rng.randint(1, 30))]
            process.kill()
            acknowledged += [line.split() for line in process.stdout.read().splitlines() if line.count(" ") == 1]
        offered = [int(key) for kind, key in acknowledged if kind == "offered"]
        annotated = [int(key) for kind, key in acknowledged if kind == "annotated"]
        buffer = opened()
        newest = buffer.seen - 1
        assert newest >= offered[-1]
        assert ids(buffer) == [f"d{key}" for key in range(max(0, newest - 3), newest + 1)]
        assert all(buffer.annotation(f"d{key}") for key in annotated if key > newest - 4)
        opened.close()
        first = newest + 1
