from __future__ import annotations

import json
import re
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.annotation import LONGEST_IDEAL_BYTES, judge
from client.dialogue import Dialogue, Verdict
from florilegium.errors import ConfigError, InputError
from simulation.overlap import KnownTexts
from simulation.readers import (
    Assembly,
    Columns,
    persona_split,
    read_hub,
    read_users,
)
from simulation.readers.assembly import Exchange, assemble, normalized
from simulation.readers.records import MAX_LINE_BYTES
from simulation.users import UserData
from training.splits import persona_user_split

CORPORA = Path(__file__).parents[3] / "shared" / "data"
ALL = Assembly(heldout_share=0.0)


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def log_rows(users: int = 4, turns: int = 100) -> list[object]:
    return [
        {"user_id": f"anna{index % users}", "question": f"Is {index} enough?", "response": f"Answer {index}."}
        for index in range(users * turns)
    ]


def texts(user: UserData) -> tuple[list[str], list[str]]:
    return [turn.question for turn in user.stream], [example.question for example in user.heldout]


# --- rows ------------------------------------------------------------------------------------------------------


def test_rows_become_users_in_order_of_appearance(tmp_path: Path) -> None:
    users = read_users(write(tmp_path / "log.jsonl", log_rows()))
    assert len(users) == 4
    for number, user in enumerate(users):
        streamed, held = texts(user)
        positions = [int(text.split()[1]) for text in streamed]
        assert positions == sorted(positions)
        assert {position % 4 for position in positions} == {number}
        assert len(streamed) + len(held) == 100
        assert set(streamed).isdisjoint(held)
        # 100 questions held out with probability 0.2: four standard deviations are 16
        assert 4 <= len(held) <= 36
        assert set(user.heldout_kinds) == {example.example_id for example in user.heldout}


def test_a_preferred_answer_frees_the_response(tmp_path: Path) -> None:
    rows: list[object] = [
        {"user_id": 7, "question": "Q1", "response": "ideal"},
        {"user_id": 7, "question": "Q2", "response": "given", "preferred": "wanted"},
        {"user_id": 7, "question": "Q3", "response": "ideal", "preferred": None},
        {"user_id": 7, "question": "Q4", "preferred": "wanted"},
    ]
    (user,) = read_users(write(tmp_path / "log.jsonl", rows), assembly=ALL)
    assert [(turn.preferred, turn.response) for turn in user.stream] == [
        ("ideal", None),
        ("wanted", "given"),
        ("ideal", None),
        ("wanted", None),
    ]


def test_a_file_may_say_what_is_held_out(tmp_path: Path) -> None:
    asked = ["When does the train leave?", "What is my cat called?", "Who mended the roof?"]
    rows: list[object] = [
        {
            "user_id": "u",
            "question": question,
            "preferred": "So.",
            "part": "heldout" if question == asked[1] else "stream",
        }
        for question in asked
    ]
    (user,) = read_users(write(tmp_path / "log.jsonl", rows), assembly=ALL)
    assert texts(user) == ([asked[0], asked[2]], [asked[1]])
    near_copy = {"user_id": "u", "question": "who mended the roof", "preferred": "He.", "part": "heldout"}
    (user,) = read_users(write(tmp_path / "log.jsonl", [*rows, near_copy]), assembly=ALL)
    assert texts(user)[1] == [asked[1]]


def test_the_split_of_a_row_depends_on_nothing_else_in_the_file(tmp_path: Path) -> None:
    rows = log_rows()
    whole = read_users(write(tmp_path / "whole.jsonl", rows))
    part = read_users(write(tmp_path / "part.jsonl", rows[200:][::-1]))
    held = {user.user_id: set(texts(user)[1]) for user in whole}
    for user in part:
        assert set(texts(user)[1]) <= held[user.user_id]
        assert held[user.user_id].isdisjoint(texts(user)[0])


