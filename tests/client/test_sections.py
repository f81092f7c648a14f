"""Sections in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from client.sections import read_sections, write_sections
from florilegium.errors import StorageError


def test_what_is_written_is_read_in_its_order(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    sections = {
        "z": {"b/c": shared.t(), "a": shared},  # not contiguous, and of the same memory
        "empty": {},
        "a": {"scalar": torch.tensor(0.1, dtype=torch.float64), "flags": torch.tensor([True, False])},
    }
    about = {"round": 3, "counts": {"7": 2}, "none": None}
    path = tmp_path / "folder" / "file"
    write_sections(path, {"other": {"x": torch.zeros(1)}})
    write_sections(path, sections, about)
    found, told = read_sections(path, remedy="")
    assert told == about
    assert [(name, list(tensors)) for name, tensors in found.items()] == [
        ("z", ["b/c", "a"]),
        ("empty", []),
        ("a", ["scalar", "flags"]),
    ]
    for section, tensors in sections.items():
        for name, tensor in tensors.items():
            assert torch.equal(found[section][name], tensor)
            assert found[section][name].dtype == tensor.dtype
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_sections(tmp_path / name, {"a": {"x": torch.ones(3)}, "b": {}}, {"k": 1, "j": 2})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("content", [b"", b"nonsense" * 9])
def test_a_damaged_file_is_named_with_the_remedy(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(StorageError, match=r"file cannot be read: .*; throw it away"):
        read_sections(tmp_path / "file", remedy="throw it away")


@pytest.mark.parametrize(
    "metadata", [None, {"about": "{"}, {"about": "[]"}, {"about": json.dumps({"sections": {"a": ["y"]}})}]
)
def test_a_file_of_another_program_is_named(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"a/x": torch.zeros(1)}, tmp_path / "file", metadata=metadata)
    with pytest.raises(StorageError, match="cannot be read"):
        read_sections(tmp_path / "file", remedy="")


def test_a_refusal_of_the_disk_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_sections(tmp_path / "file" / "sections", {})
