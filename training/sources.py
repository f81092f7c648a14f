"""Name every source of training documents: the corpora and the texts that this project writes itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from simulation.world import FIRST_TRAINING_SEED, Chat, training_paraphrases, training_text
from training.corpora import READERS, Document, Turn, training_documents
from training.questions import question_documents
from training.rewrites import PARAPHRASES, as_document, examples, overlap, rewrite_documents, user_texts
from training.splits import is_held_out

Source = Callable[[], Iterable[Document]]

WORLD_CHATS: Final = 30_000
WORLD_REWRITE_CHATS: Final = 4_000
WORLD_PARAPHRASES: Final = 4_000
# Pairs that share fewer words than this belong to the same topic rather than say the same.
LEAST_PAIR_OVERLAP: Final = 0.35


def _document(index: int, chat: Chat) -> Document:
    return Document("world", str(index), tuple(Turn(role, text) for role, text in chat))


def world_documents(seed: int, count: int = WORLD_CHATS) -> Iterator[Document]:
    """Yield chats in the language of the built-in world, with facts of no world that anybody is evaluated in."""
    for index, chat in enumerate(training_text(FIRST_TRAINING_SEED + 2 * seed, count)):
        yield _document(index, chat)


def world_rewrites(seed: int) -> Iterator[Document]:
    """Yield examples of rewriting what the built-in world's users say."""
    rng = random.Random(f"world rewrites {seed}")
    world = FIRST_TRAINING_SEED + 2 * seed + 1
    said = user_texts(_document(i, chat) for i, chat in enumerate(training_text(world, WORLD_REWRITE_CHATS)))
    yield from examples((text for text in said if not is_held_out("rewrites", text.lower())), rng, PARAPHRASES)
    for first, second in dict.fromkeys(training_paraphrases(world, WORLD_PARAPHRASES)):
        if overlap(first, second) >= LEAST_PAIR_OVERLAP and not is_held_out("rewrites", first.lower()):
            yield as_document(first, second)


def sources(corpora: Path, seed: int) -> dict[str, Source]:
    """Return what makes the documents of each source.

    Args:
        corpora: The folder of the corpora.
        seed: Decides the texts that are made up; the corpora stay what they are.
    """
    return {
        **{name: partial(training_documents, corpora, name) for name in READERS},
        "rewrites": partial(rewrite_documents, corpora, seed),
        "questions": partial(question_documents, seed),
        "world": partial(world_documents, seed),
        "world_rewrites": partial(world_rewrites, seed),
    }