@given(
    rows=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["Why?", "why", "How so?", "🙂", "你好吗？", "x y"])
                            | st.text(min_size=1).filter(lambda text: bool(text.strip()))), min_size=1, max_size=30),
    share=st.floats(0, 0.9),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_no_held_out_question_is_a_copy_of_a_streamed_one(rows: list[tuple[str, str]], share: float) -> None:
    exchanges = [
        Exchange(user=user, question=question, preferred=str(index), unit=f"{user}\n{normalized(question)}")
        for index, (user, question) in enumerate(rows)
    ]
    for user in assemble(exchanges, Assembly(heldout_share=share, min_turns=0)):
        known = KnownTexts(texts(user)[0])
        streamed, held = (list(map(normalized, side)) for side in texts(user))
        assert not any(map(known.give_away, texts(user)[1]))
        assert len(set(held)) == len(held)
        asked = {normalized(question) for owner, question in rows if owner == user.user_id}
        assert {*streamed, *held} <= asked
        assert all(map(known.give_away, asked.difference(held)))
        # The last answer to a question held out twice is the one that counts.
        newest = {normalized(question): str(i) for i, (owner, question) in enumerate(rows) if owner == user.user_id}
        assert all(example.response == newest[normalized(example.question)] for example in user.heldout)


def test_text_of_any_script_survives(tmp_path: Path) -> None:
    written = ["🙂👩‍👩‍👧", "שלום, מה שלומך?", "我明天几点上班？", "naïve Ωμέγα", "line\u2028separator"]
    rows: list[object] = [{"user_id": "u", "question": text, "response": text} for text in written]
    (user,) = read_users(write(tmp_path / "log.jsonl", rows), assembly=ALL)
    assert texts(user)[0] == written


def test_what_no_encoding_can_write_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"user_id": "u", "question": "half \\ud83d pair", "response": "fine"}\n')
    (user,) = read_users(path, assembly=ALL)
    assert user.stream[0].question == "half \ufffd pair"
    user.stream[0].question.encode()


@pytest.mark.parametrize("text", ["x" * 1_000_000, "é" * 1_000_000, "xж" * 4_200, "我" * 4_200, "word " * 200_000])
def test_a_long_text_is_cut_to_what_a_device_takes_as_an_ideal_answer(tmp_path: Path, text: str) -> None:
    rows: list[object] = [{"user_id": "u", "question": text, "response": text}]
    (user,) = read_users(write(tmp_path / "log.jsonl", rows), assembly=ALL)
    (turn,) = user.stream
    assert text.startswith(turn.preferred)
    assert LONGEST_IDEAL_BYTES - 4 < len(turn.preferred.encode()) <= LONGEST_IDEAL_BYTES
    assert turn.question == turn.preferred
    judge(Dialogue(question=turn.question, response="r"), Verdict.IDEAL, turn.preferred)


def test_a_line_that_would_fill_the_memory_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    good = '{"user_id": "u", "question": "q", "response": "r"}\n'
    huge = json.dumps({"user_id": "u", "question": "q", "response": "r" * 3 * MAX_LINE_BYTES}) + "\n"
    fitting = good.rstrip() + " " * (MAX_LINE_BYTES - len(good)) + "\n"
    path.write_text(good + huge + fitting + good + huge.rstrip())
    with pytest.raises(
        InputError, match=rf"2 malformed lines of 5: line 2: the line must have at most {MAX_LINE_BYTES} b"
    ):
        read_users(path)
    (user,) = read_users(path, assembly=ALL, skip_malformed=True)
    assert len(user.stream) == 3


def test_bad_lines_are_named_by_number_field_and_rule(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    good = b'{"user_id": "u", "question": "secret words", "response": "r"}\n'
    path.write_bytes(
        b"\xef\xbb\xbf" + good + b"\n"
        b'{"user_id": "u", "question": "  ", "response": "r"}\n'
        b'{"user_id": "u", "question": "secret words"}\n'
        b'{"user_id": "u", "question": 5, "response": "secret words"}\n'
        b"not json secret words\n"
        b'["secret words"]\n'
        b'{"user_id": "u", "question": "\xff\xfe", "response": "r"}\n'
        b'{"user_id": true, "question": "q", "response": "r"}\n' + b"[" * 100_000 + b"\n"
    )
    with pytest.raises(InputError) as caught:
        read_users(path)
    message = str(caught.value)
    assert "8 malformed lines of 9" in message
    assert "line 3: field question must have a visible character" in message
    assert "line 4: field response is missing" in message
    assert "line 5: field question must be a text, got int" in message
    assert "line 6: the line must be JSON" in message
    assert "line 7: the line must be a JSON object, got list" in message
    assert "3 more" in message
    assert "line 8" not in message
    assert "secret words" not in message


def test_malformed_lines_are_counted_when_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"user_id": "u", "question": "q", "response": "r"}\nnot json\n{}\n')
    (user,) = read_users(path, assembly=ALL, skip_malformed=True)
    assert len(user.stream) == 1
    assert "2 malformed lines of 3" in caplog.text


