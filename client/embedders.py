"""What turns dialogues into embeddings: the base model itself, or a sentence-transformers model beside it.

The base model's embeddings cost nothing, since the pass that answers makes them. A sentence-transformers model gives
vectors trained for likeness of meaning, at the price of a second model; its entropies of embedding are those of its own
token states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from client.dialogue import Dialogue
from client.model import Embedding
from client.selection.metrics import eoe_energy, eoe_histogram
from florilegium.errors import ConfigError, ModelError

__all__ = ["Embedder", "SentenceEmbedder"]


class Embedder(Protocol):
    """Embed dialogues; `BaseModel` is one."""

    def embed(self, dialogues: Sequence[Dialogue]) -> list[Embedding]:
        """Return one embedding per dialogue, in the same order."""
        ...


class SentenceEmbedder:
    """Embed with a sentence-transformers model.

    Args:
        name_or_path: a Hub name or a local folder.
        device: where it runs.

    Raises:
        ConfigError: sentence-transformers is not installed.
        ModelError: there is no such model.
    """

    def __init__(self, name_or_path: str, device: str = "cpu") -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ConfigError(
                "sentence embeddings need the library sentence-transformers, which is not installed",
                "pip install sentence-transformers, or embed with the base model",
            ) from None
        try:
            self._encoder = SentenceTransformer(name_or_path, device=device)
        except Exception as error:
            raise ModelError(
                f"the sentence-transformers model {name_or_path!r} cannot be loaded ({type(error).__name__})",
                "check the name and the network, or give a local folder",
            ) from None

    def embed(self, dialogues: Sequence[Dialogue]) -> list[Embedding]:
        """Embed dialogues; question and response are read as one text, each on a line."""
        texts = [f"{dialogue.question}\n{dialogue.response}".strip() for dialogue in dialogues]
        outputs = self._encoder.encode(texts, output_value=None, show_progress_bar=False)
        embeddings = []
        for output in outputs:
            kept = output["attention_mask"].bool()
            states = output["token_embeddings"][kept].float().cpu().numpy()
            vector = output["sentence_embedding"].float().cpu().numpy()
            vector = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
            embeddings.append(Embedding(vector, eoe_histogram(states), eoe_energy(states)))
        return embeddings
