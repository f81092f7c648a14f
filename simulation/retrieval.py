"""Retrieval: for each question, the most similar annotated dialogues, to put before it as examples.

    similarity(q, d) = cos(e_q − m, e_d − m) + cos(w_q, w_d)

e: embeddings of the questions by the base model, centred by the mean m of the pool, because all of a language model's
mean states point in nearly one direction. w: words weighted by their rarity in the pool, log((1 + n) / (1 + n_w)) + 1.
The first part finds another wording, the second a rare name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from client.dialogue import Dialogue, Example
from client.model import BaseModel
from client.selection.words import split_words

__all__ = ["Shots", "retrieve"]

Matrix = npt.NDArray[np.float64]
Shots = list[tuple[str, str]]


def retrieve(model: BaseModel, pool: Sequence[Example], questions: Sequence[str], *, count: int) -> list[Shots]:
    """Return for each question up to `count` questions of the pool with their answers, the most similar one last.

    Args:
        model: embeds the questions; adapters should be off.
        pool: annotated dialogues.
        questions: what will be asked.
        count: how many examples each question gets.
    """
    if not pool:
        return [[] for _ in questions]
    known = [example.question for example in pool]
    similarity = _cosines(*_centred(model, questions, known)) + _cosines(*_weighted_words(questions, known))
    # Stable: of equally similar ones the earlier in the pool counts as the more similar.
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return [[(pool[index].question, pool[index].response) for index in reversed(row)] for row in order.tolist()]


def _centred(model: BaseModel, questions: Sequence[str], known: Sequence[str]) -> tuple[Matrix, Matrix]:
    dialogues = [Dialogue(question=text, response="") for text in (*questions, *known)]
    vectors = np.array([embedding.vector for embedding in model.embed(dialogues)], dtype=np.float64)
    asked, pooled = np.split(vectors, [len(questions)])
    middle = pooled.mean(axis=0)
    return asked - middle, pooled - middle


def _weighted_words(questions: Sequence[str], known: Sequence[str]) -> tuple[Matrix, Matrix]:
    bags = [Counter(split_words(text)) for text in (*questions, *known)]
    pooled = bags[len(questions) :]
    spread = Counter(word for bag in pooled for word in bag)
    columns = {word: column for column, word in enumerate(sorted({word for bag in bags for word in bag}))}
    weights = np.zeros((len(bags), len(columns)))
    for row, bag in enumerate(bags):
        for word, times in bag.items():
            weights[row, columns[word]] = times * (math.log((1 + len(pooled)) / (1 + spread[word])) + 1)
    asked, rest = np.split(weights, [len(questions)])
    return asked, rest


def _cosines(left: Matrix, right: Matrix) -> Matrix:
    lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)[None, :]
    products: Matrix = left @ right.T
    return products / np.where(lengths > 0, lengths, 1.0)
