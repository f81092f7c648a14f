from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.selection.words import split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World", ["hello", "world"]),
        ("my mother's don't", ["my", "mother", "don't"]),
        ("James’ e-mail_box", ["james", "e", "mail", "box"]),
        ("ＦＵＬＬ Ⅳ ﬁsh Straße", ["full", "iv", "fish", "strasse"]),
        ("我爱吃饭 now", ["我", "爱", "吃", "饭", "now"]),
        ("ひらがなカ", ["ひ", "ら", "が", "な", "カ"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("खाना अच्छा है।", ["खाना", "अच्छा", "है"]),
        ("🐝👩‍👩‍👧 ! — …", []),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@given(st.text())
def test_splitting_is_stable_under_case_and_joining(text: str) -> None:
    words = split_words(text)
    assert all(words)
    assert split_words(" ".join(words)) == words
