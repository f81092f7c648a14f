"""Decide, once and for ever, which text may train the built-in model and which only measures it.

A row's identity is hashed to a bucket from 0 to 99. Buckets 0-89 train; 90-99 are held out and measured for the
model card. The hash is keyed by the corpus, so the buckets of two corpora are independent.

`persona_chat` is split twice. First by *user*, where a user is the set of their persona sentences: half of the users
are `train` users, the other half belong to experiments on personalization and never train the model. Then the
dialogues between two `train` users are split into buckets like every other corpus.

The rule for users is plain enough to be repeated anywhere: blake2b with an 8-byte digest and `person=b"flori-split"`
over the UTF-8 of the sorted persona sentences joined by newlines, read as a big-endian integer, modulo 100; below 50
means `train`.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, Literal

BUCKETS: Final = 100
FIRST_HELD_OUT_BUCKET: Final = 90
TRAIN_USER_PERCENT: Final = 50
PERSON: Final = b"flori-split"

UserSplit = Literal["train", "evaluate"]


def _percentile(text: str) -> int:
    digest = blake2b(text.encode("utf-8"), digest_size=8, person=PERSON).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def bucket(corpus: str, identity: str) -> int:
    """Return the bucket, 0 to 99, of one row of a corpus."""
    return _percentile(f"{corpus}\n{identity}")


def is_held_out(corpus: str, identity: str) -> bool:
    """Tell whether a row only measures the model and must never train it."""
    return bucket(corpus, identity) >= FIRST_HELD_OUT_BUCKET


def persona_user_split(persona_sentences: Iterable[str]) -> UserSplit:
    """Return the side of a `persona_chat` user, who is the set of their persona sentences.

    The order and repetition of the sentences do not matter. The rule is written out in the module's docstring.
    """
    user = "\n".join(sorted(set(persona_sentences)))
    return "train" if _percentile(user) < TRAIN_USER_PERCENT else "evaluate"
