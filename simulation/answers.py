"""What the base model says of a stream: its answers where the data has none, and an embedding of every dialogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from client.dialogue import Dialogue
from client.model import BaseModel, Embedding
from simulation.users import Turn

__all__ = ["Answers", "answer_stream"]


@dataclass(frozen=True, slots=True)
class Answers:
    """Dialogues and their embeddings, by turn."""

    dialogues: dict[str, Dialogue]
    embeddings: dict[str, Embedding]


def answer_stream(stream: Sequence[Turn], base: BaseModel, *, max_new_tokens: int) -> Answers:
    """Answer what is open, and embed all of it; answers bring their embeddings with them."""
    open_turns = [turn for turn in stream if turn.response is None]
    answers = base.respond([turn.question for turn in open_turns], max_new_tokens=max_new_tokens)
    texts = {turn.turn_id: answer.text for turn, answer in zip(open_turns, answers, strict=True)}
    found = {turn.turn_id: answer.embedding for turn, answer in zip(open_turns, answers, strict=True)}
    dialogues = {
        turn.turn_id: Dialogue(
            question=turn.question,
            response=texts[turn.turn_id] if turn.response is None else turn.response,
            dialogue_id=turn.turn_id,
        )
        for turn in stream
    }
    rest = [dialogue for key, dialogue in dialogues.items() if key not in found]
    found |= {dialogue.dialogue_id: each for dialogue, each in zip(rest, base.embed(rest), strict=True)}
    return Answers(dialogues, {key: each for key, each in found.items() if each is not None})
