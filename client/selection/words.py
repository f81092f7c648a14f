"""Split text of any script into comparable words.

Scripts that write without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer) give one word per character, so that a
lexicon's phrase of several characters is found as a run of words, like any other phrase.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

__all__ = ["split_words"]

_UNSPACED: Final = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
)
# Vowel signs and accents that Python's \w leaves out: Latin accents, Hebrew, Arabic, the scripts of India.
_MARKS: Final = r"\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
_WORD: Final = re.compile(rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}]|[{_MARKS}]|['\u2019](?=[^\W_]))+")
_POSSESSIVE: Final = re.compile(r"['\u2019]s?\Z")


def split_words(text: str) -> list[str]:
    """Return the words of `text` in order, in one case and one Unicode form (NFKC), without punctuation or emoji.

    >>> split_words("Mia’s e-mail: ALLERGIC to Bees! 🐝")
    ['mia', 'e', 'mail', 'allergic', 'to', 'bees']
    >>> split_words("我对蜜蜂")
    ['我', '对', '蜜', '蜂']
    """
    found = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [word for word in (_POSSESSIVE.sub("", match.lstrip("'\u2019")) for match in found) if word]
