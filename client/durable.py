"""Durable files: what is written is there after a power cut, whole or not at all.

A file is written beside its place, flushed to the disk, and renamed over it; then the folder is flushed. Folders are
for their owner only (0700), and so are files (0600).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from florilegium.errors import StorageError

__all__ = [
    "make_directory",
    "remove_drafts",
    "replace_file",
    "storage_errors",
    "sync_directory",
    "write_new_file",
]


_REMEDIES: Final[Mapping[int | None, str]] = {
    errno.ENOENT: "name a folder that exists",
    errno.ENOTDIR: "name a folder, not a file",
    errno.EEXIST: "name another place",
    errno.EISDIR: "name a file, not a folder",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal (disk full, no permission, …) into a `StorageError` that names `path`."""
    try:
        yield
    except OSError as error:
        problem = f"{path} cannot be written: {error.strerror or type(error).__name__}"
        remedy = _REMEDIES.get(error.errno, "free space or check permissions")
        raise StorageError(problem, f"{remedy}; what was there is intact") from error


def make_directory(path: Path) -> None:
    """Make `path` and its parents, for the owner only; do nothing where they exist."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def sync_directory(path: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new_file(path: Path, data: bytes) -> None:
    """Write `data` to a file of mode 0600 and flush it to the disk; what was there is overwritten."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` atomically: a reader, and a restart, see the old content or the new, never a mixture."""
    beside = path.with_name(f".{path.name}.new")
    try:
        write_new_file(beside, data)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def remove_drafts(directory: Path) -> None:
    """Remove what `replace_file` left in a folder when its process was killed."""
    for draft in directory.glob(".*.new"):
        draft.unlink(missing_ok=True)