@pytest.mark.parametrize("content", ["", "\n\n", None, "[1]\n"])
def test_a_file_without_anything_to_read_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"log\.jsonl"):
        read_users(path, skip_malformed=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"user_id": "annacanary", "question": "q", "response": "r"},
        {"user_id": "anna@canary.example", "question": "q", "response": "r", "category": "of CANARY"},
        {"user_id": 1234567, "question": "q", "response": "r", "kind": ["canary"]},
        {"question": "q", "response": "r", "category": "My name is Canary."},
        {"question": "q", "response": "r", "subset": ["canary", "canary bird"]},
        {"user_id": "canary", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]},
        {"services": ["Canary_1"], "turns": ["q", "r"]},
        {"emotion": "canary", "turns": ["q", "r"]},
        {
            "persona1": ["I am Canary."],
            "persona2": ["Canary."],
            "turns": [{"user": 1, "text": "q"}, {"user": 2, "text": "r"}],
        },
    ],
)
def test_what_reports_show_of_a_user_holds_no_text_of_the_file(tmp_path: Path, fields: dict[str, object]) -> None:
    for user in read_users(write(tmp_path / "log.jsonl", [fields]), assembly=ALL, split="all"):
        assert re.fullmatch(r"(user|persona)-[0-9a-f]{12,16}", user.user_id)
        assert {turn.kind for turn in user.stream} <= {"row", "dialogue", "persona"}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "row"), ({"kind": "near-duplicate"}, "near-duplicate"), ({"category": "Open_QA"}, "open_qa"),
        ({"kind": "view", "category": "open_qa"}, "view"), ({"kind": "x" * 33}, "row"), ({"kind": "é"}, "row"),
    ],
)  # fmt: skip
def test_a_kind_is_a_short_code(tmp_path: Path, fields: dict[str, object], kind: str) -> None:
    row: list[object] = [{"user_id": "u", "question": "q", "response": "r", **fields}]
    (user,) = read_users(write(tmp_path / "log.jsonl", row), assembly=ALL)
    assert user.stream[0].kind == kind


@pytest.mark.parametrize(
    "fields",
    [
        {"question": "q", "response": "r", "category": "half \\ud83d pair"},
        {"question": "q", "response": "r", "user_id": "half \\ud83d pair"},
        {"services": ["\\udc00"], "turns": ["q", "r"]},
        {"emotion": "\\udc00", "turns": ["q", "r"]},
        {
            "persona1": ["\\ud83d"],
            "persona2": ["\\udc00", "x"],
            "turns": [{"user": 1, "text": "q"}, {"user": 2, "text": "r"}],
        },
    ],
)
def test_no_field_lets_half_a_surrogate_pair_through(tmp_path: Path, fields: dict[str, object]) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(fields).replace("\\\\u", "\\u") + "\n")
    assert read_users(path, split="all", assembly=ALL)


def test_users_can_be_limited_and_are_drawn_by_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", log_rows(users=20, turns=5))
    drawn = [[u.user_id for u in read_users(path, assembly=Assembly(max_users=6, seed=seed))] for seed in range(3)]
    everyone = [user.user_id for user in read_users(path)]
    assert all(len(names) == 6 and names == sorted(names, key=everyone.index) for names in drawn)
    assert drawn[0] != drawn[1]
    assert drawn[0] == [u.user_id for u in read_users(path, assembly=Assembly(max_users=6, seed=0))]


def test_users_with_too_little_are_left_out(tmp_path: Path) -> None:
    rows = [*log_rows(users=1, turns=50), {"user_id": "rare", "question": "q", "response": "r"}]
    path = write(tmp_path / "log.jsonl", rows)
    assert len(read_users(path, assembly=Assembly(min_turns=10, min_heldout=1))) == 1
    with pytest.raises(InputError, match="min_turns"):
        read_users(path, assembly=Assembly(min_turns=100))


@pytest.mark.parametrize(("name", "value"), [("heldout_share", 1.0), ("heldout_share", -0.1), ("max_users", 0)])
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        Assembly(**{name: value})  # type: ignore[arg-type]


# --- personas --------------------------------------------------------------------------------------------------


def persona(letter: str) -> list[str]:
    return [f"I am {letter}.", f"I like {letter} tea.", "I have a cat."]


