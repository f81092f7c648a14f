"""Draw samples for one example until enough of them pass.

All samples of a batch belong to one example, and every sample's seed derives from its example: what is synthesized for
an example depends on nothing but that example, the model and the run's seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from client.dialogue import Example, derive_id, derive_seed
from client.model import BaseModel
from client.synthesis.check import DEFAULT_RULES, Reason, Rules
from florilegium.errors import ConfigError

__all__ = ["DEFAULT_TEMPERATURE", "Draw", "Outcome", "Sampling", "Synthesis", "Synthesizer", "child_of", "fill"]

DEFAULT_TEMPERATURE: Final = 0.7

Outcome: TypeAlias = Example | Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesis:
    """What was synthesized for one example.

    Attributes:
        children: the accepted examples, in the order they were drawn.
        drops: how many samples were dropped for each reason; with the children they make up all samples drawn.
    """

    children: tuple[Example, ...]
    drops: Counter[str]


class Synthesizer(Protocol):
    """Write examples that resemble one."""

    def __call__(
        self,
        model: BaseModel,
        example: Example,
        *,
        count: int = 3,
        seed: int,
        temperature: float = DEFAULT_TEMPERATURE,
        rules: Rules = DEFAULT_RULES,
    ) -> Synthesis:
        """Return up to `count` children of `example`.

        Args:
            model: writes them.
            example: the row of an annotated dialogue.
            count: children wanted, and samples in a batch; the paper uses 3 and sees gains up to 6.
            seed: the run's seed; each sample derives its own from it and the example's identifier.
            temperature: of the sampling; at 0 all samples would be one.
            rules: what a child must satisfy.

        Raises:
            ConfigError: `count` is negative or `temperature` is not above 0.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How samples are drawn; see `Synthesizer`."""

    count: int
    seed: int
    temperature: float
    rules: Rules

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError(f"the synthesis count must be >= 0, got {self.count}", "0 turns synthesis off")
        if not self.temperature > 0.0:
            raise ConfigError(
                f"the synthesis temperature must be > 0, got {self.temperature}", f"try {DEFAULT_TEMPERATURE}"
            )

    def draw(self, model: BaseModel, prompts: Sequence[list[int]], *labels: str | int, longest: int) -> list[str]:
        """Return one reply of at most `longest` tokens to each prompt, all in one batch; `labels` name the batch."""
        seeds = [derive_seed(self.seed, *labels, sample) for sample in range(len(prompts))]
        replies = model.generate(prompts, max_new_tokens=longest, temperature=self.temperature, seeds=seeds)
        return [reply.text for reply in replies]

    def longest(self, model: BaseModel, text: str) -> int:
        """Return how many tokens a text that stands in for `text` may take."""
        return int(self.rules.length_ratio * len(model.tokenizer.encode(text, add_special_tokens=False))) + 16


Draw: TypeAlias = Callable[[int, Sequence[Example]], Sequence[Outcome]]


def fill(draw: Draw, sampling: Sampling) -> Synthesis:
    """Draw batches until enough children are found or the rules' number of batches is spent.

    Args:
        draw: given the attempt's number and the children so far, returns a child or a reason for each sample.
        sampling: how many children are wanted, and in how many batches.
    """
    children: list[Example] = []
    drops: Counter[str] = Counter()
    for attempt in range(sampling.rules.batches):
        if len(children) >= sampling.count:
            break
        for outcome in draw(attempt, children):
            if isinstance(outcome, Reason):
                drops[outcome.value] += 1
            elif len(children) < sampling.count:
                children.append(outcome)
            else:
                drops[Reason.SURPLUS.value] += 1
    return Synthesis(children=tuple(children), drops=drops)


def child_of(example: Example, question: str, response: str) -> Example:
    """Make a child of `example`; its identifier depends on its texts and its source alone."""
    key = derive_id("child", example.source_id, question, response)
    return Example(question=question, response=response, source_id=example.source_id, example_id=key)
