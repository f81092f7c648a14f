"""ROUGE-1 and ROUGE-L F1 of two texts in any script (Lin, 2004), by the rouge-score library.

    F1 = 2PR / (P + R);  P and R: the share of the candidate's and of the reference's words that both have
                         (ROUGE-1: as multisets; ROUGE-L: in their longest common subsequence)

The library's own tokenizer drops every letter outside a-z, so that two equal Chinese texts would score 0. Ours splits
ASCII text exactly as the library does, keeps the letters, marks and digits of other scripts, and takes each character
of a script that writes without spaces as a word.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

__all__ = ["Tokenizer", "rouge", "rouge1", "rouge_l"]

# Thai and Lao, Burmese, Khmer, kana, ideographs.
_UNSPACED: Final = re.compile(
    r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff])"
)


class Tokenizer:
    """Split text into words, as rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of `text` in lower case and, outside ASCII, in one Unicode form (NFKC)."""
        return list(_words(text))


@functools.lru_cache(maxsize=4096)  # a reference is compared with many candidates
def _words(text: str) -> tuple[str, ...]:
    lowered = text.lower()
    if lowered.isascii():
        return tuple(re.findall("[a-z0-9]+", lowered))
    spaced = _UNSPACED.sub(r" \1 ", unicodedata.normalize("NFKC", lowered))
    letters = (character if unicodedata.category(character)[0] in "LMN" else " " for character in spaced)
    return tuple("".join(letters).split())


@functools.cache
def _scorer(*metrics: str) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # all of NLTK comes with it, most of a second

    return RougeScorer(list(metrics), tokenizer=Tokenizer())


def rouge(candidate: str, reference: str) -> tuple[float, float]:
    """Return ROUGE-1 and ROUGE-L F1, each in [0, 1]; 0 where a text has no word."""
    scores = _scorer("rouge1", "rougeL").score(reference, candidate)
    return float(scores["rouge1"].fmeasure), float(scores["rougeL"].fmeasure)


def rouge1(candidate: str, reference: str) -> float:
    """Return ROUGE-1 F1, in [0, 1]."""
    return float(_scorer("rouge1").score(reference, candidate)["rouge1"].fmeasure)


def rouge_l(candidate: str, reference: str) -> float:
    """Return ROUGE-L F1, in [0, 1]."""
    return rouge(candidate, reference)[1]
