"""Common knowledge as small tables, and the questions and whole-sentence answers that they make.

All sentences here are this project's own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from training.inflection import plural, with_article
from training.made_up import DAYS, MONTHS
from training.tables import read_table, read_words

Pair: TypeAlias = tuple[str, str]


_TABLES: Final = {
    section: [tuple(cell.strip() for cell in line.split("=")) for line in lines]
    for section, lines in read_table("knowledge").items()
}

NUMBER_WORDS: Final = tuple(read_words("words")["numbers"])


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _capital(rng: random.Random) -> Pair:
    country, city = rng.choice(_TABLES["capitals"])
    if rng.random() < 0.2:
        return f"Which country has {city} as its capital?", f"{_sentence(country)} has {city} as its capital."
    return f"What is the capital of {country}?", f"The capital of {country} is {city}."


def _opposite(rng: random.Random) -> Pair:
    pair = list(rng.choice(_TABLES["opposites"]))
    if rng.random() < 0.5:
        pair.reverse()
    question = rng.choice(
        ('What is the opposite of "{}"?', "What is the opposite of {}?", "Which word means the opposite of {}?")
    )
    return question.format(pair[0]), f"The opposite of {pair[0]} is {pair[1]}."


def _colour(rng: random.Random) -> Pair:
    thing, colour = rng.choice(_TABLES["colours_of"])
    return f"What color is {thing}?", f"{_sentence(thing)} is {colour}."


def _sound(rng: random.Random) -> Pair:
    animal, sound = rng.choice(_TABLES["sounds"])
    question = rng.choice(("What sound does {} make?", "What does {} do to make a sound?"))
    return question.format(with_article(animal)), f"{_sentence(with_article(animal))} {sound}."


def _young(rng: random.Random) -> Pair:
    animal, young = rng.choice(_TABLES["young"])
    return f"What is a young {animal} called?", f"A young {animal} is called {with_article(young)}."


def _legs(rng: random.Random) -> Pair:
    animal, legs = rng.choice(_TABLES["legs"])
    return f"How many legs does {animal} have?", f"{_sentence(animal)} has {legs} legs."


def _kind(rng: random.Random) -> Pair:
    thing, kind = rng.choice(_TABLES["kinds"])
    bare = thing[0].isupper() or kind in ("sport", "colour", "season", "metal", "drink", "dish")
    named = thing if bare else with_article(thing)
    if rng.random() < 0.5:
        return f"What is {named}?", f"{_sentence(named)} is {with_article(kind)}."
    wrong = rng.choice(_TABLES["kinds"])[1]
    if rng.random() < 0.5 or wrong == kind or {wrong, kind} <= {"animal", "bird", "fish", "insect"}:
        return f"Is {named} {with_article(kind)}?", f"Yes, {named} is {with_article(kind)}."
    return (
        f"Is {named} {with_article(wrong)}?",
        f"No, {named} is not {with_article(wrong)}. It is {with_article(kind)}.",
    )


def _definition(rng: random.Random) -> Pair:
    word, meaning = rng.choice(_TABLES["definitions"])
    named = (
        word
        if word in ("snow", "ice", "honey", "cheese", "bread", "wool", "breakfast", "dinner")
        else with_article(word)
    )
    if word == "moon":
        named = "a moon"
    question = rng.choice(("What is {}?", "What is {}?", 'What does the word "{}" mean?', "Define {}."))
    return question.format(named if question != 'What does the word "{}" mean?' else word), (
        f"{_sentence(named)} is {meaning}."
    )


def _neighbours(rng: random.Random) -> Pair:
    names, unit = rng.choice(((DAYS, "day"), (MONTHS, "month")))
    at = rng.randrange(len(names))
    after, before = names[(at + 1) % len(names)], names[at - 1]
    if rng.random() < 0.5:
        return f"Which {unit} comes after {names[at]}?", f"{after} comes after {names[at]}."
    return f"Which {unit} comes before {names[at]}?", f"{before} comes before {names[at]}."


def _arithmetic(rng: random.Random) -> Pair:
    first, second = rng.randint(1, 12), rng.randint(1, 12)
    sign, word, value = rng.choice(
        (
            ("+", "plus", first + second),
            ("-", "minus", first),
            ("*", "times", first * second),
        )
    )
    if sign == "-":
        first, value = first + second, first
    if rng.random() < 0.3 and max(first, value) <= 20:
        names = [NUMBER_WORDS[number] for number in (first, second, value)]
        return f"What is {names[0]} {word} {names[1]}?", f"{_sentence(names[0])} {word} {names[1]} is {names[2]}."
    question = rng.choice((f"What is {first} {word} {second}?", f"How much is {first} {sign} {second}?"))
    return question, f"{first} {word} {second} is {value}."


def _next_number(rng: random.Random) -> Pair:
    number = rng.randint(1, 98)
    if rng.random() < 0.5:
        return f"Which number comes after {number}?", f"The number after {number} is {number + 1}."
    other = rng.choice([n for n in range(1, 99) if n != number])
    return (
        f"Which number is larger, {number} or {other}?",
        f"{max(number, other)} is larger than {min(number, other)}.",
    )


def _spelling(rng: random.Random) -> Pair:
    word = rng.choice([row[0] for row in (*_TABLES["kinds"], *_TABLES["young"], *_TABLES["sounds"])])
    choice = rng.random()
    if choice < 0.4:
        return f"What is the first letter of the word {word}?", f"The first letter of {word} is {word[0].upper()}."
    if choice < 0.7:
        return f"How do you spell {word}?", f"{_sentence(word)} is spelled {'-'.join(word.upper())}."
    animal = rng.choice([row[0] for row in _TABLES["young"] if row[0] not in ("sheep", "deer", "goose")])
    return f"What is the plural of {animal}?", f"The plural of {animal} is {plural(animal)}."


def _fact(rng: random.Random) -> Pair:
    question, answer = rng.choice(_TABLES["facts"])
    return question, answer


_MAKERS: Final[tuple[tuple[Callable[[random.Random], Pair], int], ...]] = (
    (_fact, 8), (_definition, 5), (_kind, 4), (_arithmetic, 4), (_capital, 3), (_opposite, 3), (_colour, 2),
    (_neighbours, 2), (_sound, 1), (_young, 1), (_legs, 1), (_next_number, 1), (_spelling, 1),
)  # fmt: skip


def pair(rng: random.Random) -> Pair:
    """Return one question with its answer in a whole sentence."""
    makers, weights = zip(*_MAKERS, strict=True)
    maker: Callable[[random.Random], Pair] = rng.choices(makers, weights)[0]
    return maker(rng)


def pairs(rng: random.Random, count: int) -> Iterator[Pair]:
    """Yield questions with their answers."""
    for _ in range(count):
        yield pair(rng)
