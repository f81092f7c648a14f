"""Admission: where a newcomer goes and what leaves for it, decided in memory alone.

    refused   it fits no bin, or its embedding is unusable
    queue     a learning round uses the buffer: it is decided later
    heldout   its question is of the share held out, which the gate judges by and nothing trains on
    train     the policy decides

Which questions are held out depends on their words and the seed, which of them are kept on identifiers and the seed:
a uniform sample of all that was ever held out, whatever its content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Final

import numpy as np

from client.buffer_tables import Part
from client.dialogue import Dialogue, derive_seed
from client.selection.held import Held
from client.selection.policy import Action, Decision, Policy, Scored
from client.selection.scoring import pack_vector
from client.selection.words import split_words
from florilegium.errors import InputError

__all__ = ["Admission", "Arrival", "Mirror", "text_bytes"]

QUEUE_ROWS: Final = 1_024  # newcomers that can wait for the end of one round


@dataclass(frozen=True, slots=True)
class Arrival:
    """A dialogue to be decided about.

    Attributes:
        dialogue: what was said.
        scored: its numbers; None where the embedding is unusable.
        day: when it came.
        number: of its arrival; None until that is stored.
        wanted: whether its user asked for it to be kept.
    """

    dialogue: Dialogue
    scored: Scored | None
    day: date
    number: int | None = None
    wanted: bool = False


@dataclass(slots=True)
class Mirror:
    """What the buffer's file holds, in memory.

    Attributes:
        held: the part that trains, as arrays.
        heldout: the held-out identifiers by bin.
        queued: how many wait.
    """

    held: Held
    heldout: list[str]
    queued: int

    def bin_for(self, part: Part, decision: Decision) -> int | None:
        """Return the bin that a decision fills, the victim's or the next free one; None where there are no bins."""
        ids = {"train": self.held.ids, "heldout": self.heldout}.get(part)
        if ids is None or decision.action is Action.DROP:
            return None
        return len(ids) if decision.victim_id is None else ids.index(decision.victim_id)

    def follow(self, arrival: Arrival, part: Part, decision: Decision, bin_number: int | None, number: int) -> None:
        """Do in memory what was done in the file."""
        self.queued += int(part == "queue") - int(arrival.number is not None)
        self.held.seen += int(part == "train")
        if bin_number is None or arrival.scored is None:
            return
        if part == "heldout":
            self.heldout[bin_number : bin_number + 1] = [arrival.scored.dialogue_id]
        elif decision.action is Action.KEEP:
            self.held.add(arrival.scored, number)
        else:
            self.held.replace(bin_number, arrival.scored, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The rules of one buffer; see `PrivateBuffer` for what they mean.

    Attributes:
        policy: decides about what trains.
        bin_bytes: what one bin can hold.
        holdout_share: share of questions held out.
        holdout_bins: how many of their arrivals are held.
        seed: of the policy's draws and of the hashes.
    """

    policy: Policy
    bin_bytes: int
    holdout_share: float
    holdout_bins: int
    seed: int

    def decide(self, arrival: Arrival, mirror: Mirror, *, frozen: bool) -> tuple[Part, Decision]:
        """Decide about an arrival, given what is held now.

        Args:
            arrival: the dialogue.
            mirror: what is held; it is left as it is.
            frozen: whether a learning round uses the buffer.
        """
        scored = arrival.scored
        refusal = self._refusal(arrival, mirror)
        if scored is None or refusal is not None:
            return "refused", refusal or Decision(action=Action.DROP, reason="bad-embedding")
        if frozen:
            if mirror.queued >= QUEUE_ROWS:
                return "refused", Decision(action=Action.DROP, reason="queue-full")
            return "queue", Decision(action=Action.QUEUE, reason="frozen")
        if self._is_held_out(arrival.dialogue.question):
            decision = self._decide_heldout(scored, mirror.heldout)
            last = max(mirror.heldout, key=self.rank, default=None)
            return "heldout", _overruled(decision, last) if arrival.wanted else decision
        newcomer = replace(scored, idd=mirror.held.idd_of(scored.vector, scored.domain))
        rng = np.random.default_rng(derive_seed("selection", self.seed, scored.dialogue_id))
        decision = self.policy.decide(newcomer, mirror.held, rng)
        if arrival.wanted:
            decision = _overruled(decision, mirror.held.oldest_unanswered)
        scores = {"eoe": newcomer.eoe, "dss": newcomer.dss, "idd": newcomer.idd}
        return "train", replace(decision, evidence=scores | dict(decision.evidence))

    def fits(self, *texts: str) -> bool:
        """Return whether texts fit into one bin."""
        return text_bytes(*texts) <= self.bin_bytes

    def rank(self, dialogue_id: str) -> float:
        """Return where a held-out dialogue stands, in [0, 1); the last is the next to go."""
        return self._hash("holdout", dialogue_id)

    def _refusal(self, arrival: Arrival, mirror: Mirror) -> Decision | None:
        size = text_bytes(arrival.dialogue.question, arrival.dialogue.response)
        if arrival.scored is not None:
            if mirror.held.hidden_size not in {None, len(arrival.scored.vector)}:
                return Decision(action=Action.DROP, reason="bad-embedding")
            size += text_bytes(arrival.scored.domain) + len(pack_vector(arrival.scored.vector))
        if size <= self.bin_bytes:
            return None
        evidence = {"bytes": float(size), "bin_bytes": float(self.bin_bytes)}
        return Decision(action=Action.DROP, reason="too-large", evidence=evidence)

    def _is_held_out(self, question: str) -> bool:
        """Decide by the question's words: what trains must not be asked again by the gate."""
        return self._hash("question", " ".join(split_words(question)) or question) < self.holdout_share

    def _hash(self, label: str, text: str) -> float:
        """Return a number in [0, 1) that depends on the text and the seed alone."""
        return derive_seed(label, self.seed, text) / 2.0**63

    def _decide_heldout(self, scored: Scored, ids: Sequence[str]) -> Decision:
        """Hold the smallest hashes."""
        own = self.rank(scored.dialogue_id)
        if len(ids) < self.holdout_bins:
            return Decision(action=Action.KEEP, reason="held-out", evidence={"hash": own})
        last = max(ids, key=self.rank)
        evidence = {"hash": own, "largest_hash": self.rank(last)}
        if own >= evidence["largest_hash"]:
            return Decision(action=Action.DROP, reason="holdout-full", evidence=evidence)
        return Decision(action=Action.REPLACE, victim_id=last, reason="held-out", evidence=evidence)


def _overruled(decision: Decision, victim_id: str | None) -> Decision:
    """Let a newcomer that was to be dropped take a bin after all."""
    if decision.action is not Action.DROP or victim_id is None:
        return decision
    return replace(decision, action=Action.REPLACE, victim_id=victim_id, reason="wanted")


def text_bytes(*texts: str) -> int:
    """Return the bytes of texts in UTF-8.

    Raises:
        InputError: a text is not valid Unicode.
    """
    try:
        return sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError:
        raise InputError("the text is not valid Unicode: it has half of a surrogate pair", "repair it") from None
