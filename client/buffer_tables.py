"""The tables of a private buffer: every SQL statement about it, as functions on an open transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, Literal

from client.dialogue import Annotation, Dialogue, Example, Origin, Verdict
from client.selection.policy import Action, Decision, Scored
from client.selection.scoring import pack_vector, unpack_vector

__all__ = [
    "BufferedDialogue",
    "DayCounts",
    "LoggedDecision",
    "Part",
]

SCHEMA_VERSION: Final = 1
SCHEMA: Final = """
CREATE TABLE dialogues (
    dialogue_id TEXT PRIMARY KEY, part TEXT NOT NULL, bin INTEGER NOT NULL, arrived INTEGER NOT NULL,
    question TEXT NOT NULL, response TEXT NOT NULL, vector BLOB NOT NULL,
    domain TEXT NOT NULL, eoe REAL NOT NULL, dss REAL NOT NULL,
    question_words INTEGER NOT NULL, possessives INTEGER NOT NULL, UNIQUE (part, bin));
CREATE TABLE decisions (
    sequence INTEGER PRIMARY KEY, dialogue_id TEXT NOT NULL UNIQUE, day TEXT NOT NULL, part TEXT NOT NULL,
    action TEXT NOT NULL, victim_id TEXT, reason TEXT NOT NULL, evidence TEXT NOT NULL);
CREATE INDEX decisions_by_victim ON decisions (victim_id) WHERE victim_id IS NOT NULL;
CREATE TABLE annotations (
    dialogue_id TEXT PRIMARY KEY REFERENCES dialogues ON DELETE CASCADE,
    verdict TEXT NOT NULL, ideal TEXT, origin TEXT NOT NULL);
CREATE TABLE asks (
    position INTEGER PRIMARY KEY, dialogue_id TEXT NOT NULL UNIQUE REFERENCES dialogues ON DELETE CASCADE);
CREATE TABLE children (
    example_id TEXT PRIMARY KEY, source_id TEXT NOT NULL REFERENCES dialogues ON DELETE CASCADE,
    position INTEGER NOT NULL, question TEXT NOT NULL, response TEXT NOT NULL);
CREATE INDEX children_by_source ON children (source_id);
CREATE TABLE child_drops (
    source_id TEXT NOT NULL REFERENCES dialogues ON DELETE CASCADE, reason TEXT NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (source_id, reason));
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE days (
    day TEXT PRIMARY KEY, seen INTEGER NOT NULL DEFAULT 0, kept INTEGER NOT NULL DEFAULT 0,
    asked INTEGER NOT NULL DEFAULT 0, annotated INTEGER NOT NULL DEFAULT 0);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)
