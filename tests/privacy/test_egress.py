"""What passes the door, and what each broken rule is called."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from florilegium.errors import (
    BusyError,
    ConfigError,
    FlorilegiumError,
    InputError,
    MemoryBudgetError,
    ModelError,
    PrivacyError,
    StorageError,
)
from florilegium.tensors import Tensors
from privacy.egress import Bounds, Declared, ErrorCode, Refusal, RefusedError, check_in, check_out, code_of
from privacy.ledger import PrivacyBudgetError, RoundChargedError

SECRET = "my key is under the mat"
DECLARED = Declared(
    tensors={"a": ((2, 3), torch.float32), "b": ((4,), torch.int8), "c": ((), torch.bfloat16)},
    metrics={"loss": Bounds(lower=0.0, upper=10.0, step=0.5), "gain": Bounds(lower=-1.0, upper=1.0, step=0.25)},
)
BYTES = 2 * 3 * 4 + 4 + 2

Check = Callable[..., tuple[Tensors, dict[str, float]]]


def make_reply() -> Tensors:
    return {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.tensor([1, -2, 3, -4], dtype=torch.int8),
        "c": torch.tensor(0.5, dtype=torch.bfloat16),
    }


@pytest.fixture(params=[check_out, check_in], ids=["out", "in"])
def check(request: pytest.FixtureRequest) -> Check:
    chosen: Check = request.param
    return chosen


def refusal_of(
    check: Check, tensors: Mapping[Any, Any], metrics: Mapping[Any, Any] | None = None, max_bytes: int = BYTES
) -> Refusal:
    """Return why a reply is refused, having looked for private text in the message."""
    with pytest.raises(RefusedError) as caught:
        check(tensors, metrics or {}, DECLARED, max_bytes=max_bytes)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value.refusal


def test_a_declared_reply_passes_with_its_values(check: Check) -> None:
    tensors, metrics = check(make_reply(), {"loss": 2.5}, DECLARED, max_bytes=BYTES)
    for key, tensor in make_reply().items():
        assert tensors[key].dtype == tensor.dtype
        assert torch.equal(tensors[key], tensor)
    assert metrics == {"loss": 2.5}


def test_nothing_of_the_original_memory_passes(check: Check) -> None:
    store = torch.full((1000,), 7.0)
    reply = make_reply() | {"a": store[10:40:5].reshape(3, 2).T.requires_grad_()}
    tensors, _ = check(reply, {}, DECLARED, max_bytes=BYTES)
    for key, tensor in tensors.items():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        assert tensor.untyped_storage().data_ptr() != reply[key].untyped_storage().data_ptr()
        assert type(tensor) is Tensor
        assert tensor.is_contiguous()
        assert tensor.storage_offset() == 0
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
    assert torch.equal(tensors["a"], torch.full((2, 3), 7.0))


def test_a_parameter_passes_as_a_plain_tensor_without_its_attributes(check: Check) -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    parameter.note = SECRET  # type: ignore[attr-defined]
    tensors, _ = check(make_reply() | {"a": parameter}, {}, DECLARED, max_bytes=BYTES)
    assert type(tensors["a"]) is Tensor
    assert not hasattr(tensors["a"], "note")


def test_the_order_of_keys_carries_nothing(check: Check) -> None:
    reply = dict(reversed(make_reply().items()))
    metrics = {"gain": 0.5, "loss": 1.0}
    tensors, numbers = check(reply, metrics, DECLARED, max_bytes=BYTES)
    assert list(tensors) == ["a", "b", "c"]
    assert list(numbers) == ["loss", "gain"]


def test_a_subclass_of_a_key_passes_as_the_declared_key(check: Check) -> None:
    class Marked(str):
        __slots__ = ("note",)

    marked = Marked("a")
    marked.note = SECRET  # type: ignore[attr-defined]
    reply = make_reply()
    reply = {marked: reply.pop("a"), **reply}
    tensors, _ = check(reply, {}, DECLARED, max_bytes=BYTES)
    assert all(type(key) is str for key in tensors)


@pytest.mark.parametrize("key", ["a", "b", "c"])
def test_each_missing_key_is_refused(check: Check, key: str) -> None:
    reply = make_reply()
    del reply[key]
    assert refusal_of(check, reply) is Refusal.MISSING_KEY


@pytest.mark.parametrize("key", [SECRET, "A", "", 7, None, b"a"])
def test_an_unknown_key_is_refused_and_not_quoted(check: Check, key: object) -> None:
    assert refusal_of(check, {**make_reply(), key: torch.ones(1)}) is Refusal.UNKNOWN_KEY


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 1), (2, 0), ()])
def test_each_other_shape_is_refused(check: Check, shape: tuple[int, ...]) -> None:
    assert refusal_of(check, make_reply() | {"a": torch.ones(shape)}) is Refusal.WRONG_SHAPE


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2, 3, dtype=torch.float64),
        torch.ones(2, 3, dtype=torch.float16),
        torch.ones(2, 3, dtype=torch.int32),
        torch.ones(2, 3, dtype=torch.complex64),
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, 3, device="meta"),
        np.ones((2, 3), dtype=np.float32),
        [[1.0] * 3] * 2,
        SECRET,
        None,
    ],
    ids=["double", "half", "int", "complex", "sparse", "meta", "numpy", "list", "text", "nothing"],
)
def test_each_other_type_is_refused(check: Check, value: object) -> None:
    assert refusal_of(check, {**make_reply(), "a": value}) is Refusal.WRONG_TYPE


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["a", "c"])
def test_one_value_that_is_not_finite_is_enough(check: Check, key: str, value: float) -> None:
    reply = make_reply()
    reply[key].view(-1)[-1] = value
    assert refusal_of(check, reply) is Refusal.NOT_FINITE


def test_the_bound_on_bytes_is_exact(check: Check) -> None:
    check(make_reply(), {}, DECLARED, max_bytes=BYTES)
    assert refusal_of(check, make_reply(), max_bytes=BYTES - 1) is Refusal.TOO_LARGE
    with pytest.raises(ConfigError, match="max_bytes must be > 0, got 0"):
        check(make_reply(), {}, DECLARED, max_bytes=0)


def test_a_tensor_of_a_huge_shape_costs_no_memory(check: Check) -> None:
    huge = torch.ones(1).expand(1 << 40)
    assert refusal_of(check, make_reply() | {"a": huge}, max_bytes=1 << 30) is Refusal.TOO_LARGE


class Loud(float):
    note = SECRET


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        [1.0],
        (1.0,),
        {"x": 1.0},
        None,
        True,
        1,
        np.float64(1.0),
        Loud(1.0),
        torch.tensor(1.0),
        math.nan,
        math.inf,
        -math.inf,
    ],
    ids=repr,
)
def test_a_metric_is_a_plain_finite_float(check: Check, value: object) -> None:
    assert refusal_of(check, make_reply(), {"loss": value}) is Refusal.BAD_METRIC


@pytest.mark.parametrize("name", [SECRET, "losS", "", 3])
def test_an_undeclared_metric_is_refused_and_not_quoted(check: Check, name: object) -> None:
    assert refusal_of(check, make_reply(), {"loss": 1.0, name: 1.0}) is Refusal.BAD_METRIC


def test_metrics_are_clamped_and_quantised(check: Check) -> None:
    """Steps of 0.5 from 0 to 10: 3.3 is nearest to 3.5; steps of 0.25 from −1: −0.4 is nearest to −0.5."""
    _, released = check(make_reply(), {"loss": 3.3, "gain": -0.4}, DECLARED, max_bytes=BYTES)
    assert released == {"loss": 3.5, "gain": -0.5}
    for low, high in ((-5.0, 99.0), (-1e300, 1e300)):
        assert check(make_reply(), {"loss": low}, DECLARED, max_bytes=BYTES)[1] == {"loss": 0.0}
        assert check(make_reply(), {"loss": high}, DECLARED, max_bytes=BYTES)[1] == {"loss": 10.0}


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(1, 1 << 16), st.floats(allow_nan=False))
def test_a_quantised_metric_is_one_of_few_values_near_the_metric(
    lower: float, width: float, steps: int, value: float
) -> None:
    upper = lower + width
    bounds = Bounds(lower=lower, upper=upper, step=min((upper - lower) / steps * (1 + 1e-12), upper - lower))
    released = bounds.quantize(value)
    assert lower <= released <= upper
    tolerance = 1e-9 * max(abs(lower), abs(upper))
    index = round((released - lower) / bounds.step)
    assert 0 <= index <= steps
    assert math.isclose(released, min(lower + index * bounds.step, upper), abs_tol=tolerance)
    if lower <= value <= upper:
        assert abs(released - value) <= bounds.step / 2 + tolerance


@given(st.integers(-50, 50), st.integers(1, 400), st.floats(-100, 100))
def test_quantising_twice_is_quantising_once(lower: int, steps: int, value: float) -> None:
    bounds = Bounds(lower=float(lower), upper=lower + steps / 4, step=0.25)
    assert bounds.quantize(bounds.quantize(value)) == bounds.quantize(value)


@pytest.mark.parametrize(
    ("lower", "upper", "step"),
    [
        (0.0, 0.0, 1.0),
        (1.0, 0.0, 0.1),
        (0.0, math.inf, 1.0),
        (-math.inf, 0.0, 1.0),
        (-1e308, 1e308, 1.0),
        (math.nan, 1.0, 0.1),
        (0.0, 1.0, 0.0),
        (0.0, 1.0, -0.1),
        (0.0, 1.0, 2.0),
        (0.0, 1.0, math.nan),
        (0.0, 1.0, 1e-5),
    ],
)
def test_bounds_that_bound_nothing_are_refused(lower: float, upper: float, step: float) -> None:
    with pytest.raises(ConfigError, match="a metric's"):
        Bounds(lower=lower, upper=upper, step=step)


def test_a_declaration_is_of_types_that_travel_and_does_not_change() -> None:
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(ConfigError, match="'a' is declared as"):
            Declared(tensors={"a": ((1,), dtype)})
    with pytest.raises(ConfigError, match="sizes must be >= 0"):
        Declared(tensors={"a": ((-1,), torch.float32)})
    shapes = {"a": ((1,), torch.float32)}
    declared = Declared(tensors=shapes)
    shapes["more"] = ((9,), torch.float32)
    assert list(declared.tensors) == ["a"]
    with pytest.raises(TypeError):
        declared.tensors["more"] = ((9,), torch.float32)  # type: ignore[index]


@given(st.sets(st.sampled_from(["a", "b", "c"])), st.booleans())
def test_a_reply_passes_iff_it_has_exactly_the_declared_keys(keys: set[str], stranger: bool) -> None:
    reply = {key: tensor for key, tensor in make_reply().items() if key in keys}
    if stranger:
        reply["d"] = torch.ones(1)
    if keys == {"a", "b", "c"} and not stranger:
        assert check_in(reply, {}, DECLARED, max_bytes=BYTES)[0].keys() == keys
    else:
        with pytest.raises(RefusedError):
            check_in(reply, {}, DECLARED, max_bytes=BYTES)


def test_a_refusal_survives_a_process_boundary() -> None:
    error = RefusedError(Refusal.TOO_LARGE, "9 bytes", "send fewer")
    loaded = pickle.loads(pickle.dumps(error))
    assert (type(loaded), loaded.refusal, str(loaded)) == (RefusedError, Refusal.TOO_LARGE, "9 bytes; send fewer")


@pytest.mark.parametrize(
    ("exception", "code"),
    [
        (PrivacyBudgetError(SECRET), ErrorCode.BUDGET_SPENT),
        (RoundChargedError(SECRET), ErrorCode.REFUSED_BY_POLICY),
        (PrivacyError(SECRET), ErrorCode.REFUSED_BY_POLICY),
        (RefusedError(Refusal.UNKNOWN_KEY, SECRET), ErrorCode.REFUSED_BY_POLICY),
        (RefusedError(Refusal.NOT_FINITE, SECRET), ErrorCode.NOT_FINITE),
        (BusyError(SECRET), ErrorCode.BUSY),
        (StorageError(SECRET), ErrorCode.STORAGE),
        (OSError(28, SECRET), ErrorCode.STORAGE),
        (MemoryBudgetError(SECRET), ErrorCode.OUT_OF_MEMORY),
        (MemoryError(SECRET), ErrorCode.OUT_OF_MEMORY),
        (torch.OutOfMemoryError(SECRET), ErrorCode.OUT_OF_MEMORY),
        (ConfigError(SECRET), ErrorCode.BAD_REQUEST),
        (InputError(SECRET), ErrorCode.BAD_REQUEST),
        (ModelError(SECRET), ErrorCode.INTERNAL),
        (FlorilegiumError(SECRET), ErrorCode.INTERNAL),
        (ValueError("not finite: out of memory, budget"), ErrorCode.INTERNAL),
        (KeyboardInterrupt(SECRET), ErrorCode.INTERNAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.name,
)
def test_an_exception_becomes_a_code_by_its_class(exception: BaseException, code: ErrorCode) -> None:
    assert code_of(exception) is code
    exception.args = ("budget storage memory",)
    assert code_of(exception) is code, "the text is not looked at"


def test_the_numbers_of_codes_are_part_of_the_protocol() -> None:
    names = (
        "NO_DATA STALE_STATE BAD_REQUEST OUT_OF_MEMORY STORAGE NOT_FINITE REFUSED_BY_POLICY BUDGET_SPENT INTERNAL BUSY"
    )
    assert [(code.name, int(code)) for code in ErrorCode] == [(n, i) for i, n in enumerate(names.split(), start=1)]
