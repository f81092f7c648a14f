"""Hold questions out: about what the stream has shown, in wordings the stream has not used for it.

A held-out question is admitted if its wording is one of the topic's `kept` ones (never used for that topic by that
user) and if it is no near-copy (`simulation.overlap`) of any question of the user's stream, also none about something
else. Its answer is the one the user prefers at the stream's end: the newest fact, in the present style.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from client.dialogue import Example, derive_id
from simulation.overlap import KnownTexts
from simulation.world.facts import Fact
from simulation.world.profile import Topic
from simulation.world.stream import Talk
from simulation.world.style import render

__all__ = ["SHARES", "hold_out"]

SHARES: Final = {"private": 0.50, "common": 0.25, "view": 0.10, "style": 0.15}


def _candidates(topics: Sequence[Topic], talk: Talk) -> Iterator[tuple[Topic, Fact, str]]:
    """Yield questions, the first wording of every shown topic before the second of any."""
    shown = talk.rng.sample([topic for topic in topics if topic in talk.shown], sum(t in talk.shown for t in topics))
    rounds = max((len(topic.kept) for topic in shown), default=0)
    for number in range(rounds):
        for topic in shown:
            if number < len(topic.kept):
                fact = talk.facts[topic]
                yield topic, fact, render(topic.kept[number], fact, talk.style)


def hold_out(talk: Talk, user_key: str) -> tuple[tuple[Example, ...], dict[str, str]]:
    """Return held-out questions with their answers, at most as many as the config wants, and the kind of each."""
    profile = talk.profile
    groups = {
        "private": profile.private, "common": profile.common, "view": profile.views, "style": profile.chitchat,
    }  # fmt: skip
    stream = KnownTexts(talk.questions)
    examples: list[Example] = []
    kinds: dict[str, str] = {}
    for label, topics in groups.items():
        wanted = round(SHARES[label] * talk.config.heldout)
        for topic, fact, question in _candidates(topics, talk):
            if wanted == 0:
                break
            if stream.give_away(question):
                continue
            key = derive_id("heldout", user_key, len(examples))
            answer = talk.preferred(topic, fact)
            examples.append(Example(question=question, response=answer, source_id=key, example_id=key))
            kinds[key] = label
            wanted -= 1
    return tuple(examples), kinds