"""
FORGOTTEN: Final = "forgotten"
_ARRIVALS: Final = "arrivals"
_SCORES: Final = "d.dialogue_id, d.vector, d.domain, d.eoe, d.dss, d.question_words, d.possessives"
_DECISION: Final = "c.action, c.victim_id, c.reason, c.evidence"

Part = Literal["train", "heldout", "queue", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferedDialogue:
    """A dialogue in the buffer.

    Attributes:
        dialogue: the text.
        scored: its numbers.
        annotation: what the user said of it, if anything.
        arrived_index: 1 for the first dialogue that was ever offered, 2 for the next, …
        decision: why it is here.
    """

    dialogue: Dialogue
    scored: Scored
    annotation: Annotation | None
    arrived_index: int
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedDecision:
    """One line of the decision log: which arrival, on which day, for which part of the buffer, and why."""

    sequence: int
    dialogue_id: str
    day: date
    part: str
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class DayCounts:
    """What happened on one day."""

    seen: int = 0
    kept: int = 0
    asked: int = 0
    annotated: int = 0


def _decision(action: str, victim_id: str | None, reason: str, evidence: str) -> Decision:
    return Decision(action=Action(action), victim_id=victim_id, reason=reason, evidence=json.loads(evidence))


def _scored(
    dialogue_id: str,
    vector: bytes,
    domain: str,
    eoe: float,
    dss: float,
    question_words: int,
    possessives: int,
    verdict: str | None,
) -> Scored:
    return Scored(
        dialogue_id=dialogue_id,
        vector=unpack_vector(vector),
        domain=domain,
        eoe=eoe,
        dss=dss,
        question_words=question_words,
        possessives=possessives,
        answered=verdict not in {None, Verdict.SKIP},
    )


def _annotation(dialogue_id: str, verdict: str | None, ideal: str | None, origin: str | None) -> Annotation | None:
    if verdict is None or origin is None:
        return None
    return Annotation(dialogue_id=dialogue_id, verdict=Verdict(verdict), ideal=ideal, origin=Origin(origin))


# --- dialogues ---------------------------------------------------------------------------------------------------


def select_dialogues(sql: sqlite3.Connection, part: Part) -> list[BufferedDialogue]:
    """Return the dialogues of one part in order of arrival."""
    return _buffered(sql, "WHERE d.part = ? ORDER BY d.arrived", part)


def select_pending(sql: sqlite3.Connection) -> list[BufferedDialogue]:
    """Return the dialogues with a pending ask, first asked first."""
    return _buffered(sql, "JOIN asks q USING (dialogue_id) ORDER BY q.position")


def _buffered(sql: sqlite3.Connection, clause: str, *values: str) -> list[BufferedDialogue]:
    query = f"""SELECT {_SCORES}, a.verdict, d.question, d.response, d.arrived, a.ideal, a.origin, {_DECISION}
                FROM dialogues d JOIN decisions c USING (dialogue_id) LEFT JOIN annotations a USING (dialogue_id)
                {clause}"""
    return [
        BufferedDialogue(
            dialogue=Dialogue(question=row[8], response=row[9], dialogue_id=row[0]),
            scored=_scored(*row[:8]),
            annotation=_annotation(row[0], row[7], *row[11:13]),
            arrived_index=row[10],
            decision=_decision(*row[13:]),
        )
        for row in sql.execute(query, values)
    ]


def select_scores(sql: sqlite3.Connection) -> list[tuple[Scored, int]]:
    """Return the numbers of what is held for training, with the number of arrival, in the order of bins."""
    query = f"""SELECT {_SCORES}, a.verdict, d.arrived FROM dialogues d LEFT JOIN annotations a USING (dialogue_id)
                WHERE d.part = 'train' ORDER BY d.bin"""
    return [(_scored(*row[:8]), row[8]) for row in sql.execute(query)]


def select_ids(sql: sqlite3.Connection, part: Part) -> list[str]:
    """Return the identifiers of one part in the order of bins."""
    rows = sql.execute("SELECT dialogue_id FROM dialogues WHERE part = ? ORDER BY bin", (part,))
    return [dialogue_id for (dialogue_id,) in rows]


def select_matching(sql: sqlite3.Connection, prefix: str) -> list[str]:
    """Return the identifiers, of dialogues that are held or logged, that begin with `prefix`."""
    names = ("dialogue_id FROM dialogues", "dialogue_id FROM decisions", "victim_id FROM decisions")
    union = " UNION ".join(f"SELECT {name}" for name in names)
    begins = "substr(dialogue_id, 1, length(:prefix)) = :prefix AND dialogue_id <> :gone"
    query = f"SELECT dialogue_id FROM ({union}) WHERE {begins}"
    return [dialogue_id for (dialogue_id,) in sql.execute(query, {"prefix": prefix, "gone": FORGOTTEN})]


def has_dialogue(sql: sqlite3.Connection, dialogue_id: str) -> bool:
    """Return whether a dialogue is held in any part."""
    return sql.execute("SELECT 1 FROM dialogues WHERE dialogue_id = ?", (dialogue_id,)).fetchone() is not None


def put_dialogue(
    sql: sqlite3.Connection, dialogue: Dialogue, scored: Scored, part: Part, bin_number: int, arrived: int
) -> None:
    """Store a dialogue in a bin, or move it there with its annotation and children if it is stored already."""
    sql.execute(
        """INSERT INTO dialogues VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
           ON CONFLICT (dialogue_id) DO UPDATE SET part = excluded.part, bin = excluded.bin""",
        (
            dialogue.dialogue_id,
            part,
            bin_number,
            arrived,
            dialogue.question,
            dialogue.response,
            pack_vector(scored.vector),
            scored.domain,
            scored.eoe,
            scored.dss,
            scored.question_words,
            scored.possessives,
        ),
    )


def set_domain(sql: sqlite3.Connection, dialogue_id: str, domain: str, dss: float) -> None:
    """Change what lexicons say of a dialogue."""
    sql.execute("UPDATE dialogues SET domain = ?, dss = ? WHERE dialogue_id = ?", (domain, dss, dialogue_id))


def set_scores(sql: sqlite3.Connection, scored: Scored) -> None:
    """Change what the base model says of a dialogue."""
    row = (pack_vector(scored.vector), scored.eoe, scored.dialogue_id)
    sql.execute("UPDATE dialogues SET vector = ?, eoe = ? WHERE dialogue_id = ?", row)


def delete_dialogue(sql: sqlite3.Connection, dialogue_id: str) -> tuple[Part, int] | None:
    """Delete a dialogue, its annotation, ask and children; return the part and bin it was in, if it was held."""
    row = sql.execute("SELECT part, bin FROM dialogues WHERE dialogue_id = ?", (dialogue_id,)).fetchone()
    sql.execute("DELETE FROM dialogues WHERE dialogue_id = ?", (dialogue_id,))
    return None if row is None else (row[0], int(row[1]))


def fill_gap(sql: sqlite3.Connection, part: Part, bin_number: int) -> None:
    """Move the dialogue of a part's last bin into an empty bin before it."""
    sql.execute(
        """UPDATE dialogues SET bin = :empty WHERE part = :part AND bin > :empty
           AND bin = (SELECT max(bin) FROM dialogues WHERE part = :part)""",
        {"empty": bin_number, "part": part},
    )


