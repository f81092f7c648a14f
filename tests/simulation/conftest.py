"""Made-up records, for tests of what is done with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from simulation.arms import Arm, find_arms
from simulation.records import RoundRecord
from simulation.summary import Summary, summarize

ROUNDS = 2
ANNOTATIONS, SYNTHESIS = 12, 2
GAINS = {"none": 0.0, "retrieval": 0.03, "local-random": 0.05, "local-improved": 0.08, "full-stream": 0.15}


def _record(arm: Arm, seed: int, user: int, number: int, rng: np.random.Generator) -> RoundRecord:
    gain = GAINS.get(arm.name, 0.05) * number / ROUNDS + (0.01 * rng.normal() if arm.learns and number else 0.0)
    rows = (ANNOTATIONS * number * (1 + SYNTHESIS)) * arm.trains
    originals, synthesized = rows // 3, rows // 6 * (arm.synthesizer != "none")
    scores = {
        "rouge1": 0.3 + gain,
        "rougeL": 0.28 + gain,
        "nll": 2.4 - 3 * gain,
        "forgetting": 0.01 * number * arm.trains,
    }
    return RoundRecord(
        seed=seed,
        user=f"u{user}",
        arm=arm.name,
        round=number,
        seen=40 * number,
        annotations=ANNOTATIONS * number * arm.learns,
        gate_annotations=4 * number * arm.learns,
        original_rows=originals,
        synthesized_rows=synthesized,
        repeated_rows=rows - originals - synthesized,
        steps=rows // 8,
        promoted=bool(rng.random() < 0.8) if rows else None,
        scores=scores,
        candidate=scores if rows else {},
        by_kind={kind: {name: scores[name] for name in ("rouge1", "rougeL", "nll")} for kind in ("private", "common")},
        kept={"private": 10, "chitchat": 5} if arm.learns else {},
        decisions={"train/keep/free-bin": 15, "train/drop/beaten": 3 * number} if arm.learns else {},
        drops={"no-brackets": 2} if synthesized else {},
        seconds=1.5,
    )


@pytest.fixture
def make_records() -> Callable[..., list[RoundRecord]]:
    """Return a function that makes up the records of arms for some seeds and users."""

    def make(arms: Sequence[str], seeds: int = 3, users: int = 4) -> list[RoundRecord]:
        rng = np.random.default_rng(0)
        return [
            _record(arm, seed, user, number, rng)
            for seed in range(seeds)
            for user in range(users)
            for arm in find_arms(arms)
            for number in range(ROUNDS + 1)
        ]

    return make


@pytest.fixture
def make_summary(make_records: Callable[..., list[RoundRecord]]) -> Callable[..., Summary]:
    """Return a function that makes up the summary of arms."""

    def make(arms: Sequence[str] = tuple(GAINS), **sizes: int) -> Summary:
        return summarize(
            make_records(arms, **sizes),
            arms=find_arms(arms),
            model="seedling",
            config={"bins": 36},
            stream_kinds={"private": 100, "chitchat": 200, "": 3},
            draws=200,
        )

    return make
