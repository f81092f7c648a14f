"""Probe what seedling was made for: rewriting held-out questions, and answering from the chat and from knowledge."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from client.synthesis.prompt import rewrite_prompt
from training import questions
from training.corpora import Turn, held_out_documents, training_documents
from training.generate import answers
from training.rewrites import (
    LEAST_OVERLAP,
    MOST_OVERLAP,
    SOURCE_CORPORA,
    must_keep,
    overlap,
    templated,
    user_texts,
)
from training.splits import is_held_out

_BRACKETS: Final = re.compile(r"\[([^\[\]]+)\]")
_WORD: Final = re.compile(r"[A-Za-z0-9]+(?:['-][A-Za-z0-9]+)*")
# A word of this many pieces is rare: the tokenizer never met it often enough to learn it whole.
RARE_PIECES: Final = 3


@dataclass(frozen=True, slots=True)
class Rewriting:
    """Shares of rewrites that pass each check, and all of them (`valid`)."""

    count: int
    bracketed: float
    changed: float
    overlapping: float
    kept: float
    valid: float


def held_out_questions(corpora: Path, corpus: str) -> list[str]:
    """Return questions of held-out documents whose text no training document has."""
    trained = {text.lower() for text in user_texts(training_documents(corpora, corpus))}
    texts = dict.fromkeys(user_texts(held_out_documents(corpora, corpus)))
    return [text for text in texts if text.lower() not in trained]


def held_out_templated(count: int) -> list[str]:
    """Return sentences with made-up words that the training left out."""
    made = templated(random.Random("probe"), 20 * count)
    return [text for text in made if is_held_out("rewrites", text.lower())][:count]


def rewrite_sources(corpora: Path, count: int) -> dict[str, list[str]]:
    """Return `count` held-out questions per corpus and as many made-up ones."""
    drawn = {"made-up": held_out_templated(count)}
    for corpus in SOURCE_CORPORA:
        texts = held_out_questions(corpora, corpus)
        drawn[corpus] = random.Random(corpus).sample(texts, min(count, len(texts)))
    return drawn


def words_to_keep(text: str, tokenizer: Tokenizer) -> set[str]:
    """Return numbers, names and rare words of a text, in lower case."""
    rare = {
        word.lower().removesuffix("'s")
        for word in _WORD.findall(text)
        if len(tokenizer.encode(" " + word, add_special_tokens=False).ids) >= RARE_PIECES
    }
    return rare | must_keep(text)


def judge(source: str, output: str, tokenizer: Tokenizer) -> tuple[bool, bool, bool, bool]:
    """Tell whether an output is in brackets, not the source, overlaps as wanted, and keeps rare words."""
    match = _BRACKETS.fullmatch(output.strip())
    text = match.group(1) if match else output
    words = {word.lower().removesuffix("'s") for word in _WORD.findall(text)}
    changed = text.lower().strip(".?! ") != source.lower().strip(".?! ")
    return (
        match is not None,
        changed,
        LEAST_OVERLAP <= overlap(text, source) <= MOST_OVERLAP,
        words_to_keep(source, tokenizer) <= words,
    )


def rewriting(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    sources: Sequence[str],
    temperature: float,
) -> tuple[Rewriting, list[tuple[str, str]]]:
    """Rewrite sources and return the shares of valid outputs, and the pairs."""
    chats = [[Turn("user", rewrite_prompt(source))] for source in sources]
    outputs = answers(model, tokenizer, chats, temperature=temperature, most_tokens=80)
    marks = [judge(source, output, tokenizer) for source, output in zip(sources, outputs, strict=True)]
    count = len(marks)
    bracketed, changed, overlapping, kept = (sum(column) / count for column in zip(*marks, strict=True))
    valid = sum(map(all, marks)) / count
    return Rewriting(count, bracketed, changed, overlapping, kept, valid), list(zip(sources, outputs, strict=True))


PROBED: Final[Mapping[str, Callable[[random.Random], list[Turn]]]] = {
    "common knowledge": questions.knowledge_chat,
    "told in the chat": questions.told_chat,
    "told in the system message": questions.system_chat,
    "asked before": questions.repeated_chat,
}


def _chats(maker: Callable[[random.Random], list[Turn]], count: int) -> Iterator[list[Turn]]:
    # Training draws from other seeds: the fillers here are new.
    rng = random.Random("probe questions")
    for _ in range(count):
        yield maker(rng)


def answering(
    model: LlamaForCausalLM, tokenizer: Tokenizer, count: int
) -> dict[str, tuple[float, list[tuple[str, str, str]]]]:
    """Return, per kind of chat, the share of last answers that are word for word as wanted, and all of them."""
    found = {}
    for name, maker in PROBED.items():
        chats = list(_chats(maker, count))
        outputs = answers(model, tokenizer, [chat[:-1] for chat in chats])
        rows = [(chat[-2].text, chat[-1].text, output) for chat, output in zip(chats, outputs, strict=True)]
        found[name] = (sum(wanted == output for _, wanted, output in rows) / count, rows)
    return found
