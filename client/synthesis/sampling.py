"""Draw samples for each example until enough of them pass.

The samples of all examples share batches, but every sample's seed derives from its own example: what is synthesized for
an example depends on nothing but that example, the model and the run's seed, up to the rounding of logits that comes
with a batch's shape. Where not even that may be seen, as on a device that must be able to forget, give one at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

from client.dialogue import Example, derive_id, derive_seed
from client.model import BaseModel
from client.synthesis.check import DEFAULT_RULES, Reason, Rules
from florilegium.errors import ConfigError

__all__ = [
    "DEFAULT_TEMPERATURE",
    "Draft",
    "Draw",
    "Outcome",
    "Sample",
    "Sampling",
    "Synthesis",
    "Synthesizer",
    "child_of",
    "fill",
]

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
    """Write examples that resemble others."""

    def __call__(
        self,
        model: BaseModel,
        examples: Sequence[Example],
        *,
        count: int = 3,
        seed: int,
        temperature: float = DEFAULT_TEMPERATURE,
        rules: Rules = DEFAULT_RULES,
    ) -> list[Synthesis]:
        """Return up to `count` children of each example, in the order of the examples.

        Args:
            model: writes them.
            examples: the rows of annotated dialogues.
            count: children of an example wanted, and samples drawn for it at a time; the paper uses 3 and sees gains
                up to 6.
            seed: the run's seed; each sample derives its own from it and the example's identifier.
            temperature: of the sampling; at 0 all samples would be one.
            rules: what a child must satisfy.

        Raises:
            ConfigError: `count` is negative or `temperature` is not above 0.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One text to draw.

    Attributes:
        prompt: what the model is told.
        longest: most tokens of the reply.
        label: what its seed derives from, beside the run's; it names the example first.
    """

    prompt: list[int] = field(repr=False)
    longest: int
    label: tuple[str | int, ...]


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

    def draw(self, model: BaseModel, samples: Sequence[Sample]) -> list[str | None]:
        """Return a reply to each sample, all drawn in one call; None where the context is too short for it."""
        fits = [len(sample.prompt) + sample.longest <= model.context_length for sample in samples]
        drawn = [sample for sample, fit in zip(samples, fits, strict=True) if fit]
        if not drawn:
            return [None] * len(samples)
        replies = model.generate(
            [sample.prompt for sample in drawn],
            max_new_tokens=[sample.longest for sample in drawn],
            temperature=self.temperature,
            seeds=[derive_seed(self.seed, *sample.label) for sample in drawn],
        )
        texts = iter(replies)
        return [next(texts).text if fit else None for fit in fits]

    def longest(self, model: BaseModel, text: str) -> int:
        """Return how many tokens a text that stands in for `text` may take."""
        return int(self.rules.length_ratio * len(model.tokenizer.encode(text, add_special_tokens=False))) + 16


@dataclass(slots=True)
class Draft:
    """What is found for one example so far."""

    example: Example
    children: list[Example] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)

    def take(self, outcomes: Sequence[Outcome], count: int) -> None:
        """Keep the children that are still wanted, and count why the rest was dropped."""
        for outcome in outcomes:
            if isinstance(outcome, Reason):
                self.drops[outcome.value] += 1
            elif len(self.children) < count:
                self.children.append(outcome)
            else:
                self.drops[Reason.SURPLUS.value] += 1


Draw: TypeAlias = Callable[[int, Sequence[Draft]], Sequence[Sequence[Outcome]]]


def fill(draw: Draw, examples: Sequence[Example], sampling: Sampling) -> list[Synthesis]:
    """Draw batches until every example has enough children or the rules' number of batches is spent.

    Args:
        draw: given the attempt's number and the drafts that want more, returns for each of them a child or a reason for
            every sample.
        examples: what is to have children.
        sampling: how many children are wanted, and in how many batches.
    """
    drafts = [Draft(example) for example in examples]
    for attempt in range(sampling.rules.batches):
        wanting = [draft for draft in drafts if len(draft.children) < sampling.count]
        if not wanting:
            break
        for draft, outcomes in zip(wanting, draw(attempt, wanting), strict=True):
            draft.take(outcomes, sampling.count)
    return [Synthesis(children=tuple(draft.children), drops=draft.drops) for draft in drafts]


def child_of(example: Example, question: str, response: str) -> Example:
    """Make a child of `example`; its identifier depends on its texts and its source alone."""
    key = derive_id("child", example.source_id, question, response)
    return Example(question=question, response=response, source_id=example.source_id, example_id=key)
