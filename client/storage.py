"""One SQLite file that one process writes: modes, durability, the writer's lock, and errors in one line each.

Write-ahead log with a sync per commit: a transaction that returned is on the disk, one that did not leaves no trace,
whenever the process dies. Deleted content is overwritten, and `scrub` also takes it out of the log and of free pages.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from florilegium.errors import BusyError, StorageError

__all__ = ["Database"]

_BUSY_SECONDS: Final = 5.0
_PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = ON",
    "PRAGMA foreign_keys = ON",
    "PRAGMA temp_store = MEMORY",  # VACUUM must not copy private text to a temporary file elsewhere
    "PRAGMA journal_size_limit = 0",
)
_TROUBLES: Final = {
    sqlite3.SQLITE_FULL: ("the disk is full", "free some space and try again; what was stored before is safe"),
    sqlite3.SQLITE_READONLY: ("it is read-only", "open it for writing, and give its folder to this user"),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "check that its folder exists and belongs to this user"),
    sqlite3.SQLITE_PERM: ("access is denied", "give the file and its folder to this user"),
    sqlite3.SQLITE_BUSY: ("another process is using it", "wait for it to end, or stop it"),
    sqlite3.SQLITE_LOCKED: ("another connection is using it", "wait for it to end"),
    sqlite3.SQLITE_CORRUPT: ("it is damaged", "restore it from a copy, or move it away to start afresh"),
    sqlite3.SQLITE_NOTADB: ("it is not a database", "restore it from a copy, or move it away to start afresh"),
    sqlite3.SQLITE_IOERR: ("the disk reported an error", "check the disk; what was stored before is safe"),
}


def _trouble(path: Path, error: sqlite3.Error | OSError) -> StorageError:
    """Say an error in one line, with nothing of what the statement carried."""
    if isinstance(error, OSError):
        return StorageError(f"{path}: {error.strerror or type(error).__name__}", "check the folder and who owns it")
    code = getattr(error, "sqlite_errorcode", None)
    problem, remedy = _TROUBLES.get((code or 0) & 0xFF, (f"database error {code}", "report it with this number"))
    return StorageError(f"{path}: {problem}", remedy)


class Database:
    """A connection for one process, safe to use from several threads.

    Args:
        path: the file; it and missing folders are created, the file with mode 0600, folders with mode 0700.
        schema: statements that create an empty database.
        version: the schema's version; a file with a newer one is refused.
        read_only: look, while another process may be writing; without it the caller is the only writer.

    Raises:
        BusyError: another process writes it.
        StorageError: it cannot be opened, is no such database, or is too new.
    """

    def __init__(self, path: Path, *, schema: str, version: int, read_only: bool = False) -> None:
        self.path = path
        self._guard = threading.RLock()
        self._lock_file: int | None = None
        try:
            if not read_only:
                self._create_private()
                self._lock_file = self._lock()
            elif not path.is_file():
                raise StorageError(f"{path}: no such file", "give the folder of a device that has run before")
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._prepare(schema, version, read_only)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise _trouble(path, error) from None
        except BaseException:
            self.close()
            raise

    def _create_private(self) -> None:
        missing = [folder for folder in self.path.parents if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self.path.chmod(0o600)

    def _lock(self) -> int:
        handle = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise BusyError(
                f"{self.path} is in use by process {owner}", "stop that process, or give this one another folder"
            ) from None
        os.truncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        return handle

    def _prepare(self, schema: str, version: int, read_only: bool) -> None:
        for pragma in ("PRAGMA query_only = ON",) if read_only else _PRAGMAS:
            self._connection.execute(pragma)
        (found,) = self._connection.execute("PRAGMA user_version").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if found > version:
            raise StorageError(
                f"{self.path} has schema version {found}, this program knows up to {version}", "update florilegium"
            )
        if found == version:
            return
        if tables or read_only:
            raise StorageError(f"{self.path} is a database of another program", "give another folder")
        with self.transaction() as sql:
            for statement in schema.split(";"):
                sql.execute(statement)
            sql.execute(f"PRAGMA user_version = {version}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a block as one transaction: on disk when the block is left, or nothing of it."""
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Run queries that see one state of the file."""
        with self._translated():
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("ROLLBACK")

    @property
    def file_bytes(self) -> int:
        """The size of the file and of its log."""
        files = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def scrub(self) -> None:
        """Rewrite the file without free pages and empty the log, so that nothing deleted remains in either.

        Raises:
            StorageError: the disk is full, or a reader still holds the old pages.
        """
        with self._translated():
            self._checkpoint()
            self._connection.execute("VACUUM")
            self._checkpoint()

    def _checkpoint(self) -> None:
        (blocked, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if blocked:
            raise StorageError(f"{self.path}: a reader still holds deleted pages", "close the reader and try again")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with self._guard:
            try:
                yield
            except sqlite3.ProgrammingError:
                raise  # a mistake in the program, such as using a closed file
            except sqlite3.Error as error:
                raise _trouble(self.path, error) from None

    def close(self) -> None:
        """Write the log back, close the file and let another process write; closing twice does no harm."""
        with self._guard:
            if hasattr(self, "_connection"):
                self._connection.close()
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
