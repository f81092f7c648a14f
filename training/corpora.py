"""Read the corpora as documents: chats between a user and an assistant, or plain text.

Every reader cleans obvious noise (doubled spaces, a space before a question mark), merges neighbouring turns of one
speaker and makes the first speaker the user. A `Document` remembers the corpus and the identity it came from, so
that `splits` decides about it and nothing else does.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from training.splits import is_held_out, persona_user_split

Role = Literal["system", "user", "assistant", "text"]
Row: TypeAlias = dict[str, object]

_SPACES: Final = re.compile(r"[ \t\u00a0]+")
_SPACE_BEFORE_MARK: Final = re.compile(r" +([?.!,;:])(?=\s|$)")
_REPEATED_QUESTION_MARK: Final = re.compile(r"\?(\s*\?)+")
_DOCTOR_TURN: Final = re.compile(r"^(Doctor|Patient|Guest_family\w*|Guest_clinician\w*):\s*", re.M)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; `text` is the role of a plain document."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """One training document and where it came from."""

    corpus: str
    identity: str
    turns: tuple[Turn, ...]

    @property
    def text_bytes(self) -> int:
        """Count the UTF-8 bytes of the text itself, without turn markers."""
        return sum(len(turn.text.encode("utf-8")) for turn in self.turns)


def clean(text: str) -> str:
    """Return text without doubled spaces, spaces before punctuation and repeated question marks.

    >>> clean("What  is Lyme disease ? ?")
    'What is Lyme disease?'
    """
    text = _SPACES.sub(" ", text.replace("\r", ""))
    text = _SPACE_BEFORE_MARK.sub(r"\1", text)
    return _REPEATED_QUESTION_MARK.sub("?", text).strip()


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON lines file."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            assert isinstance(row, dict)
            yield row


def chat(spoken: list[tuple[str, str]]) -> tuple[Turn, ...]:
    """Make (speaker, text) pairs a chat: merge one speaker's neighbouring turns, first speaker is the user."""
    merged: list[tuple[str, str]] = []
    for speaker, raw in spoken:
        text = clean(raw)
        if not text:
            continue
        if merged and merged[-1][0] == speaker:
            merged[-1] = (speaker, f"{merged[-1][1]} {text}")
        else:
            merged.append((speaker, text))
    # Speakers past the second (a relative at the doctor's) talk as whoever's turn it is.
    return tuple(Turn("assistant" if i % 2 else "user", text) for i, (_, text) in enumerate(merged))


def _string(row: Row, key: str) -> str:
    value = row[key]
    return value if isinstance(value, str) else str(value)


def _spoken(row: Row, speaker: str) -> list[tuple[str, str]]:
    turns = row["turns"]
    assert isinstance(turns, list)
    return [(str(turn[speaker]), str(turn["text"])) for turn in turns]


def _sentences(row: Row, key: str) -> list[str]:
    value = row[key]
    assert isinstance(value, list)
    return [str(sentence) for sentence in value]


def _question_and_answer(corpus: str, row: Row) -> Iterator[Document]:
    question, answer = clean(_string(row, "question")), clean(_string(row, "response"))
    # The question is the identity: rows that repeat a question stay on one side.
    yield Document(corpus, question.lower(), (Turn("user", question), Turn("assistant", answer)))


def dolly(row: Row) -> Iterator[Document]:
    """Read a row of databricks-dolly-15k."""
    return _question_and_answer("dolly", row)


def medquad_short(row: Row) -> Iterator[Document]:
    """Read a row of MedQuAD."""
    return _question_and_answer("medquad_short", row)


def mts_dialog(row: Row) -> Iterator[Document]:
    """Read a row of MTS-Dialog: the doctor asks, the patient answers, either may be the assistant."""
    pieces = _DOCTOR_TURN.split(_string(row, "dialogue"))[1:]
    spoken = list(zip(pieces[::2], pieces[1::2], strict=True))
    turns = chat(spoken)
    if len(turns) > 1:
        yield Document("mts_dialog", _string(row, "dialogue"), turns)


