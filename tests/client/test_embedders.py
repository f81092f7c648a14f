from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from client.dialogue import Dialogue
from client.embedders import Embedder, SentenceEmbedder
from client.model import BaseModel
from client.selection.metrics import eoe_energy
from florilegium.errors import ConfigError, ModelError

DIALOGUES = (
    Dialogue(question="What should I cook for dinner tonight?", response="Lentil soup."),
    Dialogue(question="Why?", response=""),
)


def test_the_base_model_is_an_embedder(shared_tiny_model: BaseModel) -> None:
    embedder: Embedder = shared_tiny_model
    assert [embedding.vector.shape for embedding in embedder.embed(DIALOGUES)] == [(32,), (32,)]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match="sentence-transformers, which is not installed; pip install"):
        SentenceEmbedder("any")


@pytest.fixture(scope="module")
def sentence_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    parts = pytest.importorskip("sentence_transformers.models")
    folder = tmp_path_factory.mktemp("sentence")
    config = BertConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        BertModel(config).save_pretrained(folder / "bert")
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None  # the library would write the text as a chat
    tokenizer.save_pretrained(folder / "bert")
    encoder = parts.Transformer(str(folder / "bert"))
    pooling = parts.Pooling(16, "mean")
    library.SentenceTransformer(modules=[encoder, pooling], device="cpu").save(str(folder / "whole"))
    return folder / "whole"


def test_sentence_embeddings(shared_tiny_model: BaseModel, sentence_folder: Path) -> None:
    """The pooling is a mean, so the vector is the mean of the text's token states, scaled to length 1."""
    embedder = SentenceEmbedder(str(sentence_folder))
    bert = BertModel.from_pretrained(sentence_folder)
    bert.eval()  # type: ignore[no-untyped-call]
    for dialogue, embedding in zip(DIALOGUES, embedder.embed(DIALOGUES), strict=True):
        text = f"{dialogue.question}\n{dialogue.response}".strip()
        ids = shared_tiny_model.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states = bert(ids).last_hidden_state[0].numpy()
        mean = states.mean(axis=0)
        np.testing.assert_allclose(embedding.vector, mean / np.linalg.norm(mean), atol=1e-5)
        assert embedding.eoe_energy == pytest.approx(eoe_energy(states), abs=1e-4)


def test_a_missing_sentence_model_is_named(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    with pytest.raises(ModelError, match="cannot be loaded"):
        SentenceEmbedder(str(tmp_path / "none"))
