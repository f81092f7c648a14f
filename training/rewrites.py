"""Write examples of rewriting a question: the fixed prompt, and the same meaning in other words, in brackets.

A paraphrase is made of parts that each keep the meaning: another frame of the same family (`frames`), synonyms
(`synonyms`), contractions, another order of clauses, another wording of a time, a polite opening or ending put on or
taken off. Names, numbers and rare words are never touched. Every pair serves in both directions, so what the parts
can only put on, the model learns to take off as well; and a source has several targets, so that sampling from the
model gives different answers.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from client.synthesis.prompt import rewrite_prompt
from training.corpora import Document, Turn, training_documents
from training.frames import lower_first, reframe, upper_first
from training.made_up import fill
from training.splits import is_held_out
from training.synonyms import fix_articles, replace_synonyms
from training.tables import read_table

LEAST_OVERLAP: Final = 0.3
MOST_OVERLAP: Final = 0.95
# A model that is taught to change more than it must repeats its source less often.
MOST_TAUGHT_OVERLAP: Final = 0.86
MOST_WORDS: Final = 42
MOST_SENTENCES: Final = 4

SOURCE_CORPORA: Final = (
    "dolly", "medquad_short", "persona_chat", "topical_chat", "taskmaster4", "schema_guided"
)  # fmt: skip

_SENTENCE_END: Final = re.compile(r"(?<=[.?!]) +(?=[A-Z\"'0-9a-z])")
_WORD: Final = re.compile(r"[A-Za-z0-9]+(?:['-][A-Za-z0-9]+)*")
_ROUGE_WORD: Final = re.compile(r"[a-z0-9]+")

_CONTRACTIONS: Final = (
    ("I'm", "I am"), ("I'd", "I would"), ("I've", "I have"), ("I'll", "I will"), ("don't", "do not"),
    ("doesn't", "does not"), ("didn't", "did not"), ("can't", "cannot"), ("couldn't", "could not"),
    ("isn't", "is not"), ("aren't", "are not"), ("wasn't", "was not"), ("won't", "will not"),
    ("haven't", "have not"), ("hasn't", "has not"), ("it's", "it is"), ("that's", "that is"), ("what's", "what is"),
    ("where's", "where is"), ("who's", "who is"), ("there's", "there is"), ("you're", "you are"),
    ("we're", "we are"), ("they're", "they are"), ("let's", "let us"), ("shouldn't", "should not"),
    ("wouldn't", "would not"), ("you've", "you have"), ("we'll", "we will"),
)  # fmt: skip

_TIMES: Final = (
    (re.compile(r"\b(\d{1,2}(?::\d\d)?) ?a\.?m\b\.?", re.I), (r"\1 in the morning", r"\1 a.m.", r"\1 am")),
    (re.compile(r"\b([5-9]|1[01])(:\d\d)? ?p\.?m\b\.?", re.I), (r"\1\2 in the evening", r"\1\2 p.m.", r"\1\2 pm")),
    (re.compile(r"\b([1-4])(:\d\d)? ?p\.?m\b\.?", re.I), (r"\1\2 in the afternoon", r"\1\2 p.m.", r"\1\2 pm")),
    (re.compile(r"\b(\d{1,2}(?::\d\d)?) in the (?:evening|afternoon)\b"), (r"\1 pm",)),
    (re.compile(r"\b(\d{1,2}(?::\d\d)?) in the morning\b"), (r"\1 am",)),
    (re.compile(r"\b(\d{1,2}) o'clock\b"), (r"\1 sharp", r"\1:00")),
)  # fmt: skip

_OPENINGS: Final = (
    "Tell me, ", "Hey, ", "Hi, ", "Hello, ", "Please, ", "Excuse me, ", "By the way, ", "Just wondering, ",
    "Quick question: ", "I have a question: ", "I was wondering, ", "Say, ", "So, ", "Well, ", "One question: ",
    "I'd like to know: ", "May I ask: ", "Just out of curiosity, ",
)  # fmt: skip
_QUESTION_ENDINGS: Final = (
    " Thanks.", " Thank you.", " Please tell me.", " I'd like to know.", " Do you know?", " Can you say?",
    " I can't remember.", " Any idea?",
)  # fmt: skip
_STATEMENT_OPENINGS: Final = (
    "You know, ", "Well, ", "So, ", "By the way, ", "Just so you know, ", "For your information, ", "Listen, ",
    "To be honest, ", "As a matter of fact, ", "Actually, ", "I want to say that ", "I can tell you that ",
)  # fmt: skip
_REMOVABLE: Final = re.compile(
    r"^(?:(?:hey|hi|hello|well|so|oh|okay|ok|please|excuse me|by the way|actually|um|wow|yes|yeah)"
    r"(?: there)?[,!.]? )(?=\w)",
    re.IGNORECASE,
)
_REMOVABLE_END: Final = re.compile(r",? (?:please|thanks|thank you|too|though)(?=[.?!]*$)", re.I)
_SUBORDINATE_FIRST: Final = re.compile(
    r"^(if|when|because|since|after|before|while|although) ([^,.?!]{6,70}), ([^.?!]{6,80})([.?!])$", re.I
)
_SUBORDINATE_LAST: Final = re.compile(
    r"^([^,.?!]{8,80}?),? (if|when|because|after|before|while|although) ([^,.?!]{6,70})([.?!])$", re.I
)

# Questions and statements about things that nobody heard of: only copying can rewrite them.
TEMPLATES: Final = read_table("templates")[""]


def sentences(text: str) -> list[str]:
    """Split a text into sentences at punctuation followed by a space."""
    return [part for part in _SENTENCE_END.split(text.strip()) if part]


def overlap(candidate: str, reference: str) -> float:
    """Return the ROUGE-1 F measure of two texts."""
    mine = Counter(_ROUGE_WORD.findall(candidate.lower()))
    theirs = Counter(_ROUGE_WORD.findall(reference.lower()))
    shared = sum((mine & theirs).values())
    return 2 * shared / max(mine.total() + theirs.total(), 1)


def must_keep(text: str) -> set[str]:
    """Return the words that a rewrite has to keep: numbers, and names as told by a capital in mid-sentence."""
    kept: set[str] = set()
    for sentence in sentences(text):
        for index, word in enumerate(_WORD.findall(sentence)):
            named = index > 0 and word[0].isupper() and word.split("'")[0] != "I"
            if named or any(character.isdigit() for character in word):
                kept.add(word.lower().removesuffix("'s"))
    return kept


def _contraction(text: str, rng: random.Random) -> str:
    expand = rng.random() < 0.5
    for short, long in _CONTRACTIONS:
        source, target = (short, long) if expand else (long, short)
        match = re.search(rf"(?<![\w']){re.escape(source)}(?![\w'])", text, re.I)
        # "It is" at the end of a sentence has no short form.
        if match and match.end() < len(text.rstrip(".?!")) and rng.random() < 0.8:
            new = upper_first(target) if match.group(0)[0].isupper() else target
            text = text[: match.start()] + new + text[match.end() :]
    return text


def _time_wording(text: str, rng: random.Random) -> str:
    for pattern, outcomes in _TIMES:
        if pattern.search(text):
            return pattern.sub(rng.choice(outcomes), text, count=1)
    return text


def _clause_order(sentence: str, rng: random.Random) -> str:
    match = _SUBORDINATE_FIRST.match(sentence)
    if match:
        word, condition, main, end = match.groups()
        return f"{upper_first(main)} {word.lower()} {condition}{end}"
    match = _SUBORDINATE_LAST.match(sentence)
    if match and rng.random() < 0.7:
        main, word, condition, end = match.groups()
        return f"{upper_first(word.lower())} {condition}, {lower_first(main)}{end}"
    return sentence


def _polite(sentence: str, rng: random.Random) -> str:
    shorter = _REMOVABLE_END.sub("", _REMOVABLE.sub("", sentence))
    if shorter != sentence and len(shorter.split()) > 2 and rng.random() < 0.7:
        return upper_first(shorter)
    if sentence.endswith("?"):
        if rng.random() < 0.6:
            return rng.choice(_OPENINGS) + _without_capital(sentence)
        return sentence + rng.choice(_QUESTION_ENDINGS)
    return rng.choice(_STATEMENT_OPENINGS) + _without_capital(sentence)


_QUESTION_WORDS: Final = frozenset(
    ["have", "has", "did", "will", "should", "may", "might", "give", "tell", "show", "find", "was", "were"]
)


def _without_capital(sentence: str) -> str:
    first = sentence.split(" ", 1)[0].split("'", maxsplit=1)[0].lower()
    if first in _QUESTION_WORDS:
        return sentence[0].lower() + sentence[1:]
    return lower_first(sentence)


def _reworded(sentence: str, rng: random.Random, *, first: bool) -> str:
    text = reframe(sentence, rng) if rng.random() < 0.85 else None
    reframed = text is not None
    text = _clause_order(text or sentence, rng)
    text = replace_synonyms(text, rng, rng.choice((0.25, 0.5, 0.8)) if reframed else 0.75)
    if rng.random() < 0.5:
        text = _time_wording(text, rng)
    if rng.random() < 0.5:
        text = _contraction(text, rng)
    if first and rng.random() < (0.06 if reframed else 0.3):
        text = _polite(text, rng)
    return text


def paraphrase(text: str, rng: random.Random) -> str | None:
    """Return one paraphrase of a short text, or None if this attempt changed too little or too much."""
    parts = sentences(text)
    if not 0 < len(parts) <= MOST_SENTENCES:
        return None
    new = fix_articles(" ".join(_reworded(part, rng, first=i == 0) for i, part in enumerate(parts)))
    if new.lower().strip(".?! ") == text.lower().strip(".?! "):
        return None
    if not LEAST_OVERLAP <= overlap(new, text) <= MOST_TAUGHT_OVERLAP:
        return None
    words = {word.lower().removesuffix("'s") for word in _WORD.findall(new)}
    return new if must_keep(text) <= words else None


def paraphrases(text: str, rng: random.Random, count: int) -> list[str]:
    """Return up to `count` different paraphrases of a text."""
    found: dict[str, None] = {}
    for _ in range(3 * count):
        new = paraphrase(text, rng)
        if new is not None:
            found[new] = None
        if len(found) == count:
            break
    return list(found)


def suits(text: str) -> bool:
    """Tell whether a text is a question or a statement short enough to rewrite."""
    words = len(text.split())
    return 3 <= words <= MOST_WORDS and "[" not in text and "]" not in text and "\n" not in text


def user_texts(documents: Iterable[Document]) -> Iterator[str]:
    """Yield the users' turns of documents and, of longer turns, their single questions."""
    for document in documents:
        for turn in document.turns:
            if turn.role != "user":
                continue
            if suits(turn.text):
                yield turn.text
            parts = sentences(turn.text)
            if len(parts) > 1:
                yield from (part for part in parts if suits(part) and part.endswith("?"))


