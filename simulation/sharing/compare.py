"""Compare ways of sharing: every arm on the same fleets, with the same rows and the same local steps.

    prepare   every device's rows and the base model's scores, device by device       (shared by all arms)
    play      every arm on every seed's fleet, round by round
    conclude  summary, tables, report

A comparison that was stopped goes on with the device, or in the arm and the round, that it was in.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from florilegium.errors import InputError
from simulation.compare import UsersBySeed, check_users, users_table
from simulation.identity import describe_run
from simulation.records import Key, RoundRecord
from simulation.report import render_report
from simulation.rundir import RunDirectory
from simulation.sharing.arms import SHARING_CONTRASTS, SharingArm
from simulation.sharing.config import SharingConfig
from simulation.sharing.fleets import Ground, PrepareTask, prepare_device
from simulation.sharing.learning import ArmTask
from simulation.sharing.play import RoundDone, play_arm
from simulation.summary import Summary, summarize
from simulation.users import UserData
from simulation.workers import stream

__all__ = ["SharingProgress", "run_sharing"]

_QUICK_DRAWS: Final = 200
_UNKNOWN: Final[Mapping[str, object]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingProgress:
    """How far a comparison is.

    Attributes:
        done: devices prepared and rounds played, those of earlier sessions included.
        total: of both, in all.
        doing: what is being done, in a few words.
        summary: of the arms that are finished on all fleets, with rough intervals; None before the first.
    """

    done: int
    total: int
    doing: str
    summary: Summary | None


def run_sharing(
    users_by_seed: UsersBySeed,
    config: SharingConfig,
    run_directory: Path,
    *,
    source: Mapping[str, object] = _UNKNOWN,
    progress: Callable[[SharingProgress], None] | None = None,
) -> Summary:
    """Play every arm on every seed's fleet, and write records, summary and report.

    Args:
        users_by_seed: for each seed the users of its fleet, of which the last `config.unseen` take no part.
        config: what is compared.
        run_directory: made; or, if it holds the same comparison, continued with what is missing.
        source: how the users were made, for the reader of `config.json`.
        progress: called after every prepared device and every round.

    Raises:
        ConfigError: a setting is out of range, or cannot work with so few devices; or the directory holds another
            comparison.
        InputError: a fleet has fewer than two devices, or two users of one seed share a name.
        StorageError: the directory cannot be written, is damaged or in use.
        ModelError: the base model cannot be loaded.
    """
    check_users(users_by_seed)
    for seed, users in users_by_seed.items():
        if len(users) - config.unseen < 2:
            raise InputError(
                f"the fleet of seed {seed} has {len(users)} users, {config.unseen} of them unseen",
                "give more users, so that two devices take part, or fewer unseen ones",
            )
        config.require_possible(len(users) - config.unseen)
    described = describe_run(users_by_seed, config, source)
    with RunDirectory(run_directory, described, rounds=config.measured_rounds, keeps_work=True) as directory:
        run = _Run(users_by_seed, config, directory, progress)
        run.prepare()
        run.play()
        return run.conclude()


class _Run:
    def __init__(
        self,
        users_by_seed: UsersBySeed,
        config: SharingConfig,
        directory: RunDirectory,
        progress: Callable[[SharingProgress], None] | None,
    ) -> None:
        self._users, self._config, self._directory, self._follow = users_by_seed, config, directory, progress
        self._workers = config.workers or os.cpu_count() or 1
        directory.note_versions(workers=self._workers, threads_per_worker=1)
        self._arms = config.find_arms()
        self._rounds: dict[tuple[int, str], int] = {
            (seed, arm.name): config.rounds + 1 if self._is_finished(seed, arm) else 0
            for seed in users_by_seed
            for arm in self._arms
        }
        self._summary = self._summarize(_QUICK_DRAWS) if self._complete() else None

    def prepare(self) -> None:
        """Prepare all devices of the fleets that are still needed."""
        tasks = []
        for seed, users in self._users.items():
            if self._missing(seed):
                ground = self._ground(seed)
                ground.create(self._config)
                tasks += [
                    PrepareTask(seed=seed, device=device, user=user, config=self._config, folder=ground.folder)
                    for device, user in enumerate(users)
                    if self._is_measured(device, users) and not ground.is_prepared(device)
                ]
        self._left = len(tasks)
        self._show("preparing devices")
        with closing(stream(prepare_device, tasks, workers=self._workers)) as prepared:
            for _ in prepared:
                self._left -= 1
                self._show("preparing devices")

    def play(self) -> None:
        """Play what is missing: a process for each arm of a seed; one that shares and is left alone has all of them."""
        left = [(arm, seed) for arm in self._arms for seed in self._users if not self._is_finished(seed, arm)]
        sharing = [each for each in left if each[0].shares]
        if len(sharing) == 1:
            self._play([each for each in left if each not in sharing], workers=self._workers)
            self._play(sharing, workers=1, workers_each=self._workers)
        else:
            self._play(left, workers=self._workers)

    def _play(self, pieces: Sequence[tuple[SharingArm, int]], *, workers: int, workers_each: int = 1) -> None:
        tasks = [
            ArmTask(
                seed=seed,
                users=tuple(self._users[seed]),
                unseen=self._config.unseen,
                arm=arm,
                config=self._config,
                folder=self._ground(seed).folder,
                run=self._directory.path,
                workers=workers_each,
            )
            for arm, seed in pieces
        ]
        with closing(stream(play_arm, tasks, workers=workers)) as played:
            for result in played:
                if isinstance(result, RoundDone):
                    self._rounds[result.seed, result.arm] = result.round + 1
                    self._show(f"{result.arm}, seed {result.seed}, round {result.round}")
                else:
                    self._directory.append(result)
                    self._renew(result[0].seed, result[0].arm)

    def conclude(self) -> Summary:
        """Write the result, and remove what holds text."""
        summary, records = self._summarize(self._config.bootstrap_draws), self._records(self._arms)
        self._directory.sort()
        final = [record for record in records if record.round == self._config.rounds]
        self._directory.write("users.csv", users_table(final))
        self._directory.write("summary.json", summary.model_dump_json(indent=2) + "\n")
        self._directory.write("report.html", render_report(summary))
        self._directory.discard_work()
        return summary

    def _ground(self, seed: int) -> Ground:
        return Ground(self._directory.work / str(seed))

    def _is_measured(self, device: int, users: Sequence[UserData]) -> bool:
        measured, devices = self._config.measured, len(users) - self._config.unseen
        return measured is None or device < measured or device >= devices

    def _keys(self, seed: int, arm: SharingArm) -> set[Key]:
        users = self._users[seed]
        return {(seed, user.user_id, arm.name) for device, user in enumerate(users) if self._is_measured(device, users)}

    def _is_finished(self, seed: int, arm: SharingArm) -> bool:
        return self._keys(seed, arm) <= self._directory.finished

    def _missing(self, seed: int) -> list[SharingArm]:
        return [arm for arm in self._arms if not self._is_finished(seed, arm)]

    def _complete(self) -> list[SharingArm]:
        return [arm for arm in self._arms if all(self._is_finished(seed, arm) for seed in self._users)]

    def _records(self, arms: Sequence[SharingArm]) -> list[RoundRecord]:
        keys = {key for arm in arms for seed in self._users for key in self._keys(seed, arm)}
        return [record for record in self._directory.records if record.key in keys]

    def _renew(self, seed: int, name: str) -> None:
        """Sum up once more when an arm has been finished on all fleets."""
        if name in {arm.name for arm in self._complete()}:
            self._summary = self._summarize(_QUICK_DRAWS)
            self._show(f"{name} is finished")

    def _summarize(self, draws: int) -> Summary:
        arms = self._complete()
        records = self._records(arms)
        kinds = Counter(turn.kind for users in self._users.values() for user in users for turn in user.stream)

        def of(records: Sequence[RoundRecord], *, unseen: Summary | None = None) -> Summary:
            return summarize(
                records,
                arms=arms,
                model=self._config.model,
                config=self._config.selection() | self._config.identity(),
                stream_kinds=dict(kinds.most_common()),
                draws=draws,
                contrasts=SHARING_CONTRASTS,
                references=("none", "local"),
                unseen=unseen,
            )

        strangers = [record for record in records if record.unseen]
        return of([r for r in records if not r.unseen], unseen=of(strangers) if strangers else None)

    def _show(self, doing: str) -> None:
        if self._follow is None:
            return
        rounds, pieces = self._config.rounds + 1, len(self._rounds)
        devices = sum(
            self._is_measured(device, users) for users in self._users.values() for device in range(len(users))
        )
        self._follow(
            SharingProgress(
                done=devices - self._left + sum(self._rounds.values()),
                total=devices + rounds * pieces,
                doing=doing,
                summary=self._summary,
            )
        )
