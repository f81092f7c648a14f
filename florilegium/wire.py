"""Named tensors in Flower's messages: a few long arrays, since each array of a record is a file of its own.

The key of an array is its table of contents, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from florilegium.errors import InputError
from florilegium.packing import pack, unpack
from florilegium.tensors import Tensors

__all__ = ["from_record", "to_record"]


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return a record of tensors in main memory."""
    return ArrayRecord({json.dumps(contents): Array(values.numpy()) for contents, values in pack(tensors)})


def from_record(record: ArrayRecord) -> Tensors:
    """Return the tensors of a record.

    Raises:
        InputError: `to_record` did not make it.
    """
    try:
        return unpack((json.loads(key), torch.from_numpy(array.numpy())) for key, array in record.items())
    except InputError:
        raise
    except Exception as error:  # bytes of a stranger: NumPy, torch and JSON raise what they like
        raise InputError(f"a record of tensors cannot be read: {type(error).__name__}", "use one version") from None