def schema_guided(row: Row) -> Iterator[Document]:
    """Read a row of Schema-Guided Dialogue."""
    yield Document("schema_guided", _string(row, "dialogue_id"), chat(_spoken(row, "role")))


def taskmaster4(row: Row) -> Iterator[Document]:
    """Read a row of Taskmaster-4."""
    turns = chat(_spoken(row, "role"))
    if len(turns) > 1:
        yield Document("taskmaster4", _string(row, "dialogue_id"), turns)


def topical_chat(row: Row) -> Iterator[Document]:
    """Read a row of Topical-Chat twice, so that each speaker is the assistant once."""
    spoken = _spoken(row, "speaker")
    yield Document("topical_chat", _string(row, "dialogue_id"), chat(spoken))
    yield Document("topical_chat", _string(row, "dialogue_id"), chat(spoken[1:]))


def persona_chat(row: Row) -> Iterator[Document]:
    """Read a row of Synthetic-Persona-Chat: each speaker is the assistant once, half of the time with a persona.

    The persona is given in the system message as facts that the assistant holds about itself.
    """
    identity = _string(row, "dialogue_id")
    spoken = _spoken(row, "user")
    personas = [_sentences(row, "persona1"), _sentences(row, "persona2")]
    for skipped in (0, 1):
        turns = chat(spoken[skipped:])
        assistant = personas[1 - skipped]
        rng = random.Random(f"{identity} {skipped}")
        if rng.random() < 0.5:
            turns = (Turn("system", " ".join(clean(s) for s in assistant)), *turns)
        yield Document("persona_chat", identity, turns)


def tinystories(row: Row) -> Iterator[Document]:
    """Read a row of TinyStories: plain text, or the answer to somebody who asks for a story."""
    text = clean(_string(row, "text"))
    rng = random.Random(text)
    if rng.random() < 0.5:
        yield Document("tinystories", text, (Turn("text", text),))
    else:
        yield Document("tinystories", text, (Turn("user", rng.choice(STORY_REQUESTS)), Turn("assistant", text)))


STORY_REQUESTS: Final = (
    "Tell me a story.",
    "Can you tell me a story?",
    "Please tell me a short story.",
    "I would like to hear a story.",
    "Write a short story for a child.",
    "Tell me a bedtime story, please.",
)

READERS: Final[dict[str, Callable[[Row], Iterator[Document]]]] = {
    "dolly": dolly,
    "persona_chat": persona_chat,
    "medquad_short": medquad_short,
    "mts_dialog": mts_dialog,
    "schema_guided": schema_guided,
    "taskmaster4": taskmaster4,
    "topical_chat": topical_chat,
    "tinystories": tinystories,
}


def _user_sides(row: Row) -> set[str]:
    return {persona_user_split(_sentences(row, key)) for key in ("persona1", "persona2")}


def training_documents(corpora: Path, corpus: str) -> Iterator[Document]:
    """Yield the documents of a corpus that may train the model."""
    for row in read_rows(corpora / f"{corpus}.jsonl"):
        if corpus == "persona_chat" and _user_sides(row) != {"train"}:
            continue
        for document in READERS[corpus](row):
            if not is_held_out(corpus, document.identity):
                yield document


def held_out_documents(corpora: Path, corpus: str) -> Iterator[Document]:
    """Yield the held-out documents of a corpus.

    Of `persona_chat` these are the dialogues of two `evaluate` users; see `held_out_train_user_dialogues` for the
    other kind.
    """
    for row in read_rows(corpora / f"{corpus}.jsonl"):
        for document in READERS[corpus](row):
            if corpus == "persona_chat":
                if _user_sides(row) == {"evaluate"}:
                    yield document
            elif is_held_out(corpus, document.identity):
                yield document


def held_out_train_user_dialogues(corpora: Path) -> Iterator[Document]:
    """Yield the held-out `persona_chat` dialogues between two `train` users."""
    for row in read_rows(corpora / "persona_chat.jsonl"):
        if _user_sides(row) == {"train"}:
            for document in persona_chat(row):
                if is_held_out("persona_chat", document.identity):
                    yield document
