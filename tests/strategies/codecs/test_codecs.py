"""The contract that every codec keeps, and what each one promises beyond it."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from florilegium.errors import ConfigError, InputError
from florilegium.tensors import Tensors, add, joint_norm, scale, subtract, zeros_like
from privacy.egress import Declared, RefusedError, check_in
from strategies import codecs
from strategies.codecs import CODECS, Codec, encode_with_feedback, payload_bytes, shapes_of
from strategies.codecs.int8 import Int8
from strategies.codecs.sketch import Sketch, splitmix64
from strategies.codecs.topk import TopK

SHARED = ("codec",)
A, B = "layer.q_proj.lora_A.weight", "layer.q_proj.lora_B.weight"
LINEAR = [name for name, kind in CODECS.items() if kind().is_linear]
SHAPES = st.lists(st.lists(st.integers(1, 6), max_size=3).map(tuple), min_size=1, max_size=3)
SEEDS = st.integers(0, 2**31)

Shapes = Sequence[tuple[int, ...]]
Rounding = Literal["nearest", "stochastic"]


def draw(seed: int, shapes: Mapping[str, tuple[int, ...]] | None = None, size: float = 1e-2) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    given_shapes = {A: (4, 32), B: (24, 4)} if shapes is None else shapes
    return {key: torch.randn(shape, generator=generator) * size for key, shape in given_shapes.items()}


def named(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {f"layer{number}": shape for number, shape in enumerate(shapes)}


def randomness(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def agreed(codec: Codec, update: Tensors, seed: int = 0, change: Tensors | None = None) -> Tensors:
    return codec.agree(shapes_of(update), seed=seed, change=change)


def through(codec: Codec, update: Tensors, agreement: Tensors) -> Tensors:
    payload = codec.encode(update, agreement=agreement, generator=randomness())
    return codec.decode(payload, agreement=agreement, shapes=shapes_of(update))


def assert_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], *, atol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key], rtol=1e-5 if atol else 0.0, atol=atol)


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]()


@pytest.fixture(params=LINEAR)
def linear(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]()


def test_a_codec_is_one_file_and_one_line() -> None:
    modules = [
        importlib.import_module(f"strategies.codecs.{module.name}")
        for module in pkgutil.iter_modules(codecs.__path__)
        if module.name not in SHARED
    ]
    classes = [getattr(module, name) for module in modules for name in module.__all__ if name[0].isupper()]
    assert len(classes) == len(modules) == len(CODECS)
    assert all(each in CODECS.values() for each in classes)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(CODECS)), SHAPES, SEEDS)
def test_a_payload_has_the_declared_keys_shapes_and_types_and_decodes_to_the_updates_shapes(
    name: str, shapes: Shapes, seed: int
) -> None:
    codec, update = CODECS[name](), draw(seed, named(shapes))
    agreement = agreed(codec, update, seed)
    payload = codec.encode(update, agreement=agreement, generator=randomness())
    declared = codec.declared(shapes_of(update))
    assert {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in payload.items()} == declared
    assert payload_bytes(codec, shapes_of(update)) == sum(
        tensor.numel() * tensor.element_size() for tensor in payload.values()
    )
    decoded = codec.decode(payload, agreement=agreement, shapes=shapes_of(update))
    assert shapes_of(decoded) == shapes_of(update)
    assert all(tensor.dtype == torch.float32 for tensor in decoded.values())


def test_the_egress_takes_what_a_codec_declares_and_nothing_else(codec: Codec) -> None:
    update = draw(0)
    declared = Declared(tensors=codec.declared(shapes_of(update)))
    payload = codec.encode(update, agreement=agreed(codec, update), generator=randomness())
    most = payload_bytes(codec, shapes_of(update))
    rebuilt, _ = check_in(payload, {}, declared, max_bytes=most)
    assert_close(rebuilt, payload)
    first = next(iter(payload))
    for wrong in (
        {key: tensor for key, tensor in payload.items() if key != first},
        {**payload, first: payload[first].double()},
        {**payload, first: payload[first].flatten()[1:]},
    ):
        with pytest.raises(RefusedError):
            check_in(wrong, {}, declared, max_bytes=8 * most)


def test_compression_compresses(codec: Codec) -> None:
    shapes = shapes_of(draw(0))
    raw = sum(4 * math.prod(shape) for shape in shapes.values())
    if codec == CODECS["identity"]():
        assert payload_bytes(codec, shapes) == raw
    else:
        assert payload_bytes(codec, shapes) < 0.3 * raw


def test_encoding_follows_from_update_agreement_and_generator_and_touches_none_of_the_tensors(codec: Codec) -> None:
    update = draw(3)
    agreement = agreed(codec, update)
    kept = {key: tensor.clone() for key, tensor in agreement.items()}
    one = codec.encode(update, agreement=agreement, generator=randomness(5))
    backwards = dict(reversed(update.items()))
    other = codec.encode(backwards, agreement=agreed(codec, backwards), generator=randomness(5))
    assert_close(one, other)
    assert_close(update, draw(3))
    assert_close(agreement, kept)


def test_encoding_draws_nothing_from_the_global_generator(codec: Codec) -> None:
    before = torch.get_rng_state()
    update = draw(3)
    through(codec, update, agreed(codec, update, change=draw(4)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_or_a_residual_that_is_not_finite_is_refused(codec: Codec, value: float) -> None:
    update = draw(0)
    bad = draw(1)
    bad[B][0, 0] = value
    agreement = agreed(codec, update)
    with pytest.raises(InputError, match="not finite"):
        codec.encode(bad, agreement=agreement, generator=randomness())
    for one, other in ((update, bad), (bad, update)):
        with pytest.raises(InputError, match="not finite"):
            encode_with_feedback(codec, one, residual=other, agreement=agreement, generator=randomness())


@pytest.mark.parametrize("kind", [*CODECS.values(), lambda: Int8(rounding="stochastic")])
def test_what_was_decoded_and_what_is_left_over_are_together_all_that_was_to_be_said(kind: type[Codec]) -> None:
    """Σ decoded + residual = Σ updates, over rounds of changing agreements."""
    codec, residual, change, shapes = kind(), None, None, shapes_of(draw(0))
    meant, heard = zeros_like(draw(0)), zeros_like(draw(0))
    generator = randomness()
    for number in range(8):
        update = draw(number)
        agreement = codec.agree(shapes, seed=number, change=change)
        payload, residual = encode_with_feedback(
            codec, update, residual=residual, agreement=agreement, generator=generator
        )
        change = codec.decode(payload, agreement=agreement, shapes=shapes)
        meant, heard = add(meant, update), add(heard, change)
        assert_close(add(heard, residual), meant, atol=1e-7)


@pytest.mark.parametrize("kind", [*CODECS.values(), lambda: Int8(rounding="stochastic")])
def test_feedback_says_everything_in_the_end(kind: type[Codec]) -> None:
    """A device that means the same in each of 200 rounds: the mean of what was decoded comes near it."""
    codec, residual, change, update = kind(), None, None, draw(0)
    heard, generator = zeros_like(update), randomness()
    for number in range(200):
        agreement = agreed(codec, update, seed=number, change=change)
        payload, residual = encode_with_feedback(
            codec, update, residual=residual, agreement=agreement, generator=generator
        )
        change = codec.decode(payload, agreement=agreement, shapes=shapes_of(update))
        heard = add(heard, change, factor=1 / 200)
    assert joint_norm(subtract(heard, update)) < 0.2 * joint_norm(update)


def test_feedback_refuses_a_residual_of_other_keys(codec: Codec) -> None:
    update = draw(0)
    with pytest.raises(InputError, match="tensor"):
        encode_with_feedback(
            codec, update, residual={A: update[A]}, agreement=agreed(codec, update), generator=randomness()
        )


def test_identity_gives_back_the_update() -> None:
    codec, update = CODECS["identity"](), draw(0)
    assert_close(through(codec, update, agreed(codec, update)), update)
    _, residual = encode_with_feedback(codec, update, residual=None, agreement={}, generator=randomness())
    assert_close(residual, zeros_like(update))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(LINEAR), SHAPES, SEEDS, st.floats(-3, 3), st.floats(-3, 3))
def test_linear_payloads_can_be_summed_before_they_are_decoded(
    name: str, shapes: Shapes, seed: int, one: float, other: float
) -> None:
    codec = CODECS[name]()
    first, second = draw(seed, named(shapes)), draw(seed + 1, named(shapes))
    agreement = agreed(codec, first, seed)
    payloads = [codec.encode(each, agreement=agreement, generator=randomness()) for each in (first, second)]
    mixed = add(scale(payloads[0], one), payloads[1], factor=other)
    apart = add(scale(through(codec, first, agreement), one), through(codec, second, agreement), factor=other)
    together = add(scale(first, one), second, factor=other)
    decoded = codec.decode(mixed, agreement=agreement, shapes=shapes_of(first))
    assert_close(decoded, apart, atol=1e-6)
    assert_close(decoded, through(codec, together, agreement), atol=1e-6)


def test_int8_is_not_linear_and_says_so() -> None:
    codec, first, second = Int8(), draw(0), draw(1)
    assert not codec.is_linear
    apart = add(through(codec, first, {}), through(codec, second, {}))
    assert joint_norm(subtract(apart, through(codec, add(first, second), {}))) > 1e-5


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(LINEAR), SHAPES, SEEDS)
def test_linear_codecs_project(name: str, shapes: Shapes, seed: int) -> None:
    """Rows of U are orthonormal: no payload is longer than its update, decoding keeps its length, twice is once."""
    codec, update = CODECS[name](), draw(seed, named(shapes), size=1.0)
    agreement = agreed(codec, update, seed)
    payload, residual = encode_with_feedback(codec, update, residual=None, agreement=agreement, generator=randomness())
    decoded = codec.decode(payload, agreement=agreement, shapes=shapes_of(update))
    assert joint_norm(payload) <= joint_norm(update) * (1 + 1e-5)
    assert joint_norm(decoded) == pytest.approx(joint_norm(payload), rel=1e-5, abs=1e-6)
    assert_close(codec.encode(decoded, agreement=agreement, generator=randomness()), payload, atol=1e-5)
    squares = joint_norm(decoded) ** 2 + joint_norm(residual) ** 2
    assert squares == pytest.approx(joint_norm(update) ** 2, rel=1e-4)


def test_a_matrix_is_what_a_linear_codec_is(linear: Codec) -> None:
    """Columns of U from unit vectors; decoding is Uᵀ, so that ⟨U x, y⟩ = ⟨x, Uᵀ y⟩ for all x and y."""
    like = {"w": torch.zeros(40)}
    agreement = agreed(linear, like, seed=3)
    columns = [linear.encode({"w": row}, agreement=agreement, generator=randomness())["w"] for row in torch.eye(40)]
    matrix = torch.stack(columns, dim=1)
    payload = torch.randn(len(matrix), generator=randomness(1))
    decoded = linear.decode({"w": payload}, agreement=agreement, shapes=shapes_of(like))["w"]
    torch.testing.assert_close(decoded, matrix.T @ payload)
    used = matrix[matrix.abs().sum(dim=1) > 0]
    torch.testing.assert_close(used @ used.T, torch.eye(len(used)))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["nearest", "stochastic"]), SHAPES, SEEDS, st.floats(1e-40, 1e30))
def test_int8_is_a_step_off_at_most(rounding: Rounding, shapes: Shapes, seed: int, size: float) -> None:
    codec, update = Int8(rounding=rounding), draw(seed, named(shapes), size=size)
    payload = codec.encode(update, agreement={}, generator=randomness(seed))
    decoded = codec.decode(payload, agreement={}, shapes=shapes_of(update))
    for key, tensor in update.items():
        most = float(tensor.double().abs().max())
        off = float((decoded[key].double() - tensor.double()).abs().max())
        share = 0.5 if rounding == "nearest" else 1.0
        # Steps below the smallest normal float are rounded themselves: by at most half of 2⁻¹⁴⁹ each.
        assert off <= share * most / 127 * (1 + 1e-4) + 127 * 2.0**-149
        assert int(payload[key].min()) >= -127


def test_int8_by_hand() -> None:
    """max|x| = 254, so the step is 2: −254 → −127, 3 → 1.5 → 2 (to even), 1 → .5 → 0, 8 → 4."""
    codec, update = Int8(), {"w": torch.tensor([-254.0, 3.0, 1.0, 8.0])}
    payload = codec.encode(update, agreement={}, generator=randomness())
    assert payload["w"].tolist() == [-127, 2, 0, 4]
    assert float(payload["w/step"]) == 2.0
    assert codec.decode(payload, agreement={}, shapes={"w": (4,)})["w"].tolist() == [-254.0, 4.0, 0.0, 8.0]


def test_int8_of_zeros_is_zeros() -> None:
    codec, update = Int8(), {"w": torch.zeros(3)}
    payload = codec.encode(update, agreement={}, generator=randomness())
    assert payload["w"].dtype == torch.int8
    assert_close(codec.decode(payload, agreement={}, shapes={"w": (3,)}), update)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_int8_does_not_wrap_around_where_a_step_is_rounded_down(rounding: Rounding) -> None:
    """190 / 127 of the smallest float is rounded to one of it, and the largest value is then 190 steps."""
    smallest = 2.0**-149
    update = {"w": torch.tensor([190 * smallest, -190 * smallest])}
    payload = Int8(rounding=rounding).encode(update, agreement={}, generator=randomness())
    assert payload["w"].tolist() == [127, -127]
    assert float(payload["w/step"]) == smallest


def test_stochastic_rounding_is_right_in_the_mean() -> None:
    codec = Int8(rounding="stochastic")
    update = {"w": torch.full((40_001,), 0.3)}
    update["w"][0] = 127.0
    mean = float(through(codec, update, {})["w"][1:].mean())
    # Bernoulli(.3): standard deviation √(.21 / 40 000) = .0023; five of them.
    assert abs(mean - 0.3) < 0.0115
    assert float(through(Int8(), update, {})["w"][1:].mean()) == 0.0


def test_topk_sends_the_coordinates_that_changed_most_and_some_fresh_ones() -> None:
    codec = TopK(share=0.1, fresh=0.5)
    change = {"w": torch.arange(100.0).flip(0) - 50.0}
    masks = [codec.agree({"w": (100,)}, seed=seed, change=change)["w"].tolist() for seed in range(300)]
    # Sizes are 49, 48, …, 0, …, 50: the five largest of |change| are at 99, 0 and 98, 1 and 97.
    assert all({99, 0, 98, 1, 97} <= set(mask) for mask in masks)
    assert all(len(set(mask)) == 10 and sorted(mask) == mask for mask in masks)
    # Each of the other 95 is missed 300 times with probability (90/95)³⁰⁰ = 9e-8.
    assert set().union(*masks) == set(range(100))


def test_topk_draws_its_first_mask_and_what_has_not_changed_uniformly() -> None:
    codec, counts = TopK(share=0.25), np.zeros(20)
    for seed in range(1000):
        change = None if seed % 2 else {"w": torch.zeros(20)}
        counts[codec.agree({"w": (20,)}, seed=seed, change=change)["w"].numpy()] += 1
    # Each count is binomial(1000, 1/4): standard deviation 13.7; five of them.
    assert np.all(np.abs(counts - 250) < 69)


def test_topk_decodes_to_zeros_off_its_mask() -> None:
    codec, update = TopK(share=0.1), draw(0)
    agreement = agreed(codec, update)
    decoded = through(codec, update, agreement)
    for key, tensor in update.items():
        expected = torch.zeros(tensor.numel())
        for place in agreement[key].tolist():
            expected[place] = tensor.flatten()[place]
        assert torch.equal(decoded[key], expected.reshape(tensor.shape))


def test_a_mask_with_a_place_twice_outside_or_too_many_is_refused() -> None:
    codec, update = TopK(share=0.1), {"w": torch.ones(30)}
    for places in ([1, 1, 2], [3, 2, 1], [-1, 2, 3], [1, 2, 30], [1, 2], [1, 2, 3, 4]):
        with pytest.raises(InputError, match="mask of 'w'"):
            codec.encode(update, agreement={"w": torch.tensor(places)}, generator=randomness())
    for agreement in ({}, {"w": torch.tensor([1.0, 2.0, 3.0])}):
        with pytest.raises(InputError, match="mask of 'w'"):
            codec.encode(update, agreement=agreement, generator=randomness())


def test_a_sketch_without_a_seed_is_refused() -> None:
    codec, update = Sketch(), {"w": torch.ones(30)}
    for agreement in ({}, {"seed": torch.tensor(1.5)}, {"seed": torch.tensor([1, 2])}):
        with pytest.raises(InputError, match="seed"):
            codec.encode(update, agreement=agreement, generator=randomness())


def test_sketch_hashes_are_splitmix64() -> None:
    # The published test vector for seed 1234567.
    assert splitmix64(1234567, 5).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_sketch_buckets_and_signs_are_uniform_and_differ_between_rounds_and_tensors() -> None:
    codec, size = Sketch(share=0.25), 4096
    columns = {}
    for seed, key in ((0, "a"), (1, "a"), (0, "b")):
        agreement = codec.agree({key: (size,)}, seed=seed, change=None)
        buckets, factors = codec._hashes(agreement, key, (size,), torch.device("cpu"))
        columns[seed, key] = buckets
        loads = torch.bincount(buckets, minlength=size // 4)
        # Loads are binomial(4096, 1/1024): variance 4 (1 − 1/1024); χ² of 1023 degrees has deviation 45; five of them.
        assert abs(float((loads.double() - 4).square().sum() / 4) - 1023) < 5 * 45.3
        # The sum of 4096 signs has standard deviation 64; five of them.
        assert abs(float(factors.sign().sum())) < 320
    assert float((columns[0, "a"] == columns[1, "a"]).float().mean()) < 0.01
    assert float((columns[0, "a"] == columns[0, "b"]).float().mean()) < 0.01


def test_a_sketch_keeps_about_its_share_of_the_energy() -> None:
    update = {"w": torch.randn(20_000, generator=randomness())}
    codec = Sketch(share=0.25)
    kept = joint_norm(through(codec, update, agreed(codec, update))) ** 2 / joint_norm(update) ** 2
    # The rank of the projection: buckets that are not empty, (1 − e⁻⁴) of a quarter of the coordinates.
    assert kept == pytest.approx(0.25 * (1 - math.exp(-4)), rel=0.1)


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (TopK, "share", 0.0),
        (TopK, "share", 1.5),
        (TopK, "fresh", 0.0),
        (Sketch, "share", math.nan),
        (Int8, "rounding", "upwards"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(kind: type, setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{setting} must be .* got .*{value}"):
        kind(**{setting: value})
