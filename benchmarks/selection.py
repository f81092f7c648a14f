"""Measure what selection costs a device for each dialogue, beside generating that dialogue's response.

    python -m benchmarks.selection
    python -m benchmarks.selection --bins 128 --rounds 20 --json

Each round generates one response and then lets buffers that are full decide about it, so that whatever slows the
machine slows both. Reported, in milliseconds, for each size of buffer: the metrics (both readings of EOE, words, DSS,
domain), the policy with its index (IDD, decision, replacement), the durable write with all else that `offer` does, and
their sum as a share of generating. Two models: the built-in one, and one of the shape of Qwen2.5-0.5B with random
weights, which takes as long as the real one and needs no download.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from benchmarks.models import HALF_BILLION, half_billion
from benchmarks.report import markdown
from client.buffer import PrivateBuffer
from client.dialogue import Dialogue, derive_seed
from client.model import BaseModel, Embedding, load_model
from client.selection import Held, Lexicons, Scored, eoe_energy, eoe_histogram, load_lexicons, make_policy, score
from client.selection.policy import Action
from florilegium.errors import FlorilegiumError

WORDS: Final = ("what", "how", "my", "the", "doctor", "soup", "train", "sister", "garden", "was", "tell", "Friday")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Milliseconds of one round, or of a percentile of rounds."""

    generate: float
    metrics: float
    policy: float
    write: float

    @property
    def selection(self) -> float:
        """All that selection costs."""
        return self.metrics + self.policy + self.write


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The costs at one size of buffer with one model."""

    model: str
    hidden: int
    bins: int
    policy: str
    rounds: int
    tokens: float
    median: Cost
    p95: Cost
    share_median: float
    share_p95: float


def make_dialogue(number: int) -> Dialogue:
    """Write a question of a dozen words."""
    rng = np.random.default_rng(derive_seed("benchmark", number))
    question = " ".join(rng.choice(WORDS, 12))
    return Dialogue(question=question, response=" ".join(rng.choice(WORDS, 12)), dialogue_id=f"d{number}")


def make_embedding(number: int, hidden: int) -> Embedding:
    """Draw an embedding; all of them share a direction, as those of language models do."""
    rng = np.random.default_rng(derive_seed("embedding", number))
    vector = rng.normal(size=hidden) + 1
    return Embedding((vector / np.linalg.norm(vector)).astype(np.float32), 1.0, float(rng.random()))


def milliseconds(act: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    act()
    return (time.perf_counter() - start) * 1000


class Bench:
    """A full buffer in a file, and the same index beside it to time the policy alone."""

    def __init__(self, path: Path, bins: int, hidden: int, policy: str, lexicons: Lexicons) -> None:
        self.buffer = PrivateBuffer(path, bins=bins, policy=policy, holdout_share=0, lexicons=lexicons)
        self._policy, self._lexicons, self._hidden = make_policy(policy), lexicons, hidden
        self._held = Held(bins)
        for number in range(bins):
            dialogue, embedding = make_dialogue(number), make_embedding(number, hidden)
            self.buffer.offer(dialogue, embedding)
            self._held.add(self._score(dialogue, embedding), number)
        self._held.seen = bins

    def _score(self, dialogue: Dialogue, embedding: Embedding) -> Scored:
        scored = score(dialogue, embedding, self._lexicons)
        assert scored is not None
        return scored

    def _select(self, scored: Scored, number: int) -> None:
        newcomer = replace(scored, idd=self._held.idd_of(scored.vector, scored.domain))
        decision = self._policy.decide(newcomer, self._held, np.random.default_rng(number))
        self._held.seen += 1
        if decision.action is Action.REPLACE and decision.victim_id is not None:
            self._held.replace(self._held.ids.index(decision.victim_id), newcomer, number)

    def measure(self, dialogue: Dialogue, embedding: Embedding, tokens: int, generate: float, number: int) -> Cost:
        """Let the buffer decide about a dialogue of `tokens` tokens whose response took `generate` milliseconds."""
        states = np.random.default_rng(number).normal(size=(tokens, self._hidden)).astype(np.float32)
        readings = milliseconds(lambda: (eoe_energy(states), eoe_histogram(states)))
        scores = milliseconds(lambda: self._score(dialogue, embedding))
        scored = self._score(dialogue, embedding)
        policy = milliseconds(lambda: self._select(scored, number))
        offer = milliseconds(lambda: self.buffer.offer(dialogue, embedding))
        return Cost(
            generate=generate, metrics=readings + scores, policy=policy, write=max(0.0, offer - scores - policy)
        )


def run(
    model: BaseModel, label: str, bins: list[int], rounds: int, policy: str, max_new_tokens: int
) -> Iterator[Result]:
    """Measure one model with buffers of several sizes."""
    lexicons = load_lexicons()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        benches = {
            size: Bench(Path(folder) / f"{size}.sqlite", size, model.hidden_size, policy, lexicons) for size in bins
        }
        for bench in benches.values():
            stack.enter_context(bench.buffer)
        costs: dict[int, list[Cost]] = {size: [] for size in bins}
        lengths = []
        for number in range(-1, rounds):  # the first one warms up
            asked = make_dialogue(10**6 + number)
            start = time.perf_counter()
            (answer,) = model.respond([asked.question], max_new_tokens=max_new_tokens, embed=False)
            generate = (time.perf_counter() - start) * 1000
            dialogue = replace(asked, response=answer.text)
            embedding = model.embed([dialogue])[0]
            tokens = len(model.prompt_ids(asked.question)) + answer.token_count
            for size, bench in benches.items():
                cost = bench.measure(dialogue, embedding, tokens, generate, 10**6 + number)
                if number >= 0:
                    costs[size].append(cost)
            if number >= 0:
                lengths.append(answer.token_count)
    for size, measured in costs.items():
        shares = [cost.selection / cost.generate for cost in measured]
        yield Result(
            model=label,
            hidden=model.hidden_size,
            bins=size,
            policy=policy,
            rounds=rounds,
            tokens=statistics.median(lengths),
            median=at_percentile(measured, 50),
            p95=at_percentile(measured, 95),
            share_median=float(np.percentile(shares, 50)),
            share_p95=float(np.percentile(shares, 95)),
        )


def at_percentile(costs: list[Cost], percent: float) -> Cost:
    """Return a percentile of each part on its own."""
    names = Cost.__dataclass_fields__
    return Cost(**{name: float(np.percentile([getattr(cost, name) for cost in costs], percent)) for name in names})


def table(results: list[Result]) -> str:
    """Return a table, medians with 95th percentiles in brackets."""
    rows = []
    for result in results:
        parts = [
            f"{getattr(result.median, name):.2f} ({getattr(result.p95, name):.2f})"
            for name in ("generate", "metrics", "policy", "write")
        ]
        share = f"**{result.share_median:.2%}** ({result.share_p95:.2%})"
        rows.append([result.model, f"{result.bins:,}", f"{result.tokens:.0f}", *parts, share])
    return markdown(
        ["model", "bins", "tokens", "generate, ms", "metrics, ms", "policy, ms", "write, ms", "share of generating"],
        rows,
    )


def main(
    model: Annotated[str, typer.Option(help="The first model: a name or folder for load_model.")] = "seedling",
    bins: Annotated[list[int], typer.Option(help="A size of buffer; may be given several times.")] = [128, 4096],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Dialogues measured with the first model.", min=1)] = 50,
    large_rounds: Annotated[int, typer.Option(help="Dialogues measured with the 0.5 B model; 0 leaves it out.")] = 5,
    policy: Annotated[str, typer.Option(help="The selection policy.")] = "improved",
    max_new_tokens: Annotated[int, typer.Option(help="The longest response, in tokens.", min=1)] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Measure the cost of selection per dialogue beside generating its response.

    Example: python -m benchmarks.selection --bins 128 --bins 4096 --rounds 50 --json
    """
    try:
        small = load_model(model)
        results = list(run(small, model, bins, rounds, policy, max_new_tokens))
        if large_rounds:
            large = BaseModel(HALF_BILLION, half_billion("float32"), small.tokenizer)
            results += run(large, HALF_BILLION, bins, large_rounds, policy, max_new_tokens)
    except FlorilegiumError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        for result in results:
            typer.echo(json.dumps(asdict(result)))
    else:
        typer.echo(table(results))


if __name__ == "__main__":
    typer.run(main)
