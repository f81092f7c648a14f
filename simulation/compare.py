"""Compare arms side by side at equal budgets of annotations and of training rows, over several draws of users.

Every user is played once under every arm: the same stream, the same answers of the base model, the same held-out
questions. A worker plays one user; each finished (seed, user, arm) is on the disk at once, so a run that was stopped
goes on with what is missing and ends with the same result, and one that ended can be given more users, seeds or arms.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from client.dialogue import derive_id
from florilegium.errors import InputError
from simulation.arms import find_arms
from simulation.identity import describe_run, run_name
from simulation.plan import CompareConfig, Task
from simulation.records import METRICS, Key, RoundRecord
from simulation.report import render_report
from simulation.rundir import RunDirectory
from simulation.summary import REFERENCE, Summary, summarize
from simulation.users import UserData
from simulation.workers import stream

__all__ = [
    "CompareConfig",
    "Progress",
    "UsersBySeed",
    "check_users",
    "deal_users",
    "run_compare",
    "run_name",
    "users_of_part",
    "users_table",
]

UsersBySeed = Mapping[int, Sequence[UserData]]
_QUICK_DRAWS: Final = 200
_UNKNOWN: Final[Mapping[str, object]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a comparison is.

    Attributes:
        done: pieces (one user under one arm) that are finished, with those of earlier sessions.
        total: pieces in all.
        resumed: pieces that were finished in earlier sessions.
        doing: what is being done, in a word.
        summary: of the users that are finished under all arms, with rough intervals; None before the first.
    """

    done: int
    total: int
    resumed: int
    summary: Summary | None
    doing: str = "comparing"


def users_of_part(users: Sequence[UserData], part: Literal["tune", "report"]) -> list[UserData]:
    """Return the users to choose settings on, or those to report on: one half each, by a hash of the user's name."""
    return [user for user in users if (derive_id("part", user.user_id)[0] in "01234567") == (part == "tune")]


def deal_users(users: Sequence[UserData], seeds: Sequence[int], *, most: int, seed: int) -> dict[int, list[UserData]]:
    """Give each user to one seed at most, so that nobody is counted twice.

    Args:
        users: whom to deal; their order and number have no part in which come first.
        seeds: who gets them, in turn; those that get none are left out.
        most: users of one seed.
        seed: shuffles the users.
    """
    shuffled = sorted(users, key=lambda user: derive_id("deal", seed, user.user_id))[: most * len(seeds)]
    return {each: dealt for index, each in enumerate(seeds) if (dealt := shuffled[index :: len(seeds)])}


def run_compare(
    users_by_seed: UsersBySeed,
    config: CompareConfig,
    run_directory: Path,
    *,
    source: Mapping[str, object] = _UNKNOWN,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Play every user under every arm, and write records, summary and report.

    Args:
        users_by_seed: for each seed, its draw of users; nobody should be drawn twice, as users are counted.
        config: what is compared.
        run_directory: made; or, if it holds the same comparison, continued with what is missing. What it holds of
            other seeds, users and arms stays and is not summed up.
        source: how the users were made, for the reader of `config.json`.
        progress: called after every finished piece.

    Raises:
        ConfigError: a setting is out of range, or the directory holds another comparison.
        InputError: there are no users, or two of one seed share a name.
        StorageError: the directory cannot be written, is damaged or in use.
        ModelError: the base model cannot be loaded.
    """
    check_users(users_by_seed)
    described = describe_run(users_by_seed, config, source)
    with RunDirectory(run_directory, described, rounds=range(config.rounds + 1)) as directory:
        workers = config.workers or os.cpu_count() or 1
        directory.note_versions(workers=workers, threads_per_worker=1)
        tasks = _missing(users_by_seed, config, directory)
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


def check_users(users_by_seed: UsersBySeed) -> None:
    """Refuse users that cannot be compared on.

    Raises:
        InputError: there are none, two of one seed share a name, or one has no stream or no held-out question.
    """
    if not any(users_by_seed.values()):
        raise InputError("there are no users to compare on", "give at least one seed with one user")
    for seed, users in users_by_seed.items():
        name, count = Counter(user.user_id for user in users).most_common(1)[0] if users else ("", 0)
        if count > 1:
            raise InputError(f"seed {seed} has {count} users named {name!r}", "give each a name of its own")
        for user in users:
            if not user.stream or not user.heldout:
                raise InputError(f"user {user.user_id!r} has no stream or no held-out questions", "leave it out")


def _pieces(users_by_seed: UsersBySeed, config: CompareConfig) -> frozenset[Key]:
    """Return what is asked for; the directory may hold more."""
    arms = find_arms(config.arms)
    return frozenset(
        (seed, user.user_id, arm.name) for seed, users in users_by_seed.items() for user in users for arm in arms
    )


def _missing(users_by_seed: UsersBySeed, config: CompareConfig, directory: RunDirectory) -> list[Task]:
    arms, finished = find_arms(config.arms), directory.finished
    tasks = []
    for seed, users in users_by_seed.items():
        for user in users:
            left = tuple(arm for arm in arms if (seed, user.user_id, arm.name) not in finished)
            if left:
                tasks.append(Task(seed=seed, user=user, arms=left, config=config, work=directory.work))
    return tasks


class _Reporter:
    def __init__(self, users_by_seed: UsersBySeed, config: CompareConfig, directory: RunDirectory) -> None:
        self._users, self._config, self._directory = users_by_seed, config, directory
        self._pieces = _pieces(users_by_seed, config)
        self._resumed = len(self._pieces & directory.finished)
        self._complete = -1
        self._summary: Summary | None = None

    def progress(self) -> Progress:
        finished = self._pieces & self._directory.finished
        arms = len(find_arms(self._config.arms))
        complete = {user for user, count in Counter(key[:2] for key in finished).items() if count == arms}
        if complete and len(complete) != self._complete:
            self._complete = len(complete)
            records = [r for r in self._directory.records if r.key in finished and r.key[:2] in complete]
            self._summary = _summarize(self._users, self._config, records, draws=_QUICK_DRAWS)
        return Progress(done=len(finished), total=len(self._pieces), resumed=self._resumed, summary=self._summary)


def _summarize(
    users_by_seed: UsersBySeed, config: CompareConfig, records: Sequence[RoundRecord], *, draws: int
) -> Summary:
    kinds = Counter(turn.kind for users in users_by_seed.values() for user in users for turn in user.stream)
    return summarize(
        records,
        arms=find_arms(config.arms),
        model=config.model,
        config=config.selection() | config.identity(),
        stream_kinds=dict(kinds.most_common()),
        draws=draws,
    )


def _conclude(users_by_seed: UsersBySeed, config: CompareConfig, directory: RunDirectory) -> Summary:
    pieces = _pieces(users_by_seed, config)
    records = [record for record in directory.records if record.key in pieces]
    summary = _summarize(users_by_seed, config, records, draws=config.bootstrap_draws)
    directory.sort()
    directory.write("users.csv", users_table([record for record in records if record.round == config.rounds]))
    directory.write("summary.json", summary.model_dump_json(indent=2) + "\n")
    directory.write("report.html", render_report(summary))
    return summary


def users_table(final: Sequence[RoundRecord]) -> str:
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