def measure_bytes(sql: sqlite3.Connection) -> int:
    """Return the bytes of text, embeddings and tags in all bins."""
    size = "length(CAST(question || response || domain AS BLOB)) + length(vector)"
    (total,) = sql.execute(f"SELECT coalesce(sum({size}), 0) FROM dialogues").fetchone()
    return int(total)


def count_domains(sql: sqlite3.Connection) -> dict[str, int]:
    """Count what is held for training by domain."""
    return dict(sql.execute("SELECT domain, count(*) FROM dialogues WHERE part = 'train' GROUP BY domain"))


# --- decisions and counters --------------------------------------------------------------------------------------


def select_decision(sql: sqlite3.Connection, dialogue_id: str) -> LoggedDecision | None:
    """Return the logged decision on a dialogue."""
    found = _logged(sql, "WHERE c.dialogue_id = ?", dialogue_id)
    return found[0] if found else None


def select_decisions(sql: sqlite3.Connection, dialogue_id: str | None, limit: int) -> list[LoggedDecision]:
    """Return logged decisions, newest first: those in which a dialogue came or left, or all."""
    if dialogue_id is None:
        return _logged(sql, "ORDER BY c.sequence DESC LIMIT ?", limit)
    clause = "WHERE ? IN (c.dialogue_id, c.victim_id) ORDER BY c.sequence DESC LIMIT ?"
    return _logged(sql, clause, dialogue_id, limit)


def _logged(sql: sqlite3.Connection, clause: str, *values: str | int) -> list[LoggedDecision]:
    query = f"SELECT c.sequence, c.dialogue_id, c.day, c.part, {_DECISION} FROM decisions c {clause}"
    return [
        LoggedDecision(
            sequence=row[0],
            dialogue_id=row[1],
            day=date.fromisoformat(row[2]),
            part=row[3],
            decision=_decision(*row[4:]),
        )
        for row in sql.execute(query, values)
    ]


def put_decision(sql: sqlite3.Connection, logged: LoggedDecision) -> None:
    """Log a decision, in place of an earlier one on the same arrival."""
    decision = logged.decision
    sql.execute(
        "INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            logged.sequence,
            logged.dialogue_id,
            logged.day.isoformat(),
            logged.part,
            decision.action,
            decision.victim_id,
            decision.reason,
            json.dumps(dict(decision.evidence)),
        ),
    )
    add_to_counter(sql, f"{logged.part}/{decision.action}/{decision.reason}")


def delete_decision(sql: sqlite3.Connection, dialogue_id: str) -> None:
    """Delete the decision on a dialogue that is to be decided about once more."""
    sql.execute("DELETE FROM decisions WHERE dialogue_id = ?", (dialogue_id,))


def forget_decisions(sql: sqlite3.Connection, dialogue_id: str) -> bool:
    """Delete the decision on a dialogue, and its name where it was a victim; return whether there was any."""
    own = sql.execute("DELETE FROM decisions WHERE dialogue_id = ?", (dialogue_id,)).rowcount
    named = sql.execute("UPDATE decisions SET victim_id = ? WHERE victim_id = ?", (FORGOTTEN, dialogue_id)).rowcount
    return own + named > 0


def prune_decisions(sql: sqlite3.Connection, up_to: int) -> None:
    """Delete decisions up to an arrival, except those on dialogues that are still here."""
    sql.execute(
        "DELETE FROM decisions WHERE sequence <= ? AND dialogue_id NOT IN (SELECT dialogue_id FROM dialogues)", (up_to,)
    )


def next_arrival(sql: sqlite3.Connection) -> int:
    """Count one more arrival and return its number."""
    add_to_counter(sql, _ARRIVALS)
    return count_arrivals(sql)


def count_arrivals(sql: sqlite3.Connection) -> int:
    """Return how many dialogues were ever offered."""
    (total,) = sql.execute("SELECT coalesce(sum(value), 0) FROM counters WHERE name = ?", (_ARRIVALS,)).fetchone()
    return int(total)


