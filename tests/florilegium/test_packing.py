"""Packing and the records of messages: what comes back, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st

from florilegium.errors import InputError
from florilegium.packing import Contents, pack, unpack
from florilegium.tensors import Tensors
from florilegium.wire import from_record, to_record

SHAPES = st.lists(st.integers(0, 4), max_size=3)
TYPES = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int8, torch.int64])


@st.composite
def tensors(draw: st.DrawFn) -> Tensors:
    """Draw named tensors of mixed types and shapes, empty ones and single numbers among them."""
    keys = draw(st.lists(st.text(max_size=5), unique=True, max_size=6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return {key: torch.randint(-9, 9, draw(SHAPES), generator=generator).to(draw(TYPES)) for key in keys}


def same(one: Tensors, other: Tensors) -> bool:
    """Whether keys, their order, types, shapes and values are the same."""
    return list(one) == list(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        for a, b in zip(one.values(), other.values(), strict=True)
    )


@given(tensors())
def test_what_is_packed_comes_back(given: Tensors) -> None:
    assert same(unpack(pack(given)), given)


@given(tensors())
def test_what_a_message_carries_comes_back(given: Tensors) -> None:
    assert same(from_record(to_record(given)), given)


def test_tensors_of_one_type_become_one() -> None:
    one, two = torch.ones(2, 3), torch.zeros(4)
    assert len(pack({"a": one, "b": two, "c": one})) == 1
    assert len(to_record({"a": one, "b": two, "c": one.int()})) == 2


def test_what_is_packed_shares_no_memory() -> None:
    original = torch.zeros(3)
    ((_, values),) = pack({"a": original})
    values.fill_(1.0)
    assert not original.any()


def test_a_tensor_that_is_no_contiguous_piece_is_packed() -> None:
    original = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(unpack(pack({"a": original}))["a"], original)


@pytest.mark.parametrize(
    "contents", [{"a": [4]}, {"a": [2]}, {}, {"a": [-1, -3]}, {"a": [3], "b": [1, 0, -1]}, {"a": [3], "b": [1]}]
)
def test_contents_that_do_not_fit_are_refused(contents: Contents) -> None:
    with pytest.raises(InputError, match="does not fit"):
        unpack([(contents, torch.zeros(3))])


def test_a_tensor_that_comes_twice_is_refused() -> None:
    with pytest.raises(InputError, match="does not fit"):
        unpack([({"a": [1]}, torch.zeros(1)), ({"a": [1]}, torch.zeros(1, dtype=torch.int8))])


@pytest.mark.parametrize(
    "key", ["a secret", "", "[]", "3", '{"a": 3}', '{"a": ["x"]}', '{"a": [3.0]}', '{"a": [1e400]}', '{"a": null}']
)
def test_a_record_of_a_stranger_is_refused_without_its_text(key: str) -> None:
    with pytest.raises(InputError) as caught:
        from_record(ArrayRecord({key: Array(np.zeros(3, dtype=np.float32))}))
    assert "secret" not in str(caught.value)


def test_bytes_that_are_no_array_are_refused() -> None:
    array = Array("float32", (3,), "numpy.ndarray", b"not an array")
    with pytest.raises(InputError, match="cannot be read"):
        from_record(ArrayRecord({json.dumps({"a": [3]}): array}))
