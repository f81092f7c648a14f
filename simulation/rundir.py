"""The run directory: where a comparison keeps what it measured, so that it can be stopped anywhere and goes on there.

    config.json    what the measurements depend on, which must not change, and what was asked for last, which may
    versions.json  one entry per session: Python, libraries, processor, threads, date
    metrics.jsonl  one line per seed, user, arm and round
    summary.json, users.csv, report.html   written at the end
    tensorboard, adapters          of comparisons of fleets: scalars per round, and the shared adapters at the end
    .work          temporary files, which may hold text; there only while a session runs, or until the run is finished

All rounds of one seed, user and arm are appended at once and flushed to the disk; a piece whose last line is missing
was cut by a kill, and is dropped and played again. Any other line that is no record is damage, and is left as it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from client.durable import make_directory, replace_file, storage_errors
from florilegium.errors import ConfigError, StorageError
from simulation.records import Key, RoundRecord

__all__ = ["RunConfig", "RunDirectory"]

Content = TypeVar("Content")
LIBRARIES = ("florilegium", "torch", "transformers", "peft", "numpy")


class RunConfig(BaseModel):
    """What `config.json` holds.

    Attributes:
        identity: what every measurement depends on; a run goes on only with the same.
        request: what the last session was asked for.
        data: seed → user → hash of the user's data, of all users so far; a user keeps their data for ever.
        fleets: seed → hash of who takes part, in order, where each one's results depend on the others; a seed keeps its
            fleet for ever. Empty where every user is measured for themselves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: dict[str, object]
    request: dict[str, object]
    data: dict[int, dict[str, str]]
    fleets: dict[int, str] = {}


class RunDirectory:
    """A comparison's files; one process at a time may hold them.

    Args:
        path: the directory; made if there is none.
        config: what identifies the run.
        rounds: the numbers of the rounds of a finished piece, in order.
        keeps_work: whether what is in `work` is needed to go on, and stays until it is discarded.

    Attributes:
        path: the directory.
        work: a folder in it, for its owner only; if it is not kept, it is emptied when the directory is opened and
            removed when it is closed.

    Raises:
        ConfigError: the directory holds a run of another identity, with other data of the same users, or with other
            fleets of the same seeds.
        StorageError: it cannot be written, is damaged, or another process is at work in it.
    """

    def __init__(self, path: Path, config: RunConfig, *, rounds: Iterable[int], keeps_work: bool = False) -> None:
        self.path = path
        self.work = path / ".work"
        self._rounds = list(rounds)
        with storage_errors(path), ExitStack() as held:
            path.mkdir(parents=True, exist_ok=True)
            self._lock(held)
            if not keeps_work:
                _remove(self.work)
                held.callback(_remove, self.work)
            make_directory(self.work)
            self._claim(config)
            self._finished = self._recover()
            # Unbuffered: what a full disk refused is not tried again when the file is closed.
            self._log = held.enter_context((path / "metrics.jsonl").open("ab", buffering=0))
            self._held = held.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary files and let another process in."""
        with storage_errors(self.path):
            self._held.close()

    @property
    def finished(self) -> frozenset[Key]:
        """Return what need not be played again, whether it is asked for now or was before."""
        return frozenset(self._finished)

    @property
    def records(self) -> list[RoundRecord]:
        """Return all rounds of all finished pieces, ordered by seed, user, arm and round."""
        return [record for key in sorted(self._finished) for record in self._finished[key]]

    def append(self, piece: Sequence[RoundRecord]) -> None:
        """Add all rounds of one piece; they are on the disk when this returns."""
        rest = memoryview(_lines(piece).encode())
        with storage_errors(self.path):
            while rest:
                rest = rest[self._log.write(rest) :]
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

    def discard_work(self) -> None:
        """Remove the temporary files."""
        with storage_errors(self.work):
            _remove(self.work)

    def note_versions(self, **facts: str | int) -> None:
        """Add this session to `versions.json`."""
        path = self.path / "versions.json"
        sessions = _read(path, list[dict[str, object]], "remove the file") if path.exists() else []
        self.write(path.name, json.dumps([*sessions, _versions() | facts], indent=2) + "\n")

    def _lock(self, held: ExitStack) -> None:
        lock = held.enter_context((self.path / ".lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{self.path} is in use by another process", "wait or name another directory") from None

    def _claim(self, config: RunConfig) -> None:
        path = self.path / "config.json"
        present = _read(path, RunConfig, "remove the directory or name another one") if path.exists() else config
        differing = {
            key
            for key in config.identity.keys() | present.identity.keys()
            if config.identity.get(key) != present.identity.get(key)
        }
        if differing:
            raise ConfigError(
                f"{self.path} holds a run that differs in {', '.join(sorted(differing))}",
                "repeat that run's settings with the code that made it, or name another directory",
            )
        data = {seed: dict(users) for seed, users in present.data.items()}
        for seed, users in config.data.items():
            for user, digest in users.items():
                if data.setdefault(seed, {}).setdefault(user, digest) != digest:
                    raise ConfigError(
                        f"{self.path} holds a run with other data of user {user!r} of seed {seed}",
                        "name another directory",
                    )
        for seed, fleet in config.fleets.items():
            if present.fleets.get(seed, fleet) != fleet:
                raise ConfigError(
                    f"{self.path} holds a run of other users in the fleet of seed {seed}, and what is measured of one "
                    "depends on all of them",
                    "give the same users in the same order, or name another directory",
                )
        known = {"data": data, "fleets": present.fleets | config.fleets}
        self.write(path.name, config.model_copy(update=known).model_dump_json(indent=2) + "\n")

    def _recover(self) -> dict[Key, list[RoundRecord]]:
        path = self.path / "metrics.jsonl"
        log = path.read_bytes() if path.exists() else b""
        pieces: dict[Key, list[RoundRecord]] = {}
        for record in _parse(path, log):
            pieces.setdefault(record.key, []).append(record)
        finished = {key: piece for key, piece in pieces.items() if [r.round for r in piece] == self._rounds}
        kept = "".join(_lines(piece) for piece in finished.values())
        if kept.encode() != log:
            self.write(path.name, kept)
        return finished


def _lines(piece: Sequence[RoundRecord]) -> str:
    return "".join(record.model_dump_json() + "\n" for record in piece)


def _parse(path: Path, log: bytes) -> Iterator[RoundRecord]:
    *lines, rest = log.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            yield RoundRecord.model_validate_json(line)
        except ValidationError:
            raise StorageError(
                f"line {number} of {path} is damaged or of another version",
                "nothing was changed; remove the line to measure its piece again, or name another directory",
            ) from None
    with suppress(ValidationError):  # without a newline: nothing, or what a kill cut short
        yield RoundRecord.model_validate_json(rest)


def _read(path: Path, kind: type[Content], remedy: str) -> Content:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError:
        raise StorageError(f"{path} is damaged or of another version", remedy) from None


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


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
