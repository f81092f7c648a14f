from pathlib import Path

import pytest
import torch

from client.finetuning.checkpoint import Checkpoint, discard_checkpoint, read_checkpoint, write_checkpoint
from florilegium.errors import StorageError


def state(step: int = 3) -> Checkpoint:
    tensors = {"mean": torch.arange(4.0), "square": torch.ones(4)}
    return Checkpoint(fingerprint="f", step=step, tensors=tensors, notes={"tokens": 12, "loss": 0.1 + 0.2})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "round" / "checkpoint"
    assert read_checkpoint(path, "f") is None
    write_checkpoint(path, state(1))
    write_checkpoint(path, state())
    found = read_checkpoint(path, "f")
    assert found is not None
    assert (found.step, found.notes) == (3, {"tokens": 12, "loss": 0.1 + 0.2})
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in state().tensors.items())
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    discard_checkpoint(path)
    discard_checkpoint(path)
    assert read_checkpoint(path, "f") is None


def test_other_work_does_not_see_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", state())
    assert read_checkpoint(tmp_path / "checkpoint", "other") is None


@pytest.mark.parametrize("content", [b"", b"nonsense" * 9])
def test_a_spoilt_file_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="cannot be read"):
        read_checkpoint(path, "f")


def test_a_refusal_of_the_disk_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_checkpoint(tmp_path / "file" / "checkpoint", state())
