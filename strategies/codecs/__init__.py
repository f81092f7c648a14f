"""Codecs by name; a new one is one file here and one line in `CODECS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from strategies.codecs.codec import (
    Codec,
    PayloadShapes,
    Shapes,
    encode_with_feedback,
    payload_bytes,
    shapes_of,
)
from strategies.codecs.identity import Identity
from strategies.codecs.int8 import Int8
from strategies.codecs.sketch import Sketch
from strategies.codecs.topk import TopK

__all__ = [
    "CODECS",
    "Codec",
    "PayloadShapes",
    "Shapes",
    "encode_with_feedback",
    "payload_bytes",
    "shapes_of",
]

CODECS: Final[Mapping[str, type[Codec]]] = {
    "identity": Identity,
    "int8": Int8,
    "topk": TopK,
    "sketch": Sketch,
}
