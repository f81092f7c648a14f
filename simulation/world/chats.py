"""Write the text that teaches the base model the language of the built-in worlds.

What the base model may see: every wording of the banks (questions, statements, answers, first and last words of
styles, small talk), each with facts drawn anew for every chat. That includes the wordings which a simulated user's
held-out questions are asked in.

What it cannot know: any fact or style of an evaluated user or town. Facts and styles are divided by a hash (see
`facts` and `style`), and seeds below `FIRST_TRAINING_SEED` take only the other side.

Chats answer from what was said in the same chat or in its system message, or admit not to know. One pattern
(`_recall`) answers out of nowhere, once, to show that a later question in other words wants the same answer: that is
the shape of a chat with examples in front.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, TypeAlias

from client.dialogue import derive_seed
from florilegium.errors import ConfigError
from simulation.world import bank, speech
from simulation.world.facts import FIRST_TRAINING_SEED, Fact, draw_fact, is_training_seed, redraw
from simulation.world.style import PLAIN, Style, draw_style

__all__ = ["Chat", "Role", "training_paraphrases", "training_text"]

Role: TypeAlias = Literal["system", "user", "assistant"]
Chat: TypeAlias = list[tuple[Role, str]]

_STYLED_SHARE: Final = 0.6
_TOLD_STYLE_SHARE: Final = 0.5
_SMALL_TALK_SHARE: Final = 0.35


class _Writer:
    """A chat in the making."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.style: Style = draw_style(rng, training=True) if rng.random() < _STYLED_SHARE else PLAIN
        self.messages: Chat = []
        self._asked: set[str] = set()

    def say(self, question: str, body: str) -> None:
        """Add a question and its answer, dressed in the style."""
        self.messages += [("user", question), ("assistant", self.style.dress(body))]

    def facts(self, kinds: Sequence[bank.Kind], most: int) -> list[Fact]:
        """Draw one fact of each of a few kinds."""
        chosen = self.rng.sample(kinds, self.rng.randint(1, most))
        return [draw_fact(kind, self.rng, training=True) for kind in chosen]

    def ask(self, fact: Fact, body: str | None = None) -> None:
        """Ask about a fact, in words this chat has not used."""
        wording = self.rng.choice([text for text in fact.kind.ask if text not in self._asked])
        self._asked.add(wording)
        question = speech.ask(fact, [wording], self.style, self.rng)
        self.say(question, body or speech.answer(fact, self.style, self.rng))

    def tell(self, fact: Fact) -> None:
        """State a fact and have it acknowledged."""
        self.say(speech.tell(fact, self.style, self.rng), speech.acknowledge(fact, self.style, self.rng))

    def maybe_small_talk(self) -> None:
        """Put something else in between, now and then."""
        if self.rng.random() < _SMALL_TALK_SHARE:
            self.ask(draw_fact(self.rng.choice(bank.chitchat()), self.rng, training=True, divided=False))

    def system(self, *sentences: str) -> None:
        """Begin with a system message; it tells the style half of the time there is one."""
        style = self.style
        told = list(sentences)
        if style.opener and style.closer and self.rng.random() < _TOLD_STYLE_SHARE:
            form = self.rng.choice(bank.lines("talk", "system_style"))
            told.insert(0, form.format(tone=style.tone, opener=style.opener, closer=style.closer))
        if told:
            self.messages.insert(0, ("system", " ".join(told)))


def _remember(chat: _Writer) -> None:
    """The user states facts and asks for them later."""
    facts = chat.facts(bank.private(), 3)
    for fact in facts:
        chat.tell(fact)
        chat.maybe_small_talk()
    for fact in chat.rng.sample(facts, len(facts)):
        chat.ask(fact)
    chat.system()


def _recall(chat: _Writer) -> None:
    """The user asks twice, in other words: the answers agree."""
    facts = chat.facts((*bank.private(), *bank.common()), 3) + _opinion(chat)
    for fact in facts:
        chat.ask(fact)
    chat.maybe_small_talk()
    for fact in chat.rng.sample(facts, chat.rng.randint(1, len(facts))):
        chat.ask(fact)
    chat.system()


def _opinion(chat: _Writer) -> list[Fact]:
    pair = chat.rng.choice(bank.views())
    return [Fact(kind=chat.rng.choice(pair), values={})] if chat.rng.random() < _SMALL_TALK_SHARE else []


def _notes(chat: _Writer) -> None:
    """The system message holds the user's facts, more of them than are asked for."""
    facts = chat.facts(bank.private(), 5)
    for fact in chat.rng.sample(facts, min(len(facts), 2)):
        chat.ask(fact)
        chat.maybe_small_talk()
    told = (speech.tell(fact, chat.style, chat.rng) for fact in facts)
    chat.system(chat.rng.choice(bank.lines("talk", "notes")), *told)


