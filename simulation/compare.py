"""Compare arms side by side at equal budgets of annotations and of training rows, over several draws of users.

Every user is played once under every arm: the same stream, the same answers of the base model, the same held-out
questions. A worker plays one user; each finished (seed, user, arm) is on the disk at once, so a run that was stopped
goes on with what is missing and ends with the same result.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from client.dialogue import derive_id
from florilegium.errors import InputError
from simulation.arms import find_arms
from simulation.plan import CompareConfig, Task
from simulation.records import METRICS, Key, RoundRecord
from simulation.report import render_report
from simulation.rundir import RunDirectory
from simulation.summary import REFERENCE, Summary, summarize
from simulation.users import UserData
from simulation.workers import stream

__all__ = ["CompareConfig", "Progress", "run_compare", "users_of_part"]

UsersBySeed = Mapping[int, Sequence[UserData]]
_QUICK_DRAWS: Final = 200
_BLOCK_BYTES: Final = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a comparison is.

    Attributes:
        done: pieces (one user under one arm) that are finished, with those of earlier sessions.
        total: pieces in all.
        resumed: pieces that were finished in earlier sessions.
        summary: of the users that are finished under all arms, with rough intervals; None before the first.
    """

    done: int
    total: int
    resumed: int
    summary: Summary | None


def users_of_part(users: Sequence[UserData], part: Literal["tune", "report"]) -> list[UserData]:
    """Return the users to choose settings on, or those to report on: one half each, by a hash of the user's name."""
    return [user for user in users if (derive_id("part", user.user_id)[0] in "01234567") == (part == "tune")]


def run_compare(
    users_by_seed: UsersBySeed,
    config: CompareConfig,
    run_directory: Path,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Play every user under every arm, and write records, summary and report.

    Args:
        users_by_seed: for each seed, its draw of users.
        config: what is compared.
        run_directory: made, or continued if it holds the same comparison.
        progress: called after every finished piece.

    Raises:
        ConfigError: a setting is out of range, or the directory holds another comparison.
        InputError: there are no users, or two of one seed share a name.
        StorageError: the directory cannot be written or is in use.
        ModelError: the base model cannot be loaded.
    """
    _check(users_by_seed)
    with RunDirectory(run_directory, _identity(users_by_seed, config), rounds=config.rounds) as directory:
        workers = config.workers or os.cpu_count() or 1
        directory.note_versions(workers=workers, threads_per_worker=1)
        tasks = _missing(users_by_seed, config, directory.finished)
        report = _Reporter(users_by_seed, config, directory)
        if progress:
            progress(report.progress())
        with closing(stream(_play, tasks, workers=workers)) as pieces:
            for piece in pieces:
                directory.append(piece)
                if progress:
                    progress(report.progress())
        return _conclude(users_by_seed, config, directory)


def _play(task: Task) -> Iterator[list[RoundRecord]]:
    # Imported here: only the workers need the model and its libraries.
    from simulation.play import play_user

    return play_user(task)


def _check(users_by_seed: UsersBySeed) -> None:
    if not any(users_by_seed.values()):
        raise InputError("there are no users to compare on", "give at least one seed with one user")
    for seed, users in users_by_seed.items():
        name, count = Counter(user.user_id for user in users).most_common(1)[0] if users else ("", 0)
        if count > 1:
            raise InputError(f"seed {seed} has {count} users named {name!r}", "give each a name of its own")
        for user in users:
            if not user.stream or not user.heldout:
                raise InputError(f"user {user.user_id!r} has no stream or no held-out questions", "leave it out")


def _identity(users_by_seed: UsersBySeed, config: CompareConfig) -> dict[str, object]:
    """Return what a result depends on; texts enter as a hash."""
    texts = (
        derive_id(
            seed,
            user.user_id,
            *(
                part
                for turn in user.stream
                for part in (turn.turn_id, turn.question, turn.preferred, turn.response or "")
            ),
            *(part for each in user.heldout for part in (each.example_id, each.question, each.response)),
        )
        for seed, users in users_by_seed.items()
        for user in users
    )
    return config.identity() | {
        "users": {str(seed): len(users) for seed, users in users_by_seed.items()},
        "data": derive_id(*texts),
        "weights": _weights(config.model),
    }


def _weights(model: str) -> str:
    """Return a hash of a local model's files, so that a run is not continued with another model of the same name."""
    from client.loading import locate

    folder, digest = Path(locate(model)), hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in (".json", ".safetensors", ".bin", ".model", ".jinja"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
    return digest.hexdigest() if folder.is_dir() else model


def _missing(users_by_seed: UsersBySeed, config: CompareConfig, finished: frozenset[Key]) -> list[Task]:
    arms = find_arms(config.arms)
    tasks = []
    for seed, users in users_by_seed.items():
        for user in users:
            left = tuple(arm for arm in arms if (seed, user.user_id, arm.name) not in finished)
            if left:
                tasks.append(Task(seed=seed, user=user, arms=left, config=config))
    return tasks


class _Reporter:
    def __init__(self, users_by_seed: UsersBySeed, config: CompareConfig, directory: RunDirectory) -> None:
        self._users, self._config, self._directory = users_by_seed, config, directory
        self._total = sum(len(users) for users in users_by_seed.values()) * len(find_arms(config.arms))
        self._resumed = len(directory.finished)
        self._complete = -1
        self._summary: Summary | None = None

    def progress(self) -> Progress:
        finished = self._directory.finished
        arms = len(find_arms(self._config.arms))
        complete = {user for user, count in Counter(key[:2] for key in finished).items() if count == arms}
        if complete and len(complete) != self._complete:
            self._complete = len(complete)
            records = [record for record in self._directory.records if record.key[:2] in complete]
            self._summary = _summarize(self._users, self._config, records, draws=_QUICK_DRAWS)
        return Progress(done=len(finished), total=self._total, resumed=self._resumed, summary=self._summary)


def _summarize(
    users_by_seed: UsersBySeed, config: CompareConfig, records: Sequence[RoundRecord], *, draws: int
) -> Summary:
    kinds = Counter(turn.kind for users in users_by_seed.values() for user in users for turn in user.stream)
    return summarize(
        records,
        arms=find_arms(config.arms),
        model=config.model,
        config=config.identity(),
        stream_kinds=dict(kinds.most_common()),
        draws=draws,
    )


def _conclude(users_by_seed: UsersBySeed, config: CompareConfig, directory: RunDirectory) -> Summary:
    records = directory.records
    summary = _summarize(users_by_seed, config, records, draws=config.bootstrap_draws)
    directory.sort()
    directory.write("users.csv", _users_table([record for record in records if record.round == config.rounds]))
    directory.write("summary.json", summary.model_dump_json(indent=2) + "\n")
    directory.write("report.html", render_report(summary))
    return summary


def _users_table(final: Sequence[RoundRecord]) -> str:
    """Return one line per seed, user and arm: final scores, and their differences to the reference arm."""
    reference = {(record.seed, record.user): record.scores for record in final if record.arm == REFERENCE}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["seed", "user", "arm", *METRICS, *(f"{name}_minus_{REFERENCE}" for name in METRICS if reference)])
    for record in final:
        base = reference.get((record.seed, record.user))
        differences = [record.scores[name] - base[name] for name in METRICS] if base else []
        values = [f"{value:.6g}" for value in (*(record.scores[name] for name in METRICS), *differences)]
        table.writerow([*record.key, *values])
    return text.getvalue()
