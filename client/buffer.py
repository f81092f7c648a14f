"""The private buffer: a few fixed-size bins on the device's disk that hold what it will learn from.

One SQLite file. Every public call is one transaction: when it returns, its effect is on the disk; if the process dies
before, there is no effect. The arrays that policies look at are rebuilt from the file at opening and whenever a call
failed, so memory never knows better than the disk.

A bin holds text, embedding and domain tag (the paper's is 22 KB, arXiv 2311.12275). A dialogue that does not fit is
dropped whole, reason "too-large": half a dialogue would teach half an answer. Of a dialogue that is not kept no text is
stored at all, unless it had to wait for the end of a round; the decision log holds numbers and identifiers. The text of
a replaced dialogue is overwritten in the file at once and may stay in its log until the next checkpoint (about every
thousand pages, and at closing); `forget` clears both before it returns.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final, Self

from client import buffer_tables as tables
from client.admission import Admission, Arrival, Mirror, text_bytes
from client.buffer_tables import BufferedDialogue, DayCounts, LoggedDecision, Part
from client.dialogue import Annotation, Dialogue, Example, Verdict, shown_id
from client.selection.held import Held
from client.selection.lexicons import Lexicons, load_lexicons
from client.selection.policies import make_policy
from client.selection.policy import Action, Decision, Policy, Scored
from client.selection.scoring import EOE_READINGS, Embedded, EoeReading, place, score
from client.storage import Database
from florilegium.errors import ConfigError, InputError, StorageError

__all__ = ["BufferStats", "BufferedDialogue", "DayCounts", "LoggedDecision", "PrivateBuffer"]

DECISION_ROWS: Final = 10_000  # older decisions are forgotten, except those on dialogues that are still here
PRUNE_EVERY: Final = 256  # arrivals

_log = logging.getLogger(__name__)

# The buffer's own values; a caller's are stored under "user:…" and cannot clash with them.
_EMBEDDED_BY: Final = "embedded by"
_LEXICONS: Final = "lexicons"
_SCRUB: Final = "scrub"


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferStats:
    """The state of a buffer in numbers.

    Attributes:
        bins: how many dialogues can be held for training.
        held: how many are.
        heldout: how many are held out, and never trained on.
        queued: how many wait for the end of a round.
        seen: how many were ever offered.
        held_bytes: text, embeddings and tags of what is held, held out or waiting.
        file_bytes: the file with its log.
        domains: held dialogues by domain.
        outcomes: decisions by "part/action/reason", over the buffer's whole life.
    """

    bins: int
    held: int
    heldout: int
    queued: int
    seen: int
    held_bytes: int
    file_bytes: int
    domains: Mapping[str, int]
    outcomes: Mapping[str, int]


class PrivateBuffer:
    """A bounded, durable, explained selection of a user's dialogues.

    Args:
        path: the SQLite file, created if missing (mode 0600; new folders 0700).
        bins: how many dialogues are held for training. Where more are, since there were more bins once, the oldest that
            nobody answered about are let go.
        bin_bytes: what one bin can hold: UTF-8 text, two bytes per number of the embedding, domain tag.
        policy: the name of a selection policy, or one.
        holdout_share: the share of questions, chosen by a keyed hash of their words, whose arrivals are held out: a
            question that is asked again comes to the same side.
        holdout_bins: how many of those arrivals are held; the ones whose identifiers have the smallest hashes, a
            uniform sample.
        seed: of the policy's draws and of the hashes.
        eoe: which reading of entropy of embedding to select by.
        lexicons: word lists of the domains; the ones that ship by default.
        read_only: look while another process may be writing.

    Raises:
        ConfigError: a setting is out of range.
        StorageError: the file is in use, damaged, too new, or cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        *,
        bins: int = 128,
        bin_bytes: int = 22 * 1024,
        policy: str | Policy = "improved",
        holdout_share: float = 0.1,
        holdout_bins: int = 32,
        seed: int = 0,
        eoe: EoeReading = "energy",
        lexicons: Lexicons | None = None,
        read_only: bool = False,
    ) -> None:
        _require("bins", bins, 1 <= bins <= 1_000_000, "from 1 to 1,000,000")
        _require("bin_bytes", bin_bytes, bin_bytes >= 1, "at least 1")
        _require("holdout_share", holdout_share, 0 <= holdout_share < 1, "at least 0 and below 1")
        _require("holdout_bins", holdout_bins, holdout_bins >= 1, "at least 1")
        _require("eoe", eoe, eoe in EOE_READINGS, f"one of {', '.join(EOE_READINGS)}")
        self.path = Path(path)
        self.bins = bins
        self._admission = Admission(
            policy=make_policy(policy) if isinstance(policy, str) else policy,
            bin_bytes=bin_bytes,
            holdout_share=holdout_share,
            holdout_bins=holdout_bins,
            seed=seed,
        )
        self._reading: EoeReading = eoe
        self._lexicons = lexicons or load_lexicons()
        self._read_only = read_only
        self._guard = threading.RLock()
        self._freezes = 0
        self._mirror: Mirror | None = None
        self._database = Database(self.path, schema=tables.SCHEMA, version=tables.SCHEMA_VERSION, read_only=read_only)
        try:
            if not read_only:
                self._recover()
        except BaseException:
            self.close()
            raise

    # --- newcomers ---

    def offer(self, dialogue: Dialogue, embedding: Embedded, *, day: date | None = None) -> Decision:
        """Decide about a dialogue; on return the decision and its effect are on the disk.

        Offering an identifier again gives the stored decision and changes nothing, as long as the log remembers it.

        Args:
            dialogue: the newcomer.
            embedding: what the base model says of it.
            day: the day to count it on, today (UTC) by default.

        Raises:
            InputError: the text is not valid Unicode.
            StorageError: nothing was stored: the disk is full or failing, or the embedding is of another base model.
        """
        with self._guard:
            with self._database.reading() as sql:
                known = tables.select_decision(sql, dialogue.dialogue_id)
            if known is not None:
                return known.decision
            self._drain()
            return self._settle(Arrival(dialogue, self._score(dialogue, embedding), day or _today()))

    def adopt(self, dialogue: Dialogue, embedding: Embedded, *, day: date | None = None) -> Decision:
        """Keep a dialogue because its user wants it kept, such as one whose reply they corrected.

        A dialogue that is here stays. Else it arrives once more, and where the policy would drop it, it takes the bin
        of the oldest set that nobody answered about, or of the oldest of all.

        Raises:
            InputError: the text is not valid Unicode.
            StorageError: nothing was stored: the disk is full or failing, or the embedding is of another base model.
        """
        with self._guard:
            self._drain()
            with self._database.reading() as sql:
                known = tables.select_decision(sql, dialogue.dialogue_id)
                if known is not None and tables.has_dialogue(sql, dialogue.dialogue_id):
                    return known.decision
            scored = self._score(dialogue, embedding)
            return self._settle(Arrival(dialogue, scored, day or _today(), wanted=True))

    @contextmanager
    def frozen(self) -> Iterator[Self]:
        """Let newcomers wait while a learning round uses the buffer; they are decided, in order, when the block ends.

        Waiting newcomers are on the disk: if the process dies in the block, they are decided at the next opening.
        """
        with self._guard:
            self._freezes += 1
        try:
            yield self
        finally:
            with self._guard:
                self._freezes -= 1
                self._drain()

    def forget(self, *dialogue_ids: str, meta: Mapping[str, str | None] | None = None) -> bool:
        """Delete dialogues and all that came of them: children, annotation, embedding, links in the decision log.

        On return no copy is left in the file or its log. If the process dies on the way, the next opening ends it.

        Args:
            dialogue_ids: which.
            meta: a caller's values to store in the same transaction, if anything is deleted.

        Returns:
            Whether anything was known of them.

        Raises:
            StorageError: the dialogue is deleted, but the disk is too full to rewrite the file or a reader holds it;
                the next opening or call tries again.
        """
        with self._guard:
            self._mirror = None
            with self._database.transaction() as sql:
                known = [_delete(sql, each) | tables.forget_decisions(sql, each) for each in dialogue_ids]
                if any(known):
                    tables.put_value(sql, _SCRUB, "1")
                    _put_meta(sql, meta or {})
            self._scrub()
            return any(known)

    def follow_model(self, name: str, embed: Callable[[Sequence[Dialogue]], Sequence[Embedded]]) -> bool:
        """Embed again what another base model embedded: embeddings of two models cannot be compared.

        Args:
            name: names the base model.
            embed: what it says of dialogues.

        Returns:
            Whether anything had to be embedded again.
        """
        with self._guard:
            name = f"{name} {self._reading}"
            with self._database.reading() as sql:
                if tables.select_value(sql, _EMBEDDED_BY) == name:
                    return False
                items = _select_all(sql)
            embeddings = embed(items) if items else []
            self._mirror = None
            with self._database.transaction() as sql:
                for item, embedding in zip(items, embeddings, strict=True):
                    scored = score(item, embedding, self._lexicons, self._reading)
                    if scored is None:
                        _let_go(sql, item.dialogue_id, "bad-embedding")
                    else:
                        tables.set_scores(sql, scored)
                tables.put_value(sql, _EMBEDDED_BY, name)
            return bool(items)

    # --- what is held ---

    def dialogues(self) -> list[BufferedDialogue]:
        """Return what is held for training, in order of arrival; `scored.idd` is against the buffer as it is now."""
        with self._guard:
            with self._database.reading() as sql:
                found = tables.select_dialogues(sql, "train")
            held = self._loaded().held
            current = dict(zip(held.ids, held.idd.tolist(), strict=True))
        return [
            replace(item, scored=replace(item.scored, idd=current.get(item.dialogue.dialogue_id, item.scored.idd)))
            for item in found
        ]

    def heldout(self) -> list[BufferedDialogue]:
        """Return what is held out, in order of arrival; it never trains."""
        with self._guard, self._database.reading() as sql:
            return tables.select_dialogues(sql, "heldout")

    def identify(self, prefix: str) -> str:
        """Return the identifier that begins with `prefix`, of all that are held or logged.

        Raises:
            InputError: there is none, or several and none is the prefix itself.
        """
        with self._guard, self._database.reading() as sql:
            found = tables.select_matching(sql, prefix)
        if prefix in found:
            return prefix
        if len(found) != 1:
            count = f"{len(found)} dialogues match" if found else "no dialogue matches"
            remedy = "give more of its characters" if found else "it may be forgotten, or too long ago"
            raise InputError(f"{count} the identifier {shown_id(prefix)}", remedy)
        return found[0]

    def decision(self, dialogue_id: str) -> Decision | None:
        """Return what was decided about a dialogue, as far as the log remembers."""
        with self._guard, self._database.reading() as sql:
            logged = tables.select_decision(sql, dialogue_id)
        return None if logged is None else logged.decision

    def decisions(self, dialogue_id: str | None = None, *, limit: int = 100) -> list[LoggedDecision]:
        """Return logged decisions, newest first: those in which one dialogue came or left, or all.

        The log keeps the last 10,000 arrivals' decisions, and those on dialogues that are still here.
        """
        with self._guard, self._database.reading() as sql:
            return tables.select_decisions(sql, dialogue_id, limit)

    def stats(self) -> BufferStats:
        """Return the state of the buffer in numbers."""
        with self._guard, self._database.reading() as sql:
            return BufferStats(
                bins=self.bins,
                held=len(tables.select_ids(sql, "train")),
                heldout=len(tables.select_ids(sql, "heldout")),
                queued=len(tables.select_ids(sql, "queue")),
                seen=tables.count_arrivals(sql),
                held_bytes=tables.measure_bytes(sql),
                file_bytes=self._database.file_bytes,
                domains=tables.count_domains(sql),
                outcomes=tables.count_outcomes(sql),
            )

    def on_day(self, day: date | None = None) -> DayCounts:
        """Return what happened on a day, today (UTC) by default."""
        with self._guard, self._database.reading() as sql:
            return tables.select_day(sql, day or _today())

    # --- what came of it ---

    def annotate(self, annotation: Annotation, *, day: date | None = None) -> bool:
        """Store what the user said of a dialogue, and take it off the list of pending asks.

        A changed annotation deletes the synthesized children, which carry the old answer.

        Returns:
            False if the dialogue is not in the buffer (any more); nothing is stored then.

        Raises:
            InputError: the ideal answer is larger than a bin.
        """
        key, size = annotation.dialogue_id, text_bytes(annotation.ideal or "")
        if size > self.bin_bytes:
            raise InputError(f"the ideal answer has {size} bytes, a bin {self.bin_bytes}", "shorten it")
        with self._guard:
            with self._database.transaction() as sql:
                if not tables.has_dialogue(sql, key):
                    return False
                tables.delete_ask(sql, key)
                if tables.select_annotation(sql, key) != annotation:
                    tables.put_annotation(sql, annotation)
                    tables.put_children(sql, key, (), {})
                    tables.add_to_day(sql, day or _today(), DayCounts(annotated=1))
            if self._mirror is not None:
                self._mirror.held.note_answer(key, answered=annotation.verdict is not Verdict.SKIP)
            return True

    def annotation(self, dialogue_id: str) -> Annotation | None:
        """Return what the user said of a dialogue, if anything."""
        with self._guard, self._database.reading() as sql:
            return tables.select_annotation(sql, dialogue_id)

    def request(self, dialogue_ids: Iterable[str], *, day: date | None = None) -> int:
        """Put dialogues on the list of pending asks; return how many were not on it yet.

        Identifiers that are not in the buffer (any more) are passed over.
        """
        with self._guard, self._database.transaction() as sql:
            held = [key for key in dialogue_ids if tables.has_dialogue(sql, key)]
            added = sum(tables.put_ask(sql, key) for key in held)
            tables.add_to_day(sql, day or _today(), DayCounts(asked=added))
            return added

    def pending(self) -> list[BufferedDialogue]:
        """Return the dialogues the user was asked about and has not answered, first asked first."""
        with self._guard, self._database.reading() as sql:
            return tables.select_pending(sql)

    def store_children(self, source_id: str, examples: Sequence[Example], drops: Mapping[str, int]) -> None:
        """Store what was synthesized from a dialogue, in place of what was before.

        Args:
            source_id: the dialogue; children live and die with it.
            examples: the children.
            drops: how many generations were refused, by reason.

        Raises:
            InputError: the dialogue is not in the buffer, or a child is of another one or larger than a bin.
        """
        for child in examples:
            if child.source_id != source_id or not child.is_synthesized:
                raise InputError(f"example {shown_id(child.example_id)} is no child of {shown_id(source_id)}")
            if not self.fits(child.question, child.response):
                raise InputError(f"example {shown_id(child.example_id)} is larger than a bin of {self.bin_bytes} bytes")
        with self._guard, self._database.transaction() as sql:
            if not tables.has_dialogue(sql, source_id):
                raise InputError(
                    f"no dialogue {shown_id(source_id)} in the buffer", "it was dropped, replaced or forgotten"
                )
            tables.put_children(sql, source_id, examples, drops)

    def drop_children(self, meta: Mapping[str, str | None] | None = None) -> None:
        """Delete all that was synthesized, and store a caller's values in the same transaction."""
        with self._guard, self._database.transaction() as sql:
            tables.delete_children(sql)
            _put_meta(sql, meta or {})

    def fits(self, *texts: str) -> bool:
        """Return whether texts fit into one bin."""
        return self._admission.fits(*texts)

    def children(self, source_id: str) -> list[Example]:
        """Return what was synthesized from a dialogue."""
        with self._guard, self._database.reading() as sql:
            return tables.select_children(sql, source_id)

    def child_drops(self, source_id: str) -> dict[str, int]:
        """Return how many generations from a dialogue were refused, by reason."""
        with self._guard, self._database.reading() as sql:
            return tables.select_drops(sql, source_id)

    def meta(self, key: str) -> str | None:
        """Return a caller's value, such as the state of a round."""
        with self._guard, self._database.reading() as sql:
            return tables.select_value(sql, f"user:{key}")

    def set_meta(self, key: str, value: str | None) -> None:
        """Store a caller's value; None deletes it."""
        self.update_meta({key: value})

    def update_meta(self, values: Mapping[str, str | None]) -> None:
        """Store several values of a caller, all or none; None deletes one."""
        with self._guard, self._database.transaction() as sql:
            _put_meta(sql, values)

    # --- life cycle ---

    @property
    def bin_bytes(self) -> int:
        """What one bin can hold."""
        return self._admission.bin_bytes

    def close(self) -> None:
        """Close the file and let another process open it."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def seen(self) -> int:
        """How many dialogues were ever offered."""
        with self._guard, self._database.reading() as sql:
            return tables.count_arrivals(sql)

    def __len__(self) -> int:
        with self._guard, self._database.reading() as sql:
            return len(tables.select_ids(sql, "train"))

    def __repr__(self) -> str:
        return f"PrivateBuffer({self.path.name}, {self.bins} bins)"

    def _recover(self) -> None:
        """Finish what an earlier process left undone, and follow settings and lexicons that were changed since."""
        self._scrub()
        self._follow_bins()
        self._follow_lexicons()
        self._drain()

    def _scrub(self) -> None:
        with self._database.reading() as sql:
            due = tables.select_value(sql, _SCRUB)
        if due is None:
            return
        self._database.scrub()
        with self._database.transaction() as sql:
            tables.put_value(sql, _SCRUB, None)

    def _follow_bins(self) -> None:
        """Let go what fewer bins have no room for."""
        with self._database.reading() as sql:
            held = tables.select_dialogues(sql, "train")
            heldout = tables.select_ids(sql, "heldout")
        held.sort(key=lambda item: (not item.scored.answered, -item.arrived_index))
        heldout.sort(key=self._admission.rank)
        leaving = [item.dialogue.dialogue_id for item in held[self.bins :]] + heldout[self._admission.holdout_bins :]
        if not leaving:
            return
        _log.warning("%s: there are fewer bins now, so %d dialogues are let go", self.path, len(leaving))
        with self._database.transaction() as sql:
            for dialogue_id in leaving:
                _let_go(sql, dialogue_id, "fewer-bins")

    def _follow_lexicons(self) -> None:
        fingerprint = self._lexicons.fingerprint
        with self._database.transaction() as sql:
            if tables.select_value(sql, _LEXICONS) == fingerprint:
                return
            for dialogue in _select_all(sql):
                tables.set_domain(sql, dialogue.dialogue_id, *place(dialogue, self._lexicons))
            tables.put_value(sql, _LEXICONS, fingerprint)

    # --- deciding ---

    def _loaded(self) -> Mirror:
        """Return what the file holds, reading it again if another process writes it or a call failed."""
        if self._mirror is None or self._read_only:
            with self._database.reading() as sql:
                seen = sum(count for name, count in tables.count_outcomes(sql).items() if name.startswith("train/"))
                scores = tables.select_scores(sql)
                capacity = max(self.bins, len(scores))  # a reader may see more than its settings have bins for
                self._mirror = Mirror(
                    held=Held.build(capacity, scores, seen=seen),
                    heldout=tables.select_ids(sql, "heldout"),
                    queued=len(tables.select_ids(sql, "queue")),
                )
        return self._mirror

    def _drain(self) -> None:
        """Decide about the newcomers that waited, unless a round is still on."""
        if self._freezes or not self._loaded().queued:
            return
        with self._database.reading() as sql:
            waiting = tables.select_dialogues(sql, "queue")
            days = [tables.select_decision(sql, item.dialogue.dialogue_id) for item in waiting]
        for item, logged in zip(waiting, days, strict=True):
            day = logged.day if logged else _today()
            answered = item.scored.answered  # what its user corrected while it waited is not to be lost
            self._settle(Arrival(item.dialogue, item.scored, day, item.arrived_index, wanted=answered))

    def _settle(self, arrival: Arrival) -> Decision:
        """Decide about an arrival and store the outcome, then let memory follow."""
        mirror = self._loaded()
        part, decision = self._admission.decide(arrival, mirror, frozen=bool(self._freezes))
        bin_number = mirror.bin_for(part, decision)
        self._mirror = None  # whatever goes wrong from here on, memory is read back from the file
        with self._database.transaction() as sql:
            number = self._store(sql, arrival, part, decision, bin_number)
        mirror.follow(arrival, part, decision, bin_number, number)
        self._mirror = mirror
        return decision

    def _score(self, dialogue: Dialogue, embedding: Embedded) -> Scored | None:
        if not self.fits(dialogue.question, dialogue.response):
            return None
        scored, hidden = score(dialogue, embedding, self._lexicons, self._reading), self._loaded().held.hidden_size
        if scored is not None and hidden not in {None, len(scored.vector)}:
            raise StorageError(
                f"{self.path} holds embeddings of {hidden} numbers, got one of {len(scored.vector)}",
                "use the base model it was filled with, or another folder",
            )
        return scored

    def _store(
        self, sql: sqlite3.Connection, arrival: Arrival, part: Part, decision: Decision, bin_number: int | None
    ) -> int:
        number = arrival.number or tables.next_arrival(sql)
        key = arrival.dialogue.dialogue_id
        if decision.victim_id is not None:
            tables.delete_dialogue(sql, decision.victim_id)
        if arrival.wanted:
            tables.delete_decision(sql, key)
        if decision.action is Action.DROP or arrival.scored is None:
            tables.delete_dialogue(sql, key)  # it may have waited in the file
        else:
            place = number if bin_number is None else bin_number
            tables.put_dialogue(sql, arrival.dialogue, arrival.scored, part, place, number)
        tables.put_decision(
            sql, LoggedDecision(sequence=number, dialogue_id=key, day=arrival.day, part=part, decision=decision)
        )
        kept = decision.action in {Action.KEEP, Action.REPLACE}
        tables.add_to_day(sql, arrival.day, DayCounts(seen=int(arrival.number is None), kept=int(kept)))
        if number % PRUNE_EVERY == 0:
            tables.prune_decisions(sql, number - DECISION_ROWS)
        return number


def _select_all(sql: sqlite3.Connection) -> list[Dialogue]:
    parts: tuple[Part, ...] = ("train", "heldout", "queue")
    return [item.dialogue for part in parts for item in tables.select_dialogues(sql, part)]


def _delete(sql: sqlite3.Connection, dialogue_id: str) -> bool:
    """Delete a dialogue and close the gap it leaves; return whether it was held."""
    held = tables.delete_dialogue(sql, dialogue_id)
    if held is not None:
        tables.fill_gap(sql, *held)
    return held is not None


def _let_go(sql: sqlite3.Connection, dialogue_id: str, reason: str) -> None:
    """Delete a dialogue that was held, and log why."""
    logged = tables.select_decision(sql, dialogue_id)
    assert logged is not None, "the log keeps decisions on what is held"
    _delete(sql, dialogue_id)
    tables.put_decision(sql, replace(logged, part="refused", decision=Decision(action=Action.DROP, reason=reason)))


def _put_meta(sql: sqlite3.Connection, values: Mapping[str, str | None]) -> None:
    for key, value in values.items():
        tables.put_value(sql, f"user:{key}", value)


def _require(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{name} must be {rule}, got {value!r}")


def _today() -> date:
    return datetime.now(UTC).date()
