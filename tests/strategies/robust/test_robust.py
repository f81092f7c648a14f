"""The contract that every robust rule keeps, and what each one promises beyond it."""

from __future__ import annotations

import importlib
import math
import pkgutil
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from florilegium.errors import ConfigError, InputError
from florilegium.tensors import Tensors, joint_norm, mean
from strategies import robust
from strategies.robust import ROBUST_RULES, RobustRule
from strategies.robust.median import Median
from strategies.robust.multi_krum import MultiKrum
from strategies.robust.norm_bound import NormBound
from strategies.robust.trimmed_mean import TrimmedMean

SHARED = ("rule",)
NAMES = st.sampled_from(sorted(ROBUST_RULES))
COUNTS, SEEDS = st.integers(5, 11), st.integers(0, 2**31)
SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=3)
VALUES = st.floats(-1e30, 1e30)

Shapes = Sequence[tuple[int, ...]]


def draw(count: int, shapes: Shapes = ((2, 3), (4,)), seed: int = 0) -> list[Tensors]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {f"layer{number}": torch.randn(shape, generator=generator) for number, shape in enumerate(shapes)}
        for _ in range(count)
    ]


def flat(update: Mapping[str, Tensor]) -> NDArray[np.float64]:
    return np.concatenate([update[key].double().numpy().ravel() for key in sorted(update)])


def rows(updates: Sequence[Mapping[str, Tensor]]) -> NDArray[np.float64]:
    return np.stack([flat(update) for update in updates])


def ones(updates: Sequence[object]) -> list[float]:
    return [1.0] * len(updates)


@pytest.fixture(params=ROBUST_RULES)
def rule(request: pytest.FixtureRequest) -> RobustRule:
    return ROBUST_RULES[request.param]()


def test_a_rule_is_one_file_and_one_line() -> None:
    modules = [
        importlib.import_module(f"strategies.robust.{module.name}")
        for module in pkgutil.iter_modules(robust.__path__)
        if module.name not in SHARED
    ]
    classes = [getattr(module, name) for module in modules for name in module.__all__]
    assert len(classes) == len(modules) == len(ROBUST_RULES)
    assert all(each in ROBUST_RULES.values() for each in classes)


