"""The network against transformers and PEFT computing the same, one row at a time."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    PretrainedConfig,
    Qwen2Config,
)

from client.adapters import PERSONAL, SHARED, AdaptedModel, AdapterConfig
from client.finetuning import lora
from client.finetuning.batching import Batch, Row, pack
from client.finetuning.head import weighted_nll
from client.finetuning.network import Network, recomputed_activations, training_network
from client.finetuning.trunk import TrunkCache
from client.model import BaseModel

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": None,
}
ARCHITECTURES = {
    "qwen2": Qwen2Config(**SHAPE),
    "gpt2": GPT2Config(vocab_size=300, n_embd=32, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8, sliding_window=4, final_logit_softcapping=5.0),
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=4),
    "bloom": BloomConfig(vocab_size=300, hidden_size=32, n_layer=3, n_head=4),  # knows no packed attention
}


def rows_of(shapes: Sequence[tuple[int, int]]) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    return [
        Row(f"{number}", tuple(torch.randint(6, 300, (length,), generator=generator).tolist()), start)
        for number, (length, start) in enumerate(shapes)
    ]


ROWS = rows_of([(9, 3), (4, 1), (12, 11), (2, 1)])


def adapted(base: BaseModel, config: PretrainedConfig | None = None, **shape: Any) -> AdaptedModel:
    if config is not None:
        torch.manual_seed(1)
        base.module = AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    model = AdaptedModel(base, AdapterConfig(rank=3, **shape))
    generator = torch.Generator().manual_seed(2)
    for slot in (SHARED, PERSONAL):
        model.flat(slot).normal_(std=0.1, generator=generator)
    return model


def reference(model: AdaptedModel, rows: Sequence[Row]) -> tuple[float, Tensor]:
    """Mean over rows of transformers' own loss, through PEFT's own layers, and the personal slot's gradient."""
    with model.training(PERSONAL, SHARED):
        losses = []
        for row in rows:
            ids = torch.tensor([row.ids])
            labels = ids.clone()
            labels[:, : row.start] = -100
            losses.append(model.module(ids, labels=labels).loss)
        loss = torch.stack(losses).mean()
        gradient = torch.autograd.grad(loss, list(model.parameters(PERSONAL).values()))
    return float(loss.detach()), torch.cat([part.flatten() for part in gradient])


def packed_gradient(
    network: Network,
    model: AdaptedModel,
    rows: Sequence[Row],
    *,
    seeds: Sequence[int] | None = None,
    cache: TrunkCache | None = None,
) -> tuple[float, Tensor]:
    total, gradient = 0.0, torch.zeros_like(model.flat(PERSONAL))
    for run in [rows] if network.packs else [[row] for row in rows]:
        packed = network.pack(run)
        own = None if seeds is None else [seeds[rows.index(row)] for row in run]
        if own is not None and len(packed.lengths) > len(own):
            own.append(0)
        hidden = network.hidden(packed, seeds=own, entering=cache.entering(packed) if cache else None)
        weights = packed.token_weights(Batch(0, tuple(rows)), "example")
        loss, _ = weighted_nll(hidden[packed.scored], packed.targets, weights, network.head, chunk=5)
        parts = torch.autograd.grad(loss, list(model.parameters(PERSONAL).values()))
        gradient += torch.cat([part.flatten() for part in parts])
        total += float(loss.detach())
    return total, gradient


