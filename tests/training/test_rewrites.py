import random
import re

import pytest

from client.synthesis.prompt import REWRITE_PROMPT, rewrite_prompt
from training.frames import reframe
from training.rewrites import (
    LEAST_OVERLAP,
    MOST_OVERLAP,
    as_document,
    must_keep,
    overlap,
    paraphrases,
    templated,
)
from training.synonyms import SYNONYMS, fix_articles, replace_synonyms

SOURCES = [
    "How do I repair the Zwolbick 3000?",
    "What is the name of my cat?",
    "My dog is called Xantippe and she was born in Quoorburg.",
    "Can I get a large oat milk latte for Priya at 7:15 pm?",
    "What are the symptoms of Kleesack disease?",
    "I'm looking for a cheap flight to Lima on March 14.",
]


@pytest.mark.parametrize("source", SOURCES)
def test_paraphrases_are_others_and_keep_what_is_rare(source: str) -> None:
    found = paraphrases(source, random.Random(1), 8)
    assert len(found) >= 2
    for text in found:
        assert text != source
        assert LEAST_OVERLAP <= overlap(text, source) <= MOST_OVERLAP
        words = {word.removesuffix("'s") for word in re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower())}
        assert must_keep(source) <= words, text


def test_made_up_words_are_copied() -> None:
    rng = random.Random(2)
    for source in templated(rng, 200):
        for text in paraphrases(source, rng, 1):
            assert all(word in text.lower() for word in must_keep(source)), (source, text)


def test_a_frame_says_the_same_question_otherwise() -> None:
    seen = {reframe("How do I bake bread?", random.Random(seed)) for seed in range(60)}
    assert {
        "How can I bake bread?",
        "Can you tell me how to bake bread?",
        "What is the best way to bake bread?",
    } <= seen
    assert "How do I bake bread?" not in seen


def test_an_unknown_frame_is_left() -> None:
    assert reframe("Hmm, bread!", random.Random(0)) is None


def test_synonyms_keep_the_form_of_a_word() -> None:
    assert "purchased" in SYNONYMS["bought"]
    assert "purchasing" in SYNONYMS["buying"]
    # "chosen" and "chose" differ, so "selected" (which may be either) has no synonym "chose".
    assert "chose" not in SYNONYMS.get("selected", ())


def test_names_are_no_words() -> None:
    assert replace_synonyms("I live in Big Town.", random.Random(0), 1.0) == "I live in Big Town."


@pytest.mark.parametrize(
    ("wrong", "right"), [("a easy way", "an easy way"), ("An big dog", "A big dog"), ("an hour", "an hour")]
)
def test_articles_agree(wrong: str, right: str) -> None:
    assert fix_articles(wrong) == right


def test_overlap_is_rouge_1() -> None:
    # 3 shared words, 4 and 5 words: F = 2 * 3 / 9.
    assert overlap("where is my bike", "tell me where is my") == pytest.approx(6 / 9)


def test_must_keep_names_and_numbers() -> None:
    assert must_keep("Where does Ana live in May? I paid 20 dollars to Bob's shop.") == {"ana", "may", "20", "bob"}


def test_the_prompt_is_the_clients_and_the_answer_is_in_brackets() -> None:
    turns = as_document("Who {x} is [he]?", "Do you know who he is?").turns
    assert turns[0].text == rewrite_prompt("Who {x} is [he]?")
    assert turns[0].text.startswith(REWRITE_PROMPT.split("[")[0])
    assert turns[1].text == "[Do you know who he is?]"