def count_outcomes(sql: sqlite3.Connection) -> dict[str, int]:
    """Return all decisions ever made by "part/action/reason"."""
    return dict(sql.execute("SELECT name, value FROM counters WHERE name LIKE '%/%' ORDER BY name"))


def add_to_counter(sql: sqlite3.Connection, name: str) -> None:
    """Add one to a counter."""
    sql.execute("INSERT INTO counters VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1", (name,))


def add_to_day(sql: sqlite3.Connection, day: date, counts: DayCounts) -> None:
    """Add to the counts of a day."""
    sql.execute(
        """INSERT INTO days VALUES (?, ?, ?, ?, ?) ON CONFLICT (day) DO UPDATE SET seen = seen + excluded.seen,
           kept = kept + excluded.kept, asked = asked + excluded.asked, annotated = annotated + excluded.annotated""",
        (day.isoformat(), counts.seen, counts.kept, counts.asked, counts.annotated),
    )


def select_day(sql: sqlite3.Connection, day: date) -> DayCounts:
    """Return the counts of a day."""
    query = "SELECT seen, kept, asked, annotated FROM days WHERE day = ?"
    row = sql.execute(query, (day.isoformat(),)).fetchone() or (0, 0, 0, 0)
    return DayCounts(seen=row[0], kept=row[1], asked=row[2], annotated=row[3])


# --- annotations, asks, children, values -------------------------------------------------------------------------


def select_annotation(sql: sqlite3.Connection, dialogue_id: str) -> Annotation | None:
    """Return what the user said of a dialogue."""
    query = "SELECT verdict, ideal, origin FROM annotations WHERE dialogue_id = ?"
    return _annotation(dialogue_id, *(sql.execute(query, (dialogue_id,)).fetchone() or (None, None, None)))


def put_annotation(sql: sqlite3.Connection, annotation: Annotation) -> None:
    """Store what the user said of a dialogue."""
    row = (annotation.dialogue_id, annotation.verdict, annotation.ideal, annotation.origin)
    sql.execute("INSERT OR REPLACE INTO annotations VALUES (?, ?, ?, ?)", row)


def put_ask(sql: sqlite3.Connection, dialogue_id: str) -> bool:
    """Add a dialogue to the pending asks; return False if it was there already."""
    return sql.execute("INSERT OR IGNORE INTO asks (dialogue_id) VALUES (?)", (dialogue_id,)).rowcount > 0


def delete_ask(sql: sqlite3.Connection, dialogue_id: str) -> None:
    """Take a dialogue off the pending asks."""
    sql.execute("DELETE FROM asks WHERE dialogue_id = ?", (dialogue_id,))


def put_children(
    sql: sqlite3.Connection, source_id: str, examples: Sequence[Example], drops: Mapping[str, int]
) -> None:
    """Store what was synthesized from a dialogue, in place of what was before."""
    sql.execute("DELETE FROM children WHERE source_id = ?", (source_id,))
    sql.execute("DELETE FROM child_drops WHERE source_id = ?", (source_id,))
    rows = [(child.example_id, source_id, n, child.question, child.response) for n, child in enumerate(examples)]
    sql.executemany("INSERT INTO children VALUES (?, ?, ?, ?, ?)", rows)
    sql.executemany("INSERT INTO child_drops VALUES (?, ?, ?)", [(source_id, *drop) for drop in drops.items()])


def delete_children(sql: sqlite3.Connection) -> None:
    """Delete all that was synthesized."""
    sql.execute("DELETE FROM children")
    sql.execute("DELETE FROM child_drops")


def select_children(sql: sqlite3.Connection, source_id: str) -> list[Example]:
    """Return what was synthesized from a dialogue."""
    query = "SELECT question, response, example_id FROM children WHERE source_id = ? ORDER BY position"
    return [
        Example(question=question, response=response, source_id=source_id, example_id=example_id)
        for question, response, example_id in sql.execute(query, (source_id,))
    ]


def select_drops(sql: sqlite3.Connection, source_id: str) -> dict[str, int]:
    """Return how many generations from a dialogue were refused, by reason."""
    return dict(sql.execute("SELECT reason, count FROM child_drops WHERE source_id = ?", (source_id,)))


def select_value(sql: sqlite3.Connection, key: str) -> str | None:
    """Return a stored value."""
    row = sql.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def put_value(sql: sqlite3.Connection, key: str, value: str | None) -> None:
    """Store a value, or delete it if it is None."""
    if value is None:
        sql.execute("DELETE FROM meta WHERE key = ?", (key,))
    else:
        sql.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