@pytest.mark.parametrize("plain", [True, False], ids=["fused", "PEFT's forward"])
@pytest.mark.parametrize("name", ["llama", *ARCHITECTURES])
def test_loss_and_gradient_are_those_of_transformers_and_peft(
    tiny_model: BaseModel, monkeypatch: pytest.MonkeyPatch, name: str, plain: bool
) -> None:
    model = adapted(tiny_model, ARCHITECTURES.get(name))
    expected_loss, expected = reference(model, ROWS)
    if not plain:  # as for a quantized layer
        monkeypatch.setattr(lora, "_is_plain", lambda _: False)
    with training_network(model, PERSONAL, torch.float32) as network:
        loss, gradient = packed_gradient(network, model, ROWS)
        assert network.packs == (name != "bloom")
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def llama(shared_tiny_model: BaseModel) -> AdaptedModel:
    return adapted(copy.deepcopy(shared_tiny_model))


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(
        st.integers(2, 14).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))), min_size=1, max_size=6
    )
)
def test_rows_of_any_shape_pack(llama: AdaptedModel, shapes: list[tuple[int, int]]) -> None:
    rows = rows_of(shapes)
    expected_loss, expected = reference(llama, rows)
    with training_network(llama, PERSONAL, torch.float32) as network:
        loss, gradient = packed_gradient(network, llama, rows)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_dropout_is_that_of_peft_with_the_same_masks(tiny_model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(tiny_model, dropout=0.3)
    seeds = [11, 12, 13, 14]
    with training_network(model, PERSONAL, torch.float32) as network:
        undropped, _ = packed_gradient(network, model, ROWS)
        loss, gradient = packed_gradient(network, model, ROWS, seeds=seeds)
        alone = [packed_gradient(network, model, [row], seeds=[seed]) for row, seed in zip(ROWS, seeds, strict=True)]
    monkeypatch.setattr(lora, "_is_plain", lambda _: False)
    with training_network(model, PERSONAL, torch.float32) as network:
        expected_loss, expected = packed_gradient(network, model, ROWS, seeds=seeds)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert loss != pytest.approx(undropped, rel=1e-3)
    assert loss == pytest.approx(sum(part for part, _ in alone) / len(alone), rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_recomputing_activations_changes_not_a_bit(tiny_model: BaseModel, name: str) -> None:
    model = adapted(tiny_model, ARCHITECTURES.get(name), dropout=0.3)
    with training_network(model, PERSONAL, torch.float32) as network:
        loss, gradient = packed_gradient(network, model, ROWS, seeds=[1, 2, 3, 4])
        with recomputed_activations(network):
            again, recomputed = packed_gradient(network, model, ROWS, seeds=[1, 2, 3, 4])
    assert loss == again
    assert torch.equal(gradient, recomputed)


@pytest.mark.parametrize("name", ["llama", *ARCHITECTURES])
@pytest.mark.parametrize("max_bytes", [1 << 20, 12 * 32 * 4], ids=["all rows", "some rows"])
def test_the_trunk_cache_changes_nothing(tiny_model: BaseModel, name: str, max_bytes: int) -> None:
    configs = {SHARED: AdapterConfig(rank=2), PERSONAL: AdapterConfig(rank=3, top_layers=1, dropout=0.3)}
    if name != "llama":
        torch.manual_seed(1)
        module = AutoModelForCausalLM.from_config(ARCHITECTURES[name])  # type: ignore[no-untyped-call]
        tiny_model.module = module.eval()
    model = AdaptedModel(tiny_model, configs)
    for slot in (SHARED, PERSONAL):  # the frozen shared adapter acts below the cut as well
        model.flat(slot).normal_(std=0.1)
    with training_network(model, PERSONAL, torch.float32) as network:
        loss, gradient = packed_gradient(network, model, ROWS, seeds=[1, 2, 3, 4])
        cache = TrunkCache(network, ROWS, max_bytes=max_bytes, micro_tokens=16)
        assert len(cache) == (4 if max_bytes > 4096 else 2)
        again, cached = packed_gradient(network, model, ROWS, seeds=[1, 2, 3, 4], cache=cache)
    assert again == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(cached, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_bfloat16_is_close(tiny_model: BaseModel) -> None:
    model = adapted(tiny_model)
    expected_loss, expected = reference(model, ROWS)
    with training_network(model, PERSONAL, torch.bfloat16) as network:
        assert network.hidden(pack(ROWS, network.device)).dtype is torch.bfloat16
        loss, gradient = packed_gradient(network, model, ROWS)
    assert gradient.dtype is torch.float32
    assert loss == pytest.approx(expected_loss, rel=0.02)
    assert torch.cosine_similarity(gradient, expected, dim=0) > 0.99


def test_everything_is_undone_at_the_end(tiny_model: BaseModel) -> None:
    model = adapted(tiny_model)
    weights = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.module.state_dict().items()}
    attributes = {name: set(vars(part)) for name, part in model.module.named_modules()}
    attention = tiny_model.module.config._attn_implementation
    with (
        pytest.raises(RuntimeError, match="inside"),
        training_network(model, PERSONAL, torch.bfloat16) as network,
        recomputed_activations(network),
    ):
        raise RuntimeError("inside")
    assert tiny_model.module.config._attn_implementation == attention
    assert {name: set(vars(part)) for name, part in model.module.named_modules()} == attributes
    for name, tensor in model.module.state_dict().items():
        assert tensor.data_ptr() == weights[name][0]
        assert torch.equal(tensor, weights[name][1])
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_an_attention_that_does_more_than_ours_forbids_packing(tiny_model: BaseModel) -> None:
    """The sinks of gpt-oss take a share of every token's attention."""
    shape = {**SHAPE, "num_hidden_layers": 2, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}
    model = adapted(tiny_model, GptOssConfig(**shape, sliding_window=4), target_modules=("q_proj", "v_proj"))
    with training_network(model, PERSONAL, torch.float32) as network:
        assert not network.packs


def test_a_layer_that_carries_a_state_along_forbids_packing(tiny_model: BaseModel) -> None:
    model = adapted(tiny_model)
    layer: Any = model.module.get_submodule("model.layers.1.mlp")
    plain = layer.forward
    layer.forward = lambda x: plain(x.cumsum(1))  # as a state-space layer would
    with training_network(model, PERSONAL, torch.float32) as network:
        assert not network.packs
        loss, _ = packed_gradient(network, model, ROWS)
    assert loss == pytest.approx(reference(model, ROWS)[0], rel=1e-5)


def test_whether_rows_pack_is_found_once(tiny_model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(tiny_model)
    probes: list[torch.dtype] = []
    probe = Network.probe

    def noted(network: Network) -> Tensor:
        probes.append(network.dtype)
        return probe(network)

    monkeypatch.setattr(Network, "probe", noted)
    for dtype in (torch.float32, torch.float32, torch.bfloat16):
        with training_network(model, PERSONAL, dtype) as network:
            assert network.packs
    assert probes == [torch.float32] * 2 + [torch.bfloat16] * 2, "alone and packed, for each precision"


def test_an_adapter_that_is_not_finite_says_nothing_of_whether_rows_pack(tiny_model: BaseModel) -> None:
    model = adapted(tiny_model)
    flat = model.flat(PERSONAL).clone()
    model.flat(PERSONAL).fill_(torch.nan)
    with training_network(model, PERSONAL, torch.float32) as network:
        assert not network.packs
    model.flat(PERSONAL).copy_(flat)
    with training_network(model, PERSONAL, torch.float32) as network:
        assert network.packs