def persona_rows(count: int = 40) -> list[object]:
    """Write dialogues between five personas; persona A lists its sentences in another order every time."""
    letters = "ABCDE"
    return [
        {
            "dialogue_id": index,
            "persona1": persona(letters[index % 5])[:: 1 if index % 2 else -1],
            "persona2": persona(letters[(index + 1 + index % 3) % 5]),
            "turns": [
                {"user": 1, "text": "Hi!"},
                {"user": 2, "text": "Hello!"},
                {"user": 1, "text": f"First asks {index}?"},
                {"user": 1, "text": "Tell me."},
                {"user": 2, "text": f"Second says {index}."},
                {"user": 1, "text": f"First replies {index}."},
                {"user": 2, "text": f"Until {index}?"},
                {"user": 1, "text": "See you."},
            ],
        }
        for index in range(count)
    ]


def test_a_user_is_a_set_of_sentences_and_answers_the_other(tmp_path: Path) -> None:
    path = write(tmp_path / "talks.jsonl", persona_rows())
    users = read_users(path, split="all", assembly=ALL)
    assert len(users) == 5
    pairs = {(turn.question, turn.preferred) for user in users for turn in user.stream}
    assert ("Hi!", "Hello!") in pairs
    assert ("First asks 3? Tell me.", "Second says 3.") in pairs
    assert ("Second says 3.", "First replies 3.") in pairs
    # Each of 40 dialogues gives three answers of either speaker.
    assert sum(len(user.stream) for user in users) == 240
    assert all(turn.response is None for user in users for turn in user.stream)


def test_the_split_of_users_is_the_documented_rule() -> None:
    for sentences in ([], ["one"], ["b", "a"], ["a", "b", "a"], ["日本", "é"], persona("A"), persona("B")):
        text = "\n".join(sorted(set(sentences))).encode()
        number = int.from_bytes(blake2b(text, digest_size=8, person=b"flori-split").digest(), "big") % 100
        assert persona_split(sentences) == ("train" if number < 50 else "evaluate")


@given(st.lists(st.text(max_size=8), max_size=5))
def test_the_readers_and_the_training_split_users_alike(sentences: list[str]) -> None:
    assert persona_split(sentences) == persona_user_split(sentences)


def test_only_evaluated_users_are_read_unless_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "talks.jsonl", persona_rows())
    sides = {letter: persona_split(persona(letter)) for letter in "ABCDE"}
    assert set(sides.values()) == {"train", "evaluate"}
    by_side = {side: read_users(path, split=side, assembly=ALL) for side in ("train", "evaluate", "all")}
    assert len(by_side["evaluate"]) == list(sides.values()).count("evaluate")
    assert by_side["evaluate"] == read_users(path, assembly=ALL)
    train, evaluate = ({user.user_id for user in by_side[side]} for side in ("train", "evaluate"))
    assert train.isdisjoint(evaluate)
    assert train | evaluate == {user.user_id for user in by_side["all"]}
    with pytest.raises(ConfigError, match="split"):
        read_users(path, split="test")  # type: ignore[arg-type]


def test_dialogues_are_held_out_whole_and_for_both_speakers(tmp_path: Path) -> None:
    path = write(tmp_path / "talks.jsonl", persona_rows(200))
    users = read_users(path, split="all")
    streamed = set(chain.from_iterable((turn.question, turn.preferred) for user in users for turn in user.stream))
    held = set(chain.from_iterable((ex.question, ex.response) for user in users for ex in user.heldout))
    assert held
    assert not held & streamed
    assert "Hello!" not in held
    numbers = {int(text.split()[-1][:-1]) for text in held if text.startswith("Second says")}
    # 200 dialogues with probability 0.2: four standard deviations are 23
    assert 17 <= len(numbers) <= 63


# --- other dialogues and question-answer files -------------------------------------------------------------------


def test_roles_and_services(tmp_path: Path) -> None:
    rows: list[object] = [
        {
            "dialogue_id": f"d{index}",
            "services": ["Buses_1" if index % 2 else "Hotels_2", "Banks_1"],
            "turns": [
                {"role": "user", "text": f"I want {index}."},
                {"role": "assistant", "text": f"Here is {index}."},
                {"role": "user", "text": "Thanks."},
                {"role": "assistant", "text": f"Bye {index}."},
            ],
        }
        for index in range(4)
    ]
    users = read_users(write(tmp_path / "t.jsonl", rows), assembly=ALL)
    assert len(users) == 2
    assert [(turn.question, turn.preferred) for turn in users[0].stream] == [
        ("I want 0.", "Here is 0."), ("Thanks.", "Bye 0."), ("I want 2.", "Here is 2."), ("Thanks.", "Bye 2."),
    ]  # fmt: skip


