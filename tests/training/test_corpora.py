import json
from pathlib import Path

from training import corpora
from training.corpora import Turn, chat, clean, held_out_documents, training_documents
from training.splits import persona_user_split


def test_clean_takes_the_noise_and_nothing_else() -> None:
    assert clean("What is (are) gout ? ?") == "What is (are) gout?"
    assert clean("a  b \u00a0c.") == "a b c."
    assert clean("wait... what?!") == "wait... what?!"


def test_the_first_speaker_is_the_user_and_neighbours_merge() -> None:
    turns = chat([("bot", "Hi."), ("bot", "Hello?"), ("me", " "), ("me", "Yes."), ("bot", "Good.")])
    assert turns == (Turn("user", "Hi. Hello?"), Turn("assistant", "Yes."), Turn("user", "Good."))


def test_a_row_trains_or_is_held_out_and_never_both(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n}?", "response": f"It is {n}."} for n in range(300)]
    (tmp_path / "dolly.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    trained = {document.identity for document in training_documents(tmp_path, "dolly")}
    held_out = {document.identity for document in held_out_documents(tmp_path, "dolly")}
    assert trained
    assert held_out
    assert not trained & held_out
    assert len(trained | held_out) == 300


def test_no_dialogue_of_an_evaluated_user_trains(tmp_path: Path) -> None:
    personas = [[f"I like the number {n}."] for n in range(12)]
    rows = [
        {
            "dialogue_id": f"{a}-{b}",
            "persona1": personas[a],
            "persona2": personas[b],
            "turns": [{"user": 1, "text": f"I am {a}."}, {"user": 2, "text": f"I am {b}."}],
        }
        for a in range(12)
        for b in range(12)
        if a != b
    ]
    (tmp_path / "persona_chat.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    trained = list(training_documents(tmp_path, "persona_chat"))
    held_out = list(held_out_documents(tmp_path, "persona_chat"))
    assert trained
    assert held_out
    sides = {str(n): persona_user_split(persona) for n, persona in enumerate(personas)}
    assert {sides[n] for document in trained for n in document.identity.split("-")} == {"train"}
    assert {sides[n] for document in held_out for n in document.identity.split("-")} == {"evaluate"}


def test_every_reader_has_a_name() -> None:
    assert set(corpora.READERS) == {
        "dolly", "persona_chat", "medquad_short", "mts_dialog", "schema_guided", "taskmaster4",
        "topical_chat", "tinystories",
    }  # fmt: skip
