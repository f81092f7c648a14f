"""The joint clip: never above the bound, never changed below it, one factor for all tensors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors, joint_norm
from privacy.clipping import clip
from privacy.egress import Refusal, RefusedError

values = st.floats(-1e6, 1e6, width=32)
updates = st.lists(st.lists(values, max_size=5), min_size=1, max_size=4).map(
    lambda rows: {f"t{number}": torch.tensor(row, dtype=torch.float32) for number, row in enumerate(rows)}
)


@given(updates, st.floats(1e-3, 1e3))
def test_no_norm_is_above_the_bound_not_even_by_a_rounding(update: Tensors, clip_norm: float) -> None:
    clipped, norm, was_clipped = clip(update, clip_norm=clip_norm)
    assert joint_norm(clipped) <= clip_norm
    assert norm == joint_norm(update)
    assert was_clipped == (norm > clip_norm)
    if not was_clipped:
        assert all(torch.equal(clipped[key], update[key]) for key in update)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounding_to_a_coarse_type_stays_below_the_bound_and_near_it(dtype: torch.dtype) -> None:
    for seed in range(50):
        update = {"a": torch.randn(7, 11, generator=torch.Generator().manual_seed(seed)).to(dtype)}
        clipped, _, _ = clip(update, clip_norm=0.3)
        assert clipped["a"].dtype == dtype
        assert 0.3 * (1 - 2 * torch.finfo(dtype).eps - 1e-11) <= joint_norm(clipped) <= 0.3


@given(updates, st.floats(1e-3, 1e3))
def test_clipping_twice_is_clipping_once(update: Tensors, clip_norm: float) -> None:
    once, _, _ = clip(update, clip_norm=clip_norm)
    twice, _, again = clip(once, clip_norm=clip_norm)
    assert not again
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_all_tensors_shrink_by_one_factor() -> None:
    """‖(3, 4, 12)‖ = 13, so that C = 6.5 halves every entry, however they lie in tensors."""
    clipped, norm, was_clipped = clip({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0], [12.0]])}, clip_norm=6.5)
    assert (norm, was_clipped) == (13.0, True)
    assert torch.allclose(clipped["a"], torch.tensor([1.5]))
    assert torch.allclose(clipped["b"], torch.tensor([[2.0], [6.0]]))


def test_the_norm_is_summed_in_float64() -> None:
    """One large entry beside a million small ones, which a sum in float32 would lose: 4096² + 10⁶."""
    _, norm, _ = clip({"a": torch.tensor([4096.0]), "b": torch.ones(1_000_000)}, clip_norm=1e6)
    assert norm == pytest.approx(math.sqrt(4096.0**2 + 1e6), rel=1e-12)


def test_zero_and_nothing_stay_as_they_are() -> None:
    assert clip({}, clip_norm=1.0) == ({}, 0.0, False)
    clipped, norm, was_clipped = clip({"a": torch.zeros(3)}, clip_norm=1e-9)
    assert (clipped["a"].tolist(), norm, was_clipped) == ([0.0, 0.0, 0.0], 0.0, False)


@pytest.mark.parametrize("clip_norm", [0.5, 100.0])
def test_the_result_is_new_memory_without_gradient_and_the_update_is_unchanged(clip_norm: float) -> None:
    update = {"a": torch.ones(4, requires_grad=True)}
    clipped, _, _ = clip(update, clip_norm=clip_norm)
    assert not clipped["a"].requires_grad
    clipped["a"].zero_()
    assert update["a"].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "broken",
    [
        torch.tensor([1.0, math.nan]),
        torch.tensor([math.inf]),
        torch.tensor([1e200], dtype=torch.float64),
        torch.full((2,), 1.2e154, dtype=torch.float64),
    ],
    ids=["nan", "inf", "overflow of a square", "overflow of the sum"],
)
def test_what_has_no_finite_norm_is_refused(broken: torch.Tensor) -> None:
    with pytest.raises(RefusedError, match="NaN or an infinity") as caught:
        clip({"a": broken, "b": broken}, clip_norm=1.0)
    assert caught.value.refusal is Refusal.NOT_FINITE


def test_integers_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"'a' is torch\.int8") as caught:
        clip({"a": torch.ones(2, dtype=torch.int8)}, clip_norm=1.0)
    assert caught.value.refusal is Refusal.WRONG_TYPE


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_bounds_nothing_is_refused(clip_norm: float) -> None:
    with pytest.raises(ConfigError, match="clip_norm must be finite and > 0"):
        clip({"a": torch.ones(2)}, clip_norm=clip_norm)
