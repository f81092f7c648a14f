import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from training.corpora import Document, Turn
from training.tokenizer import END, SPECIAL_TOKENS, as_pretrained, encode, render, train_tokenizer

TURNS = (Turn("system", "Be kind."), Turn("user", "Where is my bike?"), Turn("assistant", "It is here."))


@pytest.fixture(scope="module")
def fast(tiny_tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return as_pretrained(tiny_tokenizer)


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "  spaces  and\n\nlines\t",
        "12345.67",
        "naïve café",
        "你好，世界",
        "🙂👩‍👩‍👧 ok",
        "\x00\x01ÿ",
        "<|not special|>",
    ],
)
def test_every_text_survives_a_round_trip(fast: PreTrainedTokenizerFast, text: str) -> None:
    ids = fast(text, add_special_tokens=False)["input_ids"]
    assert fast.decode(ids) == text


def test_digits_stand_alone(tiny_tokenizer: Tokenizer) -> None:
    assert tiny_tokenizer.encode("2026").tokens == ["2", "0", "2", "6"]


def test_the_template_writes_what_training_reads(fast: PreTrainedTokenizerFast) -> None:
    messages = [{"role": turn.role, "content": turn.text} for turn in TURNS]
    assert fast.apply_chat_template(messages, tokenize=False) == render(TURNS)
    prompt = fast.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == render(TURNS[:2]) + "<|assistant|>"
    assert render(TURNS).count("\n") == 0


def test_an_unknown_role_is_refused(fast: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="role must be system, user or assistant"):
        fast.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_markers_are_single_tokens(tiny_tokenizer: Tokenizer) -> None:
    ids = encode(tiny_tokenizer, [Document("c", "i", TURNS)])[0]
    special = [tiny_tokenizer.id_to_token(token) for token in ids if token < len(SPECIAL_TOKENS)]
    assert special == ["<|bos|>", "<|system|>", END, "<|user|>", END, "<|assistant|>", END]


def test_training_is_repeatable() -> None:
    texts = ["one two three two three", "three two one"] * 5
    assert train_tokenizer(texts, 300).to_str() == train_tokenizer(texts, 300).to_str()