def test_an_assistant_who_opens_is_still_the_one_who_answers(tmp_path: Path) -> None:
    turns = [{"role": r, "text": t} for r, t in [("assistant", "Welcome."), ("user", "Tea."), ("assistant", "Done.")]]
    (user,) = read_users(write(tmp_path / "t.jsonl", [{"dialogue_id": "d", "turns": turns}]), assembly=ALL)
    assert [(turn.question, turn.preferred) for turn in user.stream] == [("Tea.", "Done.")]


def test_dialogues_without_an_owner_are_shared_out_among_pseudo_users(tmp_path: Path) -> None:
    rows: list[object] = [
        {
            "dialogue_id": f"d{index}",
            "turns": [
                {"speaker": "agent_1", "text": f"Did you know {index}?", "sentiment": "Curious"},
                {"speaker": "agent_2", "text": f"No, not {index}.", "sentiment": "Happy"},
            ],
        }
        for index in range(60)
    ]
    path = write(tmp_path / "t.jsonl", rows)
    users = read_users(path, assembly=ALL, pseudo_users=4)
    assert {user.user_id for user in users} == {f"pseudo-{number:03d}" for number in range(4)}
    assert sum(len(user.stream) for user in users) == 60
    with pytest.raises(ConfigError, match="pseudo_users"):
        read_users(path, pseudo_users=0)


def test_turns_may_be_plain_texts_owned_by_an_emotion(tmp_path: Path) -> None:
    rows: list[object] = [
        {"dialogue_id": "a", "emotion": "proud", "turns": ["I won!", "Great!", "Yes.", " ", "Enjoy it."]},
        {"dialogue_id": "b", "emotion": "afraid", "turns": ["A noise.", "Where?"]},
        {"dialogue_id": "c", "emotion": "afraid", "turns": []},
    ]
    users = read_users(write(tmp_path / "t.jsonl", rows), assembly=ALL)
    # The empty turn is passed over; the texts before and after it are of one speaker, the asking one.
    assert [(turn.question, turn.preferred) for turn in users[0].stream] == [("I won!", "Great!")]
    assert len(users) == 2


def test_a_dialogue_belongs_to_the_user_it_names(tmp_path: Path) -> None:
    rows: list[object] = [
        {"user_id": f"u{index % 2}", "services": ["Banks_1"], "turns": [f"Pay {index}.", "Done."]} for index in range(6)
    ]
    rows += [{"user_id": "u1", "question": "Pay 7.", "response": "Done."}]
    users = read_users(write(tmp_path / "t.jsonl", rows), assembly=ALL)
    assert [texts(user)[0] for user in users] == [
        ["Pay 0.", "Pay 2.", "Pay 4."],
        ["Pay 1.", "Pay 3.", "Pay 5.", "Pay 7."],
    ]


def test_chats_of_messages_are_dialogues_without_what_the_system_says(tmp_path: Path) -> None:
    chat = [("system", "Be kind."), ("user", "Tea?"), ("assistant", "Green."), ("user", "Why?"), ("assistant", "So.")]
    messages = [{"role": role, "content": text} for role, text in chat]
    rows: list[object] = [{"messages": messages, "user_id": "u"}, {"messages": messages}]
    users = read_users(write(tmp_path / "t.jsonl", rows), assembly=ALL)
    assert len(users) == 2
    for user in users:
        assert [(turn.question, turn.preferred) for turn in user.stream] == [("Tea?", "Green."), ("Why?", "So.")]


@pytest.mark.parametrize(
    "categories",
    [
        [{"category": "open_qa"}, {"category": "closed_qa"}],
        [{"domain": "outlook", "topic": "x"}, {"domain": "exams", "topic": "x"}],
        [{"subset": ["claude45"]}, {"subset": ["claude45", "random"]}],
    ],
)
def test_categories_are_pseudo_users(tmp_path: Path, categories: list[dict[str, object]]) -> None:
    rows: list[object] = [{"question": f"Q {index}", "response": "R", **categories[index % 2]} for index in range(6)]
    users = read_users(write(tmp_path / "q.jsonl", rows), assembly=ALL)
    assert [texts(user)[0] for user in users] == [["Q 0", "Q 2", "Q 4"], ["Q 1", "Q 3", "Q 5"]]


