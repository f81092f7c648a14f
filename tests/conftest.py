"""Fixtures every test may use: a tiny random chat model, its tokenizer and its folder."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the library is imported: no test may reach the network
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from client.model import BaseModel, load_model

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
PAD_ID, BOS_ID, END_ID = 0, 1, 5
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SENTENCES = (
    "What should I cook for dinner tonight?",
    "You could make the lentil soup that you liked last week.",
    "My sister is coming to stay with us on Friday.",
    "How long does the train to the coast take?",
    "It takes about two hours, and the seats by the window are the best.",
    "Please remind me to water the plants in the morning.",
    "I do not like the answer, could you say it in fewer words?",
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep a tiny model on one thread: more only cost time."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer on a few sentences; it has a chat template and knows every byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[PAD_ID],
        bos_token=SPECIAL_TOKENS[BOS_ID],
        eos_token=SPECIAL_TOKENS[END_ID],
        additional_special_tokens=list(SPECIAL_TOKENS[2:5]),
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a random two-layer Llama (hidden size 32, context 512) and its tokenizer into a folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,  # far from uniform predictions, so that greedy choices are not ties
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=END_ID,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shared_tiny_model(tiny_model_folder: Path) -> BaseModel:
    """Load the tiny model once; for tests that only read it (and for hypothesis, which wants no fresh fixtures)."""
    return load_model(str(tiny_model_folder), device="cpu")


@pytest.fixture
def tiny_model(shared_tiny_model: BaseModel) -> BaseModel:
    """Return a copy of the tiny model that a test may wrap, train or break."""
    return copy.deepcopy(shared_tiny_model)


ARCHITECTURES = ("gemma2", "gpt2", "llama", "mistral", "qwen2")
SIZES = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": END_ID,
}
# Rotary and absolute positions, grouped heads, sliding windows, capped logits.
OWN_SIZES: dict[str, dict[str, object]] = {
    "gemma2": {"head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 5.0},
    "mistral": {"sliding_window": 16},
}


def architecture_config(name: str, vocabulary: int) -> PreTrainedConfig:
    """Return a tiny configuration."""
    sizes = SIZES | OWN_SIZES.get(name, {}) | {"vocab_size": vocabulary, "initializer_range": 0.3}
    config: PreTrainedConfig = AutoConfig.for_model(name, **sizes)
    return config


@pytest.fixture(scope="session")
def random_module(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[[str], PreTrainedModel]:
    """Return a function that builds a random frozen causal model of an architecture, hidden size 32, context 256."""

    def build(name: str) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(11)
            config = architecture_config(name, len(tiny_tokenizer))
            module: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        module.requires_grad_(requires_grad=False).eval()  # type: ignore[no-untyped-call]
        return module

    return build


@pytest.fixture(scope="session", params=ARCHITECTURES)
def any_module(request: pytest.FixtureRequest, random_module: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    """Return a random model of each architecture in turn; for tests that only read it."""
    return random_module(request.param)
