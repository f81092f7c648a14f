"""Train the tokenizer: a byte-level BPE of 6,144 pieces whose every byte sequence survives a round trip.

Digits stand alone, so numbers are copied and counted digit by digit. A chat is written without any newline between
its turns: `<|bos|><|user|>QUESTION<|end|><|assistant|>ANSWER<|end|>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.corpora import Document, Turn

PAD: Final = "<|pad|>"
BOS: Final = "<|bos|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
SYSTEM: Final = "<|system|>"
END: Final = "<|end|>"
SPECIAL_TOKENS: Final = (PAD, BOS, USER, ASSISTANT, SYSTEM, END)
VOCABULARY_SIZE: Final = 6144
MAX_POSITIONS: Final = 1024

MARKERS: Final = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT, "text": ""}

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role must be system, user or assistant, got ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render(turns: Sequence[Turn]) -> str:
    """Write turns as the chat template does; a plain text is `<|bos|>TEXT<|end|>`."""
    return BOS + "".join(f"{MARKERS[turn.role]}{turn.text}{END}" for turn in turns)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE) -> Tokenizer:
    """Learn the merges from texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=3,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def as_pretrained(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap a trained tokenizer for Transformers, with its chat template."""
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def encode(tokenizer: Tokenizer, documents: Sequence[Document]) -> list[list[int]]:
    """Return the token ids of documents, turn markers included."""
    texts = [render(document.turns) for document in documents]
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]