def templated(rng: random.Random, count: int) -> Iterator[str]:
    """Yield sentences about made-up names and words."""
    for _ in range(count):
        yield fix_articles(fill(rng.choice(TEMPLATES), rng))


def as_document(source: str, *targets: str) -> Document:
    """Make a source and its rewrites a chat: the fixed prompt and a rewrite in brackets, then asked for once more.

    Asking again in the same chat costs few tokens, so most of the text is rewriting and little of it is the prompt.
    """
    turns = [Turn("user", rewrite_prompt(source)), Turn("assistant", f"[{targets[0]}]")]
    for index, target in enumerate(targets[1:]):
        turns += [Turn("user", ONCE_MORE[index % len(ONCE_MORE)]), Turn("assistant", f"[{target}]")]
    return Document("rewrites", source, tuple(turns))


def examples(sources: Iterable[str], rng: random.Random, count: int) -> Iterator[Document]:
    """Yield a chat of up to `count` paraphrases per source; every fourth leads from a paraphrase to the source."""
    for source in dict.fromkeys(sources):
        found = paraphrases(source, rng, count)
        if found and rng.random() < TURNED_SHARE:
            yield as_document(found[0], source, *found[1:])
        elif found:
            yield as_document(source, *found)


ONCE_MORE: Final = ("Once more.", "Again.")
TURNED_SHARE: Final = 0.25
PARAPHRASES: Final = 3
# The large corpora give a sample of their sentences.
MOST_SOURCES: Final = 24_000
TEMPLATED_SOURCES: Final = 24_000


def rewrite_documents(corpora: Path, seed: int = 0, most_sources: int = MOST_SOURCES) -> Iterator[Document]:
    """Yield all examples for training; sources whose text is held out are left out."""
    rng = random.Random(f"rewrites {seed}")
    for corpus in SOURCE_CORPORA:
        texts = list(dict.fromkeys(user_texts(training_documents(corpora, corpus))))
        kept = [text for text in texts if not is_held_out("rewrites", text.lower())]
        yield from examples(rng.sample(kept, min(most_sources, len(kept))), rng, PARAPHRASES)
    made = templated(rng, min(TEMPLATED_SOURCES, most_sources))
    yield from examples((t for t in made if not is_held_out("rewrites", t.lower())), rng, PARAPHRASES)
