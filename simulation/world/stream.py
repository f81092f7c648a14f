"""Let a user talk: years of dialogues in arrival order, and what holds when they end.

Most turns are small talk. Facts come up now and then, some much more often than others, in the wordings that are this
user's in the stream; earlier questions return, word for word or retyped. Some private facts change, which the user
mentions at the next opportunity; from then on the new fact holds, also for repeated questions, and for questions of the
past that the user is asked about later.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from client.dialogue import derive_id
from simulation.users import Turn
from simulation.world import speech
from simulation.world.config import WorldConfig
from simulation.world.facts import Fact, draw_fact, redraw
from simulation.world.profile import Profile, Topic
from simulation.world.retyping import retype
from simulation.world.style import PLAIN, Style, drift_style, render

__all__ = ["Talk"]

_DAYS_A_YEAR: Final = 365
_POPULARITY_EXPONENT: Final = 0.7


@dataclass(slots=True)
class _Said:
    """A turn, and what it asks for if it is a question.

    Attributes:
        kind: where it comes from.
        question: what the user says.
        preferred: the ideal answer at the time.
        topic: what is asked about; None for a statement.
        fact: what held at the time.
        day: when it was said.
        revisions: (day, answer) since.
    """

    kind: str
    question: str
    preferred: str
    topic: Topic | None = None
    fact: Fact | None = None
    day: int = 0
    revisions: list[tuple[int, str]] = field(default_factory=list)


def _moments(rate: float, until: float, rng: random.Random) -> Iterator[float]:
    """Yield the moments of rare events before `until`, `rate` of them per unit of time (a Poisson process)."""
    moment = rng.expovariate(rate) if rate > 0 else until
    while moment < until:
        yield moment
        moment += rng.expovariate(rate)


@dataclass(slots=True)
class Talk:
    """A user's talk as it goes on.

    Attributes:
        profile: who talks.
        config: the world's knobs.
        rng: the user's own source of chance.
        style: the preferred style as of now.
        facts: for each topic, what holds as of now (chit-chat: what it was about last).
        shown: the topics whose present fact has occurred in the stream.
        questions: all questions so far.
    """

    profile: Profile
    config: WorldConfig
    rng: random.Random
    style: Style
    facts: dict[Topic, Fact] = field(default_factory=dict)
    shown: set[Topic] = field(default_factory=set)
    questions: list[str] = field(default_factory=list)
    _said: list[_Said] = field(default_factory=list)
    _past: list[_Said] = field(default_factory=list)
    _to_mention: deque[Topic] = field(default_factory=deque)

    @classmethod
    def begin(cls, profile: Profile, config: WorldConfig, rng: random.Random) -> Talk:
        """Start with what the profile holds."""
        talk = cls(profile=profile, config=config, rng=rng, style=profile.style)
        known = (*profile.private, *profile.common, *profile.views)
        talk.facts = {topic: topic.fact for topic in known if topic.fact is not None}
        return talk

    def turns(self, user_key: str) -> tuple[Turn, ...]:
        """Return the stream."""
        span = self.config.years * _DAYS_A_YEAR
        changes = deque(sorted(self._changes(), key=lambda change: change[0]))
        for moment in sorted(self.rng.uniform(0, span) for _ in range(self.config.turns)):
            while changes and changes[0][0] * _DAYS_A_YEAR <= moment:
                years, topic = changes.popleft()
                self._drift(topic)
                self._revise(topic, int(years * _DAYS_A_YEAR))
            said = self._next()
            said.day = int(moment)
            self._said.append(said)
            self.questions.append(said.question)
        return tuple(
            Turn(
                turn_id=derive_id("turn", user_key, index),
                question=said.question,
                preferred=said.preferred,
                kind=said.kind,
                day=said.day,
                revisions=tuple(said.revisions),
            )
            for index, said in enumerate(self._said)
        )

    def preferred(self, topic: Topic, fact: Fact) -> str:
        """Return the user's usual answer in the present style."""
        bodies = self.style.bodies(topic.kind)
        return self.style.dress(render(bodies[topic.usual % len(bodies)], fact, self.style))

    def _changes(self) -> Iterator[tuple[float, Topic | None]]:
        config = self.config
        for moment in _moments(config.style_drift, config.years, self.rng):
            yield moment, None
        for topic in self.profile.private:
            for moment in _moments(config.fact_drift, config.years, self.rng):
                yield moment, topic

    def _drift(self, topic: Topic | None) -> None:
        if topic is None:
            self.style = drift_style(self.style, self.rng)
            return
        self.facts[topic] = redraw(self.facts[topic], self.rng)
        self.shown.discard(topic)
        self._to_mention.append(topic)

    def _revise(self, topic: Topic | None, day: int) -> None:
        """Note what the user would answer to past questions now that a topic, or the style, has changed."""
        for said in self._said:
            if said.topic is not None and (topic is None or said.topic is topic):
                said.revisions.append((day, self.preferred(said.topic, self._present(said))))

    def _present(self, said: _Said) -> Fact:
        """Return what holds now of what was asked about."""
        assert said.topic is not None
        assert said.fact is not None
        return said.fact if said.topic.fact is None else self.facts[said.topic]

    def _next(self) -> _Said:
        speakers: tuple[Callable[[], _Said], ...] = (
            self._chat, self._private, self._common, self._view, self._repeat, self._near_duplicate,
        )  # fmt: skip
        return self.rng.choices(speakers, self.config.weights())[0]()

    def _reply(self, topic: Topic, fact: Fact) -> str:
        """Answer as `preferred` does, most of the time."""
        config, rng, style = self.config, self.rng, self.style
        if rng.random() >= config.answer_variety:
            bodies = style.bodies(topic.kind)
            body = render(bodies[topic.usual % len(bodies)], fact, style)
        else:
            body = speech.answer(fact, style, rng)
        return self._dressed(body)

    def _dressed(self, body: str) -> str:
        return (self.style if self.rng.random() < self.config.style_strength else PLAIN).dress(body)

    def _ask(self, topic: Topic, fact: Fact) -> _Said:
        question = speech.ask(fact, topic.asked, self.style, self.rng)
        said = _Said(topic.label, question, self._reply(topic, fact), topic, fact)
        self._past.append(said)
        self.shown.add(topic)
        return said

    def _favourite(self, topics: Sequence[Topic]) -> Topic:
        weights = [(rank + 1) ** -_POPULARITY_EXPONENT for rank in range(len(topics))]
        return self.rng.choices(topics, weights)[0]

    def _chat(self) -> _Said:
        topic = self.rng.choice(self.profile.chitchat)
        self.facts[topic] = draw_fact(topic.kind, self.rng, training=False, divided=False)
        return self._ask(topic, self.facts[topic])

    def _private(self) -> _Said:
        if self._to_mention:
            return self._state(self._to_mention.popleft(), "change")
        topic = self._favourite(self.profile.private)
        if self.rng.random() < self.config.tell:
            return self._state(topic, "tell")
        return self._ask(topic, self.facts[topic])

    def _state(self, topic: Topic, kind: str) -> _Said:
        fact = self.facts[topic]
        said = (speech.change if kind == "change" else speech.tell)(fact, self.style, self.rng)
        self.shown.add(topic)
        return _Said(kind, said, self._dressed(speech.acknowledge(fact, self.style, self.rng)))

    def _common(self) -> _Said:
        topic = self._favourite(self.profile.common)
        return self._ask(topic, self.facts[topic])

    def _view(self) -> _Said:
        topic = self._favourite(self.profile.views)
        return self._ask(topic, self.facts[topic])

    def _repeat(self) -> _Said:
        return self._again("repeat", lambda question: question)

    def _near_duplicate(self) -> _Said:
        return self._again("near-duplicate", lambda question: retype(question, self.rng, slips=self.config.typos))

    def _again(self, kind: str, edit: Callable[[str], str]) -> _Said:
        if not self._past:
            return self._chat()
        past = self.rng.choice(self._past)
        assert past.topic is not None
        fact = self._present(past)
        return _Said(kind, edit(past.question), self._reply(past.topic, fact), past.topic, fact)
