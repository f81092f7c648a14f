"""Sections: named sets of tensors, and plain values beside them, in one safetensors file that is replaced whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from client.durable import make_directory, replace_file, storage_errors
from florilegium.errors import InputError, StorageError
from florilegium.packing import pack, unpack
from florilegium.tensors import Tensors

__all__ = ["read_sections", "write_sections"]

_ABOUT: Final = "about"


def write_sections(
    path: Path, sections: Mapping[str, Mapping[str, torch.Tensor]], about: Mapping[str, object] | None = None
) -> None:
    """Replace the file, for its owner only; its folder is made.

    Args:
        path: of the file.
        sections: by name; names hold no "/".
        about: values that JSON can hold.

    Raises:
        StorageError: the disk is full or refuses; what was there is intact.
    """
    packed = {section: pack(tensors) for section, tensors in sections.items()}
    flat = {
        f"{name}/{number}": values.cpu() for name, runs in packed.items() for number, (_, values) in enumerate(runs)
    }
    contents = {name: [each for each, _ in runs] for name, runs in packed.items()}
    data = save(flat, metadata={_ABOUT: json.dumps({"sections": contents, "about": dict(about or {})})})
    with storage_errors(path):
        make_directory(path.parent)
        replace_file(path, data)


def read_sections(path: Path, *, remedy: str) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Return all sections, and the values beside them.

    Args:
        path: of the file.
        remedy: what its reader can do if it is damaged.

    Raises:
        StorageError: it cannot be read, or was not written by `write_sections`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            written = json.loads(file.metadata()[_ABOUT])
            sections = {
                name: unpack((each, file.get_tensor(f"{name}/{number}")) for number, each in enumerate(contents))
                for name, contents in written["sections"].items()
            }
            return sections, dict(written["about"])
    except (OSError, SafetensorError, InputError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} cannot be read: {type(error).__name__}", remedy) from error