def test_questions_without_a_category_are_shared_out(tmp_path: Path) -> None:
    rows: list[object] = [{"question": f"Q {index}", "response": "R"} for index in range(50)]
    users = read_users(write(tmp_path / "q.jsonl", rows), assembly=ALL, pseudo_users=3)
    assert {user.user_id for user in users} == {f"pseudo-{number:03d}" for number in range(3)}


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"text": "a story"}, "must have the fields"),
        ({"turns": "talk"}, "field turns must be a list, got str"),
        ({"turns": [3]}, "turn 0 must be a text"),
        ({"turns": [{"text": "x"}]}, "one of role, speaker, user"),
        ({"persona1": "me", "persona2": [], "turns": []}, "field persona1 must be a list of texts"),
        ({"question": "q"}, "field response is missing"),
        ({"question": "q", "preferred": "p", "part": "held-out"}, "field part must be stream or heldout"),
        ({"question": "q", "preferred": "p", "response": 3}, "field response must be a text, got int"),
        ({"messages": {}}, "field messages must be a list, got dict"),
        ({"messages": [{"role": "user"}]}, "turn 0 must be a text, or have a text or content"),
        ({"turns": ["q", "r"], "user_id": None}, "field user_id must be a text, got NoneType"),
    ],
)
def test_unknown_shapes_are_refused_with_the_rule(tmp_path: Path, row: dict[str, object], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        read_users(write(tmp_path / "x.jsonl", [row]))


# --- hub datasets ----------------------------------------------------------------------------------------------


def test_partitions_of_a_dataset_are_users(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    partitioners = pytest.importorskip("flwr_datasets.partitioner")
    rows = [{"instruction": f"Do {i}.", "output": f"Done {i}.", "author": f"a{i % 3}"} for i in range(30)]
    dataset = datasets.Dataset.from_list(rows)
    columns = Columns(question="instruction", response="output")

    iid = read_hub(dataset, partitioner=partitioners.IidPartitioner(5), columns=columns, assembly=ALL)
    assert [user.user_id for user in iid] == [f"partition-{number:04d}" for number in range(5)]
    assert sorted(turn.question for user in iid for turn in user.stream) == sorted(row["instruction"] for row in rows)

    dataset.save_to_disk(tmp_path / "flat")
    natural = partitioners.NaturalIdPartitioner("author")
    users = read_hub(str(tmp_path / "flat"), partitioner=natural, columns=columns, assembly=ALL)
    assert [{int(turn.question[3:-1]) % 3 for turn in user.stream} for user in users] == [{0}, {1}, {2}]

    datasets.DatasetDict({"test": dataset}).save_to_disk(tmp_path / "split")
    for split, expected in (("test", 30), ("train", None)):
        partitioner = partitioners.IidPartitioner(2)
        if expected is None:
            with pytest.raises(InputError, match="no split 'train'"):
                read_hub(str(tmp_path / "split"), partitioner=partitioner, split=split, columns=columns)
        else:
            users = read_hub(
                str(tmp_path / "split"), partitioner=partitioner, split=split, columns=columns, assembly=ALL
            )
            assert sum(len(user.stream) for user in users) == expected
    with pytest.raises(InputError, match="row 0 of partition-0000: field question is missing"):
        read_hub(dataset, partitioner=partitioners.IidPartitioner(2))


# --- the real files --------------------------------------------------------------------------------------------

needs_corpora = pytest.mark.skipif(not CORPORA.is_dir(), reason=f"no corpora in ../{CORPORA.parent.name}/data")


@needs_corpora
def test_real_personas() -> None:
    path = CORPORA / "persona_chat.jsonl"
    users = {split: read_users(path, split=split, assembly=Assembly(min_turns=0)) for split in ("train", "evaluate")}
    # Three of 1,000 dialogues are empty; all 541 personas speak in others as well.
    assert len(users["train"]) + len(users["evaluate"]) == 541
    assert 220 <= len(users["evaluate"]) <= 320
    for user in users["evaluate"]:
        known = KnownTexts(text for turn in user.stream for text in (turn.question, turn.preferred))
        held = (text for example in user.heldout for text in (example.question, example.response))
        assert not any(map(known.give_away, held))


@needs_corpora
@pytest.mark.parametrize(
    ("name", "users"),
    [("empathetic_dev", 32), ("topical_chat", 20), ("taskmaster4", 20), ("dolly", 8), ("medquad_short", 13)],
)
def test_other_real_files(name: str, users: int) -> None:
    found = read_users(CORPORA / f"{name}.jsonl", assembly=Assembly(min_turns=20))
    assert len(found) == users
    assert all(user.heldout for user in found)
