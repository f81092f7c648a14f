"""Pairs: the model writes a similar question and its answer (Qin et al., arXiv 2311.12275, the abstract).

The question is reworded as in `questions`; then the model answers it, with the annotated pair before it as the example
of how this user wants to be answered. An answer that strays from the annotated one is dropped with its question: what a
small model invents must not become a fact about the user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from client.dialogue import Example
from client.model import BaseModel
from client.synthesis.check import DEFAULT_RULES, Reason, Rules, check_answer
from client.synthesis.questions import draw_questions
from client.synthesis.sampling import DEFAULT_TEMPERATURE, Draft, Outcome, Sample, Sampling, Synthesis, child_of, fill

__all__ = ["synthesize_pairs"]


def synthesize_pairs(
    model: BaseModel,
    examples: Sequence[Example],
    *,
    count: int = 3,
    seed: int,
    temperature: float = DEFAULT_TEMPERATURE,
    rules: Rules = DEFAULT_RULES,
) -> list[Synthesis]:
    """Return children with a question and a response of the model's own; see `Synthesizer`."""
    sampling = Sampling(count=count, seed=seed, temperature=temperature, rules=rules)

    def draw(attempt: int, drafts: Sequence[Draft]) -> list[list[Outcome]]:
        drawn = draw_questions(model, drafts, attempt, sampling)
        asked = [
            (draft.example, outcome)
            for draft, outcomes in zip(drafts, drawn, strict=True)
            for outcome in outcomes
            if isinstance(outcome, Example)
        ]
        answered = iter(_answer(model, asked, attempt, sampling))
        return [[next(answered) if isinstance(each, Example) else each for each in outcomes] for outcomes in drawn]

    return fill(draw, examples, sampling)


def _answer(
    model: BaseModel, asked: Sequence[tuple[Example, Example]], attempt: int, sampling: Sampling
) -> list[Outcome]:
    """Let the model answer its own questions, each beside its source; return a child or a reason for each."""
    seen: Counter[str] = Counter()
    samples = []
    for source, child in asked:
        samples.append(
            Sample(
                prompt=model.prompt_ids(child.question, shots=[(source.question, source.response)]),
                longest=sampling.longest(model, source.response),
                label=(source.example_id, "answer", attempt, seen[source.example_id]),
            )
        )
        seen[source.example_id] += 1
    replies = sampling.draw(model, samples)
    return [_judge(*pair, reply, sampling) for pair, reply in zip(asked, replies, strict=True)]


def _judge(source: Example, child: Example, reply: str | None, sampling: Sampling) -> Outcome:
    if reply is None:
        return Reason.NO_ROOM
    text = " ".join(reply.split())
    return check_answer(text, original=source.response, rules=sampling.rules) or child_of(source, child.question, text)
