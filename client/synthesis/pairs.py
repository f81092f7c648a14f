"""Pairs: the model writes a similar question and its answer (Qin et al., arXiv 2311.12275, the abstract).

The question is reworded as in `questions`; then the model answers it, with the annotated pair before it as the example
of how this user wants to be answered. An answer that strays from the annotated one is dropped with its question: what a
small model invents must not become a fact about the user.
"""

from __future__ import annotations

from collections.abc import Sequence

from client.dialogue import Example
from client.model import BaseModel
from client.synthesis.check import DEFAULT_RULES, Reason, Rules, check_answer
from client.synthesis.questions import draw_questions
from client.synthesis.sampling import DEFAULT_TEMPERATURE, Outcome, Sampling, Synthesis, child_of, fill

__all__ = ["synthesize_pairs"]


def synthesize_pairs(
    model: BaseModel,
    example: Example,
    *,
    count: int = 3,
    seed: int,
    temperature: float = DEFAULT_TEMPERATURE,
    rules: Rules = DEFAULT_RULES,
) -> Synthesis:
    """Return children with a question and a response of the model's own; see `Synthesizer`."""
    sampling = Sampling(count=count, seed=seed, temperature=temperature, rules=rules)

    def draw(attempt: int, siblings: Sequence[Example]) -> list[Outcome]:
        outcomes = draw_questions(model, example, siblings, attempt, sampling)
        asked = [outcome for outcome in outcomes if isinstance(outcome, Example)]
        answered = iter(_answer(model, example, asked, attempt, sampling))
        return [next(answered) if isinstance(outcome, Example) else outcome for outcome in outcomes]

    return fill(draw, sampling)


def _answer(
    model: BaseModel, example: Example, asked: Sequence[Example], attempt: int, sampling: Sampling
) -> list[Outcome]:
    """Let the model answer its own questions; return a child or a reason for each."""
    shots = [(example.question, example.response)]
    prompts = [model.prompt_ids(child.question, shots=shots) for child in asked]
    longest = sampling.longest(model, example.response)
    if not prompts or max(map(len, prompts)) + longest > model.context_length:
        return [Reason.NO_ROOM] * len(asked)
    replies = sampling.draw(model, prompts, example.example_id, "answer", attempt, longest=longest)
    return [
        check_answer(reply, original=example.response, rules=sampling.rules) or child_of(example, child.question, reply)
        for child, reply in zip(asked, (" ".join(reply.split()) for reply in replies), strict=True)
    ]
