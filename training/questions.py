"""Write simple questions with whole-sentence answers, and chats that are answered from what was said in them.

Four kinds of chat: common knowledge; a fact that the user tells and asks back later; facts in the system message;
earlier questions whose answers are asked for again in other words. Names and numbers are made up, so nothing but the
chat itself holds the answer: copying from the context is what retrieval and personalization rest upon.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from training.corpora import Document, Turn
from training.frames import reframe
from training.knowledge import pair as knowledge_pair
from training.made_up import fill_alike
from training.synonyms import fix_articles
from training.tables import read_table


class Fact(NamedTuple):
    """A fact about the user: as they say it, as they ask for it, and the answer; all with the same slots."""

    told: str
    asked: str
    answer: str


def _facts(section: str) -> list[Fact]:
    lines = read_table("facts")[section]
    return [Fact(*(part.strip() for part in line.split("|"))) for line in lines]


PERSONAL: Final = _facts("personal")

GENERAL: Final = _facts("general")

_ACKNOWLEDGEMENTS: Final = (
    "Thank you, I will remember that.", "Good to know.", "Okay, I will keep that in mind.", "Noted.", "I see.",
    "Thanks for telling me.", "All right, I will remember it.", "That is nice to know.", "Got it.",
)  # fmt: skip
_SYSTEM_OPENINGS: Final = (
    "", "", "Facts about the user: ", "What you know about the user: ", "The user said: ", "Remember: ",
    "You are a helpful assistant. The user said: ", "Notes: ",
)  # fmt: skip
_SYSTEMS: Final = ("You are a helpful assistant.", "You are seedling.", "Answer in whole sentences.")
_UNKNOWN: Final = "I do not know that. You have not told me yet."
_OPENINGS: Final = ("Hi. ", "Hello! ", "Please remember this: ", "Remember that for me: ", "By the way, ", "So, ")


def _ask(question: str, rng: random.Random) -> str:
    """Ask a question as it is or in other words."""
    return (reframe(question, rng) if rng.random() < 0.6 else None) or question


def _draw_facts(rng: random.Random, count: int) -> list[Fact]:
    """Draw facts that ask for different things."""
    drawn: dict[str, Fact] = {}
    while len(drawn) < count:
        template = rng.choice(PERSONAL if rng.random() < 0.75 else GENERAL)
        fact = Fact(*(fix_articles(text) for text in fill_alike(template, rng)))
        drawn.setdefault(fact.asked, fact)
    return list(drawn.values())


def _acknowledge(fact: Fact, rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(_ACKNOWLEDGEMENTS)
    answer = (
        fact.answer[0].lower() + fact.answer[1:] if fact.answer.startswith(("Your ", "You ", "The ")) else fact.answer
    )
    return rng.choice(("Okay, {}", "I will remember that {}", "Good to know that {}")).format(answer)


def knowledge_chat(rng: random.Random) -> list[Turn]:
    """Ask one to four questions of common knowledge."""
    turns = []
    for _ in range(rng.choice((1, 2, 3, 4))):
        question, answer = knowledge_pair(rng)
        turns += [Turn("user", _ask(question, rng)), Turn("assistant", answer)]
    if rng.random() < 0.1:
        turns.insert(0, Turn("system", rng.choice(_SYSTEMS)))
    return turns


def told_chat(rng: random.Random) -> list[Turn]:
    """Tell one to four facts, talk about something else perhaps, then ask for some of them."""
    facts = _draw_facts(rng, rng.choice((1, 2, 2, 3, 4)))
    turns: list[Turn] = []
    left = list(facts)
    while left:
        together = [left.pop() for _ in range(min(len(left), rng.choice((1, 1, 2))))]
        told = " ".join((reframe(fact.told, rng) if rng.random() < 0.3 else None) or fact.told for fact in together)
        opening = rng.choice(_OPENINGS) if rng.random() < 0.25 else ""
        turns += [Turn("user", opening + told), Turn("assistant", _acknowledge(together[-1], rng))]
        if rng.random() < 0.25:
            turns += knowledge_chat_turns(rng)
    for fact in rng.sample(facts, rng.randint(1, min(3, len(facts)))):
        turns += [Turn("user", _ask(fact.asked, rng)), Turn("assistant", fact.answer)]
    return turns


def knowledge_chat_turns(rng: random.Random) -> list[Turn]:
    """Ask one question of common knowledge in the middle of a chat."""
    question, answer = knowledge_pair(rng)
    return [Turn("user", question), Turn("assistant", answer)]


def system_chat(rng: random.Random) -> list[Turn]:
    """Give facts in the system message and ask for some of them, or for one that is not there."""
    facts = _draw_facts(rng, rng.randint(2, 7))
    absent = facts.pop() if rng.random() < 0.12 else None
    separator = rng.choice((" ", " ", "\n"))
    system = rng.choice(_SYSTEM_OPENINGS) + separator.join(fact.told for fact in facts)
    turns = [Turn("system", system)]
    for fact in rng.sample(facts, rng.randint(1, min(3, len(facts)))):
        turns += [Turn("user", _ask(fact.asked, rng)), Turn("assistant", fact.answer)]
    if absent is not None:
        turns += [Turn("user", absent.asked), Turn("assistant", _UNKNOWN)]
    return turns


def repeated_chat(rng: random.Random) -> list[Turn]:
    """Ask questions, then ask some of them again in other words: the answers are the same."""
    asked: dict[str, str] = {}
    for fact in _draw_facts(rng, rng.randint(2, 5)):
        asked[fact.asked] = fact.answer
    for _ in range(rng.randint(0, 2)):
        question, answer = knowledge_pair(rng)
        asked[question] = answer
    order = rng.sample(list(asked), len(asked))
    turns: list[Turn] = []
    for question in order:
        turns += [Turn("user", question), Turn("assistant", asked[question])]
    for question in rng.sample(order, rng.randint(1, min(3, len(order)))):
        turns += [Turn("user", _ask(question, rng)), Turn("assistant", asked[question])]
    return turns


_KINDS: Final[tuple[tuple[Callable[[random.Random], list[Turn]], int], ...]] = (
    (knowledge_chat, 4), (told_chat, 4), (system_chat, 3), (repeated_chat, 3),
)  # fmt: skip
CHATS: Final = 40_000


def question_documents(seed: int = 0, count: int = CHATS) -> Iterator[Document]:
    """Yield chats of all kinds."""
    rng = random.Random(f"questions {seed}")
    makers, weights = zip(*_KINDS, strict=True)
    for index in range(count):
        maker: Callable[[random.Random], list[Turn]] = rng.choices(makers, weights)[0]
        yield Document("questions", str(index), tuple(maker(rng)))
