"""Read a Hub dataset, or one in a folder, whose rows a `flwr-datasets` partitioner shares out among users."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from florilegium.errors import InputError
from simulation.readers.assembly import Assembly, Exchange, assemble
from simulation.readers.records import FieldError
from simulation.readers.rows import Columns, exchange_of
from simulation.users import UserData

if TYPE_CHECKING:
    from datasets import Dataset
    from flwr_datasets.partitioner import Partitioner

__all__ = ["read_hub"]


def _load(name: str, split: str) -> Dataset:
    # Lazily: nothing else in the project needs the library, and importing it takes seconds.
    import datasets

    try:
        loaded = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name, split=split)
    except (OSError, ValueError, ConnectionError) as error:
        raise InputError(f"dataset {name!r} cannot be loaded ({type(error).__name__})", "check its name") from error
    if not isinstance(loaded, datasets.Dataset):
        if not isinstance(loaded, datasets.DatasetDict) or split not in loaded:
            raise InputError(f"dataset {name!r} has no split {split!r}", "name one of its splits")
        loaded = loaded[split]
    return loaded


def _exchanges(partition: Dataset, user: str, columns: Columns) -> list[Exchange]:
    exchanges = []
    for number, row in enumerate(partition):
        try:
            exchanges.append(exchange_of(row, user, "row", columns))
        except FieldError as problem:
            raise InputError(f"row {number} of {user}: {problem}", "name the dataset's columns") from None
    return exchanges


def read_hub(
    dataset: str | Dataset,
    *,
    partitioner: Partitioner,
    split: str = "train",
    columns: Columns | None = None,
    assembly: Assembly | None = None,
) -> list[UserData]:
    """Read a dataset; every partition is a user.

    Args:
        dataset: a Hub name, a folder written by `Dataset.save_to_disk`, or a dataset in memory.
        partitioner: shares the rows out; one without a dataset yet.
        split: which split of the dataset.
        columns: the names of its columns.
        assembly: how users are put together.

    Raises:
        InputError: the dataset cannot be loaded, or a row is malformed.
    """
    partitioner.dataset = _load(dataset, split) if isinstance(dataset, str) else dataset
    exchanges: list[Exchange] = []
    for number in range(partitioner.num_partitions):
        partition = partitioner.load_partition(number)
        exchanges += _exchanges(partition, f"partition-{number:04d}", columns or Columns())
    return assemble(exchanges, assembly or Assembly())
