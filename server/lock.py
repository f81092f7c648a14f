"""A file's lock, between processes and within one; the system ends it with its holder, so that none is ever stale."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from client.durable import make_directory, storage_errors
from florilegium.errors import BusyError

__all__ = ["locked"]


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold a file's lock within the block.

    Args:
        path: of the file; it and its folder are made.
        shared: with others who share it, too; else alone.
        wait: until others let go of it.

    Raises:
        BusyError: others hold it, and are not waited for.
        StorageError: the file cannot be made.
    """
    with storage_errors(path):
        make_directory(path.parent)
        handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _take(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)):
            raise BusyError(f"{path.parent} is in use by another server", "stop that one, or name another directory")
        yield
    finally:
        os.close(handle)


def _take(handle: int, how: int) -> bool:
    """Take the lock, and return whether it was to be had."""
    with suppress(BlockingIOError):
        fcntl.flock(handle, how)
        return True
    return False
