"""Score a dialogue from what a device has when it arrives: the question, its own response, and their embedding."""

from __future__ import annotations

from typing import Final, Literal, Protocol

import numpy as np

from client.dialogue import Dialogue
from client.selection.domains import dominant_domain
from client.selection.lexicons import Lexicons, possessives
from client.selection.metrics import Vector, dss
from client.selection.policy import Scored
from client.selection.words import split_words

__all__ = ["EOE_READINGS", "Embedded", "EoeReading", "pack_vector", "place", "score", "unpack_vector"]

EoeReading = Literal["energy", "histogram"]
_STEPS: Final = 2048
EOE_READINGS: Final[tuple[EoeReading, ...]] = ("energy", "histogram")


class Embedded(Protocol):
    """What the base model says of a dialogue (`client.model.Embedding`)."""

    @property
    def vector(self) -> Vector:
        """Mean of the final hidden states of the dialogue's tokens, (hidden,)."""

    @property
    def eoe_energy(self) -> float:
        """Entropy of embedding, energy reading."""

    @property
    def eoe_histogram(self) -> float:
        """Entropy of embedding, histogram reading."""


def pack_vector(vector: Vector) -> bytes:
    """Return a unit vector as it is stored: two bytes a number, in steps of 1/2048."""
    return np.rint(vector.astype(np.float64) * _STEPS).astype("<i2").tobytes()


def unpack_vector(packed: bytes) -> Vector:
    """Return a stored vector, (hidden,): its length is 1 and a cosine is right to within about 0.001.

    Every product of two such numbers is a multiple of 2^-22, and by Cauchy and Schwarz no partial sum of a cosine
    exceeds 1 by much, so that float32 holds all of them exactly. Cosines therefore do not depend on the order of
    summation: a buffer that is updated step by step, one that is read from its file, and one on another processor
    hold the same numbers and decide the same.
    """
    return np.frombuffer(packed, "<i2").astype(np.float32) / np.float32(_STEPS)


def place(dialogue: Dialogue, lexicons: Lexicons) -> tuple[str, float]:
    """Return a dialogue's dominant domain and its domain specific score."""
    words = split_words(f"{dialogue.question}\n{dialogue.response}")
    coverage = lexicons.coverage(words)
    return dominant_domain(lexicons.domains, coverage), dss(coverage, len(words))


def score(dialogue: Dialogue, embedding: Embedded, lexicons: Lexicons, reading: EoeReading = "energy") -> Scored | None:
    """Return the scores of a dialogue, IDD still to come; None if its embedding is zero or not finite.

    The vector is rounded to what is stored, so that decisions are the same before and after a restart.
    """
    eoe = embedding.eoe_energy if reading == "energy" else embedding.eoe_histogram
    wide = np.asarray(embedding.vector, np.float64).reshape(-1)
    length = float(np.linalg.norm(wide))
    if not (np.isfinite(length) and np.isfinite(eoe) and length > 0):
        return None
    domain, specificity = place(dialogue, lexicons)
    said = split_words(dialogue.question)
    return Scored(
        dialogue_id=dialogue.dialogue_id,
        vector=unpack_vector(pack_vector((wide / length).astype(np.float32))),
        domain=domain,
        eoe=float(eoe),
        dss=specificity,
        question_words=len(set(said)),
        possessives=possessives().coverage(said)[0],
    )