@settings(max_examples=40, deadline=None)
@given(NAMES, COUNTS, SHAPES, SEEDS)
def test_the_order_of_devices_changes_nothing(name: str, count: int, shapes: Shapes, seed: int) -> None:
    updates = draw(count, shapes, seed)
    weights = [float(number) for number in range(1, count + 1)]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    merged = ROBUST_RULES[name]()(updates, weights)
    other = ROBUST_RULES[name]()([updates[i] for i in order], [weights[i] for i in order])
    np.testing.assert_allclose(flat(merged), flat(other), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(NAMES, COUNTS, SHAPES, SEEDS)
def test_equal_updates_are_returned_unchanged(name: str, count: int, shapes: Shapes, seed: int) -> None:
    update = draw(1, shapes, seed)[0]
    merged = ROBUST_RULES[name]()([update] * count, [1.0] * count)
    assert {key: (each.shape, each.dtype) for key, each in merged.items()} == {
        key: (each.shape, each.dtype) for key, each in update.items()
    }
    np.testing.assert_allclose(flat(merged), flat(update), rtol=1e-6)


def test_a_rule_touches_no_update(rule: RobustRule) -> None:
    updates = draw(7)
    merged = rule(updates, ones(updates))
    for tensor in merged.values():
        tensor.zero_()
    np.testing.assert_array_equal(rows(updates), rows(draw(7)))


def test_weights_count_where_a_rule_says_so_and_nowhere_else(rule: RobustRule) -> None:
    updates = draw(7)
    plain, weighted = rule(updates, ones(updates)), rule(updates, [100.0, 1, 1, 1, 1, 1, 0])
    assert bool(np.any(flat(plain) != flat(weighted))) is rule.uses_weights


def test_fewer_updates_than_the_minimum_are_refused_and_the_minimum_is_enough(rule: RobustRule) -> None:
    updates = draw(rule.minimum)
    assert rule(updates, ones(updates)).keys() == updates[0].keys()
    with pytest.raises(InputError, match=f"{rule.minimum - 1} updates came .* at least {rule.minimum}"):
        rule(updates[1:], ones(updates[1:]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_refused(rule: RobustRule, value: float) -> None:
    updates = draw(7)
    updates[3]["layer1"][0] = value
    with pytest.raises(InputError, match="update 3 of 7 is not finite"):
        rule(updates, ones(updates))


def test_updates_of_other_keys_or_shapes_are_refused(rule: RobustRule) -> None:
    for wrong in ({"layer0": torch.zeros(2, 3)}, {"layer0": torch.zeros(1, 3), "layer1": torch.zeros(4)}):
        updates = [*draw(6), wrong]
        with pytest.raises(InputError, match="tensor 'layer"):
            rule(updates, ones(updates))


@pytest.mark.parametrize("weights", [[1.0] * 6, [1.0] * 6 + [-1.0], [1.0] * 6 + [math.nan], [0.0] * 7])
def test_weights_that_are_none_are_refused(rule: RobustRule, weights: list[float]) -> None:
    with pytest.raises(InputError, match="weight"):
        rule(draw(7), weights)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["median", "trimmed_mean"]), COUNTS, SHAPES, SEEDS, VALUES)
def test_one_outlier_cannot_move_a_coordinate_out_of_the_range_of_the_honest(
    name: str, count: int, shapes: Shapes, seed: int, value: float
) -> None:
    *honest, last = draw(count, shapes, seed)
    outlier = {key: torch.full_like(tensor, value) for key, tensor in last.items()}
    merged = flat(ROBUST_RULES[name]()([*honest, outlier], [1.0] * count))
    assert np.all(rows(honest).min(axis=0) <= merged)
    assert np.all(merged <= rows(honest).max(axis=0))


def test_the_plain_mean_would_be_moved_by_that_outlier() -> None:
    *honest, last = draw(7)
    outlier = {key: torch.full_like(tensor, 1e6) for key, tensor in last.items()}
    merged = flat(mean((1.0, update) for update in [*honest, outlier]))
    assert np.all(merged > rows(honest).max(axis=0))


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 11), SHAPES, SEEDS)
def test_the_median_is_numpys(count: int, shapes: Shapes, seed: int) -> None:
    updates = draw(count, shapes, seed)
    np.testing.assert_allclose(
        flat(Median()(updates, ones(updates))), np.median(rows(updates), axis=0), rtol=1e-6, atol=1e-7
    )


def test_the_median_of_values_near_the_largest_float_is_finite() -> None:
    updates = [{"w": torch.tensor([value])} for value in (3e38, 3e38, 3.2e38, 3.3e38)]
    assert float(Median()(updates, ones(updates))["w"]) == pytest.approx(3.1e38)


@settings(max_examples=40, deadline=None)
@given(COUNTS, SHAPES, SEEDS)
def test_the_trimmed_mean_is_the_mean_of_the_middle_of_a_sorted_column(count: int, shapes: Shapes, seed: int) -> None:
    updates = draw(count, shapes, seed)
    trimmed = count // 5
    expected = np.sort(rows(updates), axis=0)[trimmed : count - trimmed].mean(axis=0)
    np.testing.assert_allclose(flat(TrimmedMean(share=0.2)(updates, ones(updates))), expected, rtol=1e-5, atol=1e-6)


def test_the_share_is_meant_exactly_and_never_trims_all() -> None:
    """⌊0.29 · 100⌋ is 28 in floating point; a share just below a half must leave something of an even number."""
    column = [{"w": torch.tensor([float(number)])} for number in range(71)] + [{"w": torch.tensor([1e9])}] * 29
    assert float(TrimmedMean(share=0.29)(column, ones(column))["w"]) == pytest.approx(np.arange(29, 71).mean())
    four = [{"w": torch.tensor([value])} for value in (0.0, 1.0, 3.0, 9.0)]
    assert float(TrimmedMean(share=0.4999999999)(four, ones(four))["w"]) == 2.0
    assert TrimmedMean(share=0.1).minimum == 10
    assert TrimmedMean(share=0.2).minimum == 5
    assert TrimmedMean(share=0.45).minimum == 3


def naive_krum(updates: NDArray[np.float64], byzantine: int) -> list[int]:
    kept = len(updates) - byzantine - 2
    scores = []
    for one in range(len(updates)):
        distances = [
            float(((updates[one] - updates[other]) ** 2).sum()) for other in range(len(updates)) if other != one
        ]
        scores.append(sum(sorted(distances)[:kept]))
    return [number for number, score in enumerate(scores) if score <= sorted(scores)[kept - 1]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2), st.integers(0, 4), SHAPES, SEEDS)
