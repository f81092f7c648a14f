"""TensorBoard: how the arms come along, while they are played.

    tensorboard/fedit/seed-0/     a run of TensorBoard's: one arm on one seed's fleet; a step is a round

    rouge1/mean, rouge1/worst_tenth          over the devices that take part; and so for each metric
    answers_with/none, /shared, /personal    the share of them that chose so
    network/uplink_bytes                     sent by one of them so far, in the mean
    unseen/rouge1/mean, …                    scores and choices of devices that take no part

What is written is a function of the arm's records, numbers only. An arm that was stopped begins a file with all its
rounds, after a mark that has TensorBoard forget those of before. The file of before stays until the arm is finished: a
TensorBoard that has it open would not find the new one otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, get_args

import numpy as np

from client.durable import make_directory, storage_errors
from client.serving import Way
from simulation.records import METRICS, RoundRecord
from simulation.statistics import worst_tenth_mean

__all__ = ["RoundWriter", "scalars"]


class RoundWriter:
    """One arm's event file on one seed's fleet; a context manager, which leaves that one file when all went well.

    Args:
        folder: of the arm and the seed.

    Raises:
        StorageError: the disk is full or refuses.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # half a second, which workers that write none need not take

        self._folder = folder
        with storage_errors(folder):
            make_directory(folder)
            self._outdated = list(folder.iterdir())
            self._writer = SummaryWriter(str(folder), purge_step=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with storage_errors(self._folder):
            self._writer.close()
            for path in self._outdated if kind is None else ():
                path.unlink()

    def add(self, records: Sequence[RoundRecord]) -> None:
        """Add a measured round; a reader sees it when this returns.

        Args:
            records: of all measured devices, after the same round.

        Raises:
            StorageError: the disk is full or refuses.
        """
        with storage_errors(self._folder):
            for tag, value in scalars(records).items():
                self._writer.add_scalar(tag, value, records[0].round)
            self._writer.flush()


def scalars(records: Sequence[RoundRecord]) -> dict[str, float]:
    """Return what a round is shown by, by tag."""
    unseen = [record for record in records if record.unseen]
    takes_part = [record for record in records if not record.unseen]
    uplink = float(np.mean([record.uplink_bytes for record in takes_part]))
    strangers = {f"unseen/{tag}": value for tag, value in _of(unseen).items()} if unseen else {}
    return _of(takes_part) | {"network/uplink_bytes": uplink} | strangers


def _of(records: Sequence[RoundRecord]) -> dict[str, float]:
    found = {}
    for name, metric in METRICS.items():
        values = np.array([record.scores[name] for record in records])
        found[f"{name}/mean"] = float(values.mean())
        found[f"{name}/worst_tenth"] = worst_tenth_mean(values, higher_is_better=metric.higher_is_better)
    ways = [record.way for record in records]
    return found | {f"answers_with/{way}": ways.count(way) / len(ways) for way in get_args(Way)}