def _notice(chat: _Writer) -> None:
    """The system message or the user quotes facts of a town."""
    facts = chat.facts(bank.common(), 3)
    told = [speech.tell(fact, chat.style, chat.rng) for fact in facts]
    as_system = chat.rng.random() < _TOLD_STYLE_SHARE
    if not as_system:
        for fact, sentence in zip(facts, told, strict=True):
            heard = chat.rng.choice(bank.lines("talk", "heard"))
            chat.say(f"{heard} {sentence}", speech.acknowledge(fact, chat.style, chat.rng))
    for fact in chat.rng.sample(facts, len(facts)):
        chat.maybe_small_talk()
        chat.ask(fact)
    chat.system(*([chat.rng.choice(bank.lines("talk", "notice")), *told] if as_system else []))


def _learn(chat: _Writer) -> None:
    """The assistant does not know, is told, and knows."""
    fact = chat.facts((*bank.private(), *bank.common()), 1)[0]
    chat.ask(fact, chat.rng.choice(bank.lines("talk", "unknown")))
    chat.tell(fact)
    chat.maybe_small_talk()
    chat.ask(fact)
    chat.system()


def _update(chat: _Writer) -> None:
    """A fact changes; the newest one holds."""
    kind = chat.rng.choice(bank.private())
    old = draw_fact(kind, chat.rng, training=True)
    chat.tell(old)
    chat.maybe_small_talk()
    chat.ask(old)
    new = redraw(old, chat.rng)
    chat.say(speech.change(new, chat.style, chat.rng), speech.acknowledge(new, chat.style, chat.rng))
    chat.ask(new)
    chat.system()


def _unknown(chat: _Writer) -> None:
    """The assistant does not know, and says so."""
    fact = chat.facts((*bank.private(), *bank.common()), 1)[0]
    chat.ask(fact, chat.rng.choice(bank.lines("talk", "unknown")))
    chat.maybe_small_talk()
    chat.system()


def _small_talk(chat: _Writer) -> None:
    """Nothing but small talk."""
    for kind in chat.rng.sample(bank.chitchat(), chat.rng.randint(1, 4)):
        chat.ask(draw_fact(kind, chat.rng, training=True, divided=False))
    chat.system()


PATTERNS: Final[tuple[tuple[Callable[[_Writer], None], float], ...]] = (
    (_remember, 0.28),
    (_recall, 0.20),
    (_notes, 0.12),
    (_notice, 0.12),
    (_learn, 0.08),
    (_update, 0.06),
    (_unknown, 0.04),
    (_small_talk, 0.10),
)


def _require_training_seed(seed: int) -> None:
    if not is_training_seed(seed):
        raise ConfigError(
            f"a training seed must be at least {FIRST_TRAINING_SEED}, got {seed}",
            "smaller seeds belong to the worlds that experiments are run in",
        )


def training_text(seed: int, count: int = 20_000) -> Iterator[Chat]:
    """Yield chats between a user and an assistant; chat i does not depend on `count`.

    Args:
        seed: at least 1,000,000; smaller seeds make the worlds of experiments.
        count: number of chats.

    Yields:
        Lists of (role, text): at most one "system" message, then "user" and "assistant" in turn.

    Raises:
        ConfigError: the seed is one of an experiment.
    """
    _require_training_seed(seed)
    writers, weights = zip(*PATTERNS, strict=True)
    for index in range(count):
        chat = _Writer(random.Random(derive_seed("training-chat", seed, index)))
        chat.rng.choices(writers, weights)[0](chat)
        yield chat.messages


def training_paraphrases(seed: int, count: int = 5_000) -> Iterator[tuple[str, str]]:
    """Yield pairs of questions that say the same in other words, to teach rewriting.

    They come from small talk and routine requests alone: pairs about facts or opinions would hand the base model the
    very relation between a stream's questions and the held-out ones. For the held-out questions of the kind "style",
    which are small talk, they do just that.

    Raises:
        ConfigError: the seed is one of an experiment.
    """
    _require_training_seed(seed)
    for index in range(count):
        rng = random.Random(derive_seed("training-paraphrase", seed, index))
        fact = draw_fact(rng.choice(bank.chitchat()), rng, training=True, divided=False)
        first, second = rng.sample(fact.kind.ask, 2)
        yield speech.ask(fact, [first], PLAIN, rng), speech.ask(fact, [second], PLAIN, rng)