def test_multi_krum_averages_the_choice_of_a_naive_loop(byzantine: int, more: int, shapes: Shapes, seed: int) -> None:
    updates = draw(2 * byzantine + 3 + more, [*shapes, (7,)], seed)
    expected = rows(updates)[naive_krum(rows(updates), byzantine)].mean(axis=0)
    merged = MultiKrum(byzantine=byzantine)(updates, ones(updates))
    np.testing.assert_allclose(flat(merged), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("byzantine", [1, 2, 3])
def test_multi_krum_chooses_from_the_honest_cluster_even_against_colluding_devices(byzantine: int) -> None:
    honest = draw(byzantine + 3, seed=5)
    hostile = [{key: torch.full_like(tensor, 50.0) for key, tensor in honest[0].items()}] * byzantine
    merged = flat(MultiKrum(byzantine=byzantine)([*hostile, *honest], [1.0] * (2 * byzantine + 3)))
    assert np.all(np.abs(merged) <= np.abs(rows(honest)).max())


def test_multi_krum_tells_updates_apart_that_nearly_agree() -> None:
    """By a matrix product their distances are lost: 1e9² has no place for a difference of 1."""
    values = [1e9 + offset for offset in (0, 1, 3, 90)] + [1e30]
    updates = [{"w": torch.tensor([value], dtype=torch.float64)} for value in values]
    # The 5 − 1 − 2 = 2 nearest of 0, 1, 3 are at squared distances 1 + 9, 1 + 4, 4 + 9: those of 0 and 1 are least.
    assert float(MultiKrum(byzantine=1)(updates, ones(updates))["w"]) == 1e9 + 0.5


def test_multi_krum_keeps_all_that_tie_so_that_no_order_decides() -> None:
    values = (-1.0, 0.0, 1.0, 100.0, -100.0)
    for order in ((0, 1, 2, 3, 4), (4, 2, 1, 0, 3), (3, 0, 1, 4, 2)):
        updates = [{"w": torch.tensor([values[i]])} for i in order]
        # Scores of −1, 0, 1 are 1 + 4, 1 + 1, 1 + 4: the second place is shared.
        assert float(MultiKrum(byzantine=1)(updates, ones(updates))["w"]) == 0.0


@settings(max_examples=40, deadline=None)
@given(COUNTS, SHAPES, SEEDS, st.one_of(st.none(), st.floats(0.01, 10)), st.floats(0.1, 3))
def test_norm_bound_is_the_mean_of_scaled_rows(
    count: int, shapes: Shapes, seed: int, bound: float | None, multiple: float
) -> None:
    updates, weights = draw(count, shapes, seed), [float(number + 1) for number in range(count)]
    table = rows(updates)
    norms = np.linalg.norm(table, axis=1)
    limit = multiple * statistics.median(norms.tolist()) if bound is None else bound
    expected = np.average(table * np.minimum(1, limit / norms)[:, None], axis=0, weights=weights)
    merged = NormBound(bound=bound, multiple=multiple)(updates, weights)
    np.testing.assert_allclose(flat(merged), expected, rtol=1e-4, atol=1e-6)
    assert joint_norm(merged) <= limit * (1 + 1e-5)


def test_norm_bound_limits_what_one_device_moves_to_the_bound_times_its_weight() -> None:
    *honest, last = draw(8)
    results = [
        flat(NormBound(bound=2.0)([*honest, {key: tensor * factor for key, tensor in last.items()}], [1.0] * 8))
        for factor in (0.0, 1e30)
    ]
    assert float(np.linalg.norm(results[1] - results[0])) == pytest.approx(2.0 / 8, rel=1e-5)


def test_updates_of_zero_have_no_norm_to_divide_by() -> None:
    updates = [{"w": torch.zeros(3)}] * 3
    assert not bool(NormBound()(updates, ones(updates))["w"].any())
    assert not bool(NormBound(bound=1.0)(updates, ones(updates))["w"].any())


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (TrimmedMean, "share", 0.0),
        (TrimmedMean, "share", 0.5),
        (TrimmedMean, "share", math.nan),
        (MultiKrum, "byzantine", -1),
        (NormBound, "bound", 0.0),
        (NormBound, "multiple", math.inf),
    ],
)
def test_a_setting_out_of_its_range_is_refused(kind: type, setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{setting} must be .* got {value}"):
        kind(**{setting: value})
