"""Questions: the model rewords the question, the annotated response is kept (Qin et al., arXiv 2311.12275, fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence

from client.dialogue import Example
from client.model import BaseModel
from client.synthesis.brackets import bracketed
from client.synthesis.check import DEFAULT_RULES, Reason, Rules, check_question
from client.synthesis.meaning import word_key
from client.synthesis.prompt import rewrite_prompt
from client.synthesis.sampling import DEFAULT_TEMPERATURE, Draft, Outcome, Sample, Sampling, Synthesis, child_of, fill

__all__ = ["draw_questions", "judge_replies", "synthesize_questions"]


def synthesize_questions(
    model: BaseModel,
    examples: Sequence[Example],
    *,
    count: int = 3,
    seed: int,
    temperature: float = DEFAULT_TEMPERATURE,
    rules: Rules = DEFAULT_RULES,
) -> list[Synthesis]:
    """Return children that ask the same in other words and have the same response; see `Synthesizer`."""
    sampling = Sampling(count=count, seed=seed, temperature=temperature, rules=rules)

    def draw(attempt: int, drafts: Sequence[Draft]) -> list[list[Outcome]]:
        return draw_questions(model, drafts, attempt, sampling)

    return fill(draw, examples, sampling)


def draw_questions(model: BaseModel, drafts: Sequence[Draft], attempt: int, sampling: Sampling) -> list[list[Outcome]]:
    """Let the model reword each draft's question `count` times; return a child or a reason for each sample."""
    samples = [
        Sample(
            prompt=model.prompt_ids(rewrite_prompt(draft.example.question)),
            longest=sampling.longest(model, draft.example.question),
            label=(draft.example.example_id, attempt, number),
        )
        for draft in drafts
        for number in range(sampling.count)
    ]
    replies = sampling.draw(model, samples)
    return [
        judge_replies(replies[at * sampling.count :][: sampling.count], draft.example, draft.children, sampling.rules)
        for at, draft in enumerate(drafts)
    ]


def judge_replies(
    replies: Sequence[str | None], example: Example, siblings: Sequence[Example], rules: Rules
) -> list[Outcome]:
    """Return, for each reply (None: there was no room for one), the child it makes or the reason why it makes none."""
    taken = {word_key(sibling.question) for sibling in siblings}
    outcomes: list[Outcome] = []
    for reply in replies:
        outcome = _judge(reply, example, taken, rules)
        if isinstance(outcome, Example):
            taken.add(word_key(outcome.question))
        outcomes.append(outcome)
    return outcomes


def _judge(reply: str | None, example: Example, taken: set[tuple[str, ...]], rules: Rules) -> Outcome:
    if reply is None:
        return Reason.NO_ROOM
    question = bracketed(reply)
    if question is None:
        return Reason.NO_BRACKETS
    reason = check_question(question, original=example.question, response=example.response, siblings=taken, rules=rules)
    return reason or child_of(example, question, example.response)
