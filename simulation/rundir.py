"""The run directory: where a comparison keeps what it measured, so that it can be stopped anywhere and goes on there.

    config.json    what was asked for; another request is refused
    versions.json  one entry per session: Python, libraries, processor, threads, date
    metrics.jsonl  one line per seed, user, arm and round
    summary.json, users.csv, report.html   written at the end

All rounds of one seed, user and arm are appended at once and flushed to the disk; a piece whose last line is missing
was cut by a kill, and is dropped and played again.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from client.durable import replace_file, storage_errors
from florilegium.errors import ConfigError, StorageError
from simulation.records import Key, RoundRecord

__all__ = ["RunDirectory"]

LIBRARIES = ("florilegium", "torch", "transformers", "peft", "numpy")


class RunDirectory:
    """A comparison's files; one process at a time may hold them.

    Args:
        path: the directory; made if there is none.
        config: what identifies the run, as plain JSON values.
        rounds: the number of the last round of a finished piece.

    Raises:
        ConfigError: the directory was made with another config.
        StorageError: it cannot be written, or another process is at work in it.
    """

    def __init__(self, path: Path, config: Mapping[str, object], *, rounds: int) -> None:
        self.path = path
        self._rounds = rounds
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise StorageError(f"{path} is in use by another process", "wait or name another directory") from None
        try:
            self._claim(json.loads(json.dumps(config)))
            self._finished = self._recover()
        except BaseException:
            self._lock.close()
            raise
        self._log = (path / "metrics.jsonl").open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process in."""
        self._log.close()
        self._lock.close()

    @property
    def finished(self) -> frozenset[Key]:
        """Return what need not be played again."""
        return frozenset(self._finished)

    @property
    def records(self) -> list[RoundRecord]:
        """Return all rounds of all finished pieces, ordered by seed, user, arm and round."""
        return [record for key in sorted(self._finished) for record in self._finished[key]]

    def append(self, piece: Sequence[RoundRecord]) -> None:
        """Add all rounds of one piece; they are on the disk when this returns."""
        with storage_errors(self.path):
            self._log.write(_lines(piece))
            self._log.flush()
            os.fsync(self._log.fileno())
        self._finished[piece[0].key] = list(piece)

    def sort(self) -> None:
        """Put the records into the order of seeds, users, arms and rounds, whatever order they were finished in."""
        self._log.close()
        self.write("metrics.jsonl", _lines(self.records))

    def write(self, name: str, text: str) -> Path:
        """Write one of the files that conclude a run."""
        path = self.path / name
        with storage_errors(path):
            replace_file(path, text.encode())
        return path

    def note_versions(self, **facts: str | int) -> None:
        """Add this session to `versions.json`."""
        path = self.path / "versions.json"
        sessions = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        self.write(path.name, json.dumps([*sessions, _versions() | facts], indent=2) + "\n")

    def _claim(self, config: dict[str, object]) -> None:
        path = self.path / "config.json"
        if not path.exists():
            self.write(path.name, json.dumps(config, indent=2) + "\n")
            return
        try:
            present = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise StorageError(f"{path} is not valid JSON", "remove the directory or name another one") from None
        differing = sorted(key for key in config.keys() | present.keys() if config.get(key) != present.get(key))
        if differing:
            raise ConfigError(
                f"{self.path} holds a run that differs in {', '.join(differing)}",
                "repeat that run's settings to continue it, or name another directory",
            )

    def _recover(self) -> dict[Key, list[RoundRecord]]:
        path = self.path / "metrics.jsonl"
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        pieces: dict[Key, list[RoundRecord]] = {}
        for record in _whole(text.split("\n")):
            pieces.setdefault(record.key, []).append(record)
        finished = {
            key: piece for key, piece in pieces.items() if [r.round for r in piece] == [*range(self._rounds + 1)]
        }
        kept = "".join(_lines(piece) for piece in finished.values())
        if kept != text:
            self.write(path.name, kept)
        return finished


def _lines(piece: Sequence[RoundRecord]) -> str:
    return "".join(record.model_dump_json() + "\n" for record in piece)


def _whole(lines: Iterable[str]) -> Iterable[RoundRecord]:
    for line in lines:
        try:
            yield RoundRecord.model_validate_json(line)
        except ValidationError:
            continue  # the line that a kill cut short


def _versions() -> dict[str, str | int]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: _installed(name) for name in LIBRARIES},
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
    }


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Return the processor's name; `platform.processor()` is empty on many Linux systems."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        facts = []
    names = [line.split(":", 1)[1].strip() for line in facts if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
