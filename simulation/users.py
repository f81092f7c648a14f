"""What a simulation knows of one user: a stream of dialogues in arrival order, and questions held out from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from client.dialogue import Example

__all__ = ["Turn", "UserData"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One arrival in a user's stream.

    Attributes:
        turn_id: unique among the user's turns; becomes the dialogue's identifier.
        question: what the user says.
        preferred: the ideal answer, known to the simulated user alone (the annotation oracle).
        response: what the model answered, where the data has it; None lets the base model answer.
        kind: where the turn comes from, for reports ("fact", "chitchat", "repeat", ...); no policy sees it.
        day: days since the stream's beginning, where the data knows it.
        revisions: (day, answer) of what the user would answer instead from that day on, in order of days.
    """

    turn_id: str
    question: str
    preferred: str
    response: str | None = None
    kind: str = ""
    day: int = 0
    revisions: tuple[tuple[int, str], ...] = ()

    def preferred_on(self, day: int) -> str:
        """Return the ideal answer as the user would give it on a day."""
        return next((answer for since, answer in reversed(self.revisions) if since <= day), self.preferred)

    def __repr__(self) -> str:
        return f"Turn({self.turn_id}, {self.kind or 'unlabelled'}, {len(self.question)} characters)"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserData:
    """One simulated user.

    Attributes:
        user_id: a short name fit for a file name.
        stream: turns in arrival order.
        heldout: questions (paraphrases, never copies of the stream's) with the answers the user prefers.
        heldout_kinds: for each held-out `example_id`, the kind of knowledge it probes, for reports.
    """

    user_id: str
    stream: tuple[Turn, ...]
    heldout: tuple[Example, ...]
    heldout_kinds: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"UserData({self.user_id}, {len(self.stream)} turns, {len(self.heldout)} held out)"
