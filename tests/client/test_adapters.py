import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, PreTrainedModel, Qwen2Config

from client.adapters import PERSONAL, SHARED, AdaptedModel, AdapterConfig, AdapterStore, fresh_adapter
from client.dialogue import Dialogue
from client.durable import replace_file
from client.model import BaseModel
from florilegium.errors import ConfigError, InputError, StorageError

IDS = torch.tensor([[1, 7, 42, 99, 13, 256]])


def logits(model: BaseModel | AdaptedModel) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.module(IDS).logits
    return output


def noise(model: AdaptedModel, slot: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(t.shape, generator=generator) * 0.1 for key, t in model.state(slot).items()}


@pytest.fixture
def adapted(tiny_model: BaseModel) -> AdaptedModel:
    return AdaptedModel(tiny_model, AdapterConfig(rank=4, alpha=8.0))


def test_a_fresh_slot_changes_nothing_and_a_filled_one_only_while_it_is_active(tiny_model: BaseModel) -> None:
    bare = logits(tiny_model)
    model = AdaptedModel(tiny_model)
    with model.active(SHARED, PERSONAL):
        assert torch.equal(logits(model), bare)
    model.load_state(PERSONAL, noise(model, PERSONAL))
    assert torch.equal(logits(model), bare)
    with model.active(PERSONAL):
        assert not torch.allclose(logits(model), bare)
        with model.active():
            assert torch.equal(logits(model), bare)
        assert not torch.allclose(logits(model), bare)
    assert torch.equal(logits(model), bare)


def test_both_slots_add_up(adapted: AdaptedModel) -> None:
    adapted.load_state(SHARED, noise(adapted, SHARED, 1))
    adapted.load_state(PERSONAL, noise(adapted, PERSONAL, 2))
    layer: Any = adapted.module.get_submodule("model.layers.1.mlp.up_proj")
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))
    prefix = "base_model.model.model.layers.1.mlp.up_proj.lora_"
    expected = layer.base_layer(x)
    for slot in (SHARED, PERSONAL):
        state = adapted.state(slot)
        expected = expected + 8.0 / 4 * x @ state[prefix + "A.weight"].T @ state[prefix + "B.weight"].T
    with adapted.active(SHARED, PERSONAL):
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_active_is_left_by_an_exception_as_by_its_end(adapted: AdaptedModel) -> None:
    adapted.load_state(PERSONAL, noise(adapted, PERSONAL))
    bare = logits(adapted)
    with pytest.raises(RuntimeError, match="from inside"), adapted.active(PERSONAL):
        raise RuntimeError("from inside")
    assert torch.equal(logits(adapted), bare)


def test_the_scale_follows_the_rank(tiny_model: BaseModel) -> None:
    configs = {SHARED: AdapterConfig(rank=2, alpha=16.0), PERSONAL: AdapterConfig(rank=8, alpha=16.0)}
    model = AdaptedModel(tiny_model, configs)
    layer: Any = model.module.get_submodule("model.layers.0.self_attn.q_proj")
    assert (layer.scaling[SHARED], layer.scaling[PERSONAL]) == (8.0, 2.0)


@pytest.mark.parametrize("slot", [SHARED, PERSONAL])
def test_only_the_asked_slot_can_train(adapted: AdaptedModel, slot: str) -> None:
    adapted.load_state(SHARED, noise(adapted, SHARED))
    own = {id(parameter) for parameter in adapted.parameters(slot).values()}
    with adapted.training(slot, SHARED, PERSONAL):
        adapted.module(IDS, labels=IDS).loss.backward()
        assert adapted.worn == (SHARED,)
        for parameter in adapted.module.parameters():
            assert parameter.requires_grad == (id(parameter) in own)
            assert (parameter.grad is not None) == (id(parameter) in own)
    assert not any(parameter.requires_grad for parameter in adapted.module.parameters())


def test_state_and_load_state_are_inverse_and_states_are_copies(adapted: AdaptedModel) -> None:
    wanted = noise(adapted, PERSONAL)
    adapted.load_state(PERSONAL, wanted)
    state = adapted.state(PERSONAL)
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    for tensor in state.values():
        tensor.zero_()
    assert all(torch.equal(adapted.state(PERSONAL)[key], wanted[key]) for key in wanted)


def test_state_has_the_keys_of_peft(adapted: AdaptedModel) -> None:
    keys = get_peft_model_state_dict(adapted._tuner, adapter_name=PERSONAL, save_embedding_layers=False)
    assert set(adapted.state(PERSONAL)) == {f"base_model.{key}" for key in keys}


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop(KEY), "lacks tensor .*layers.0.self_attn.q_proj.lora_A"),
        (lambda s: s.update(extra=s[KEY]), "unknown tensor 'extra'"),
        (lambda s: s.update({KEY: s[KEY][:2]}), r"q_proj.lora_A.weight' is \(2, 32\)"),
        (lambda s: s.update({KEY: s[KEY].double()}), "q_proj.lora_A.weight' is .* torch.float64"),
        (lambda s: s.update({KEY: s[KEY] / 0}), "q_proj.lora_A.weight' holds values that are not finite"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(
    adapted: AdaptedModel, spoil: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    before = adapted.flat(PERSONAL).clone()
    state = noise(adapted, PERSONAL)
    spoil(state)
    with pytest.raises(InputError, match=message):
        adapted.load_state(PERSONAL, state)
    assert torch.equal(adapted.flat(PERSONAL), before)


def test_reset_depends_on_the_seed_alone_and_leaves_the_global_generator(adapted: AdaptedModel) -> None:
    torch.manual_seed(0)
    untouched = torch.get_rng_state()
    adapted.reset(PERSONAL, 5)
    first = adapted.state(PERSONAL)
    adapted.load_state(PERSONAL, noise(adapted, PERSONAL))
    adapted.reset(PERSONAL, 5)
    assert torch.equal(torch.get_rng_state(), untouched)
    for key, tensor in adapted.state(PERSONAL).items():
        assert torch.equal(tensor, first[key])
        assert bool(tensor.any()) == (".lora_A." in key)
        assert tensor.abs().max() <= tensor.shape[1] ** -0.5
    adapted.reset(PERSONAL, 6)
    assert not torch.equal(adapted.state(PERSONAL)[KEY], first[KEY])


def test_detaching_leaves_the_base_bitwise_as_before(tiny_model: BaseModel) -> None:
    weights = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    bare = logits(tiny_model)
    model = AdaptedModel(tiny_model)
    model.load_state(PERSONAL, noise(model, PERSONAL))
    with model.active(PERSONAL):
        logits(model)
    assert model.detach() is tiny_model
    after = tiny_model.module.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    assert torch.equal(logits(tiny_model), bare)
    AdaptedModel(tiny_model)  # and it can be wrapped again


def test_embedding_ignores_adapters_and_generation_uses_them(adapted: AdaptedModel) -> None:
    dialogue = Dialogue(question="What should I cook?", response="Lentil soup.")
    (before,) = adapted.base.embed([dialogue])
    prompt = adapted.base.prompt_ids("What should I cook?")
    (plain,) = adapted.generate([prompt], max_new_tokens=8)
    adapted.load_state(PERSONAL, {key: 5 * tensor for key, tensor in noise(adapted, PERSONAL).items()})
    with adapted.active(PERSONAL):
        (after,) = adapted.embed([dialogue])
    assert (after.vector == before.vector).all()
    assert adapted.generate([prompt], max_new_tokens=8)[0].text != plain.text
    (answer,) = adapted.respond(["What should I cook?"], max_new_tokens=8)
    assert answer.text == adapted.generate([prompt], max_new_tokens=8)[0].text
    (bare,) = adapted.base.embed([Dialogue(question="What should I cook?", response=answer.text)])
    assert answer.embedding is not None
    assert (answer.embedding.vector == bare.vector).all()
    with adapted.active():
        assert adapted.generate([prompt], max_new_tokens=8)[0].text == plain.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank must be >= 1, got 0"),
        ({"alpha": 0.0}, "alpha must be > 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"target_modules": ()}, "target_modules is empty"),
        ({"top_layers": 0}, "top_layers must be >= 1, got 0"),
    ],
)
def test_config_refuses_what_is_out_of_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdapterConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AdapterConfig(top_layers=3), "top_layers is 3, the base has 2 layers"),
        (AdapterConfig(target_modules=("no_such_proj",)), "does not fit the base"),
        (AdapterConfig(target_modules=("q_proj", "post_attention_layernorm")), "does not fit the base"),
        ({SHARED: AdapterConfig()}, "slot 'personal' has no adapter config"),
    ],
)
def test_an_adapter_that_does_not_fit_leaves_the_base_alone(
    tiny_model: BaseModel, config: AdapterConfig | dict[str, AdapterConfig], message: str
) -> None:
    names = [name for name, _ in tiny_model.module.named_modules()]
    with pytest.raises(ConfigError, match=message):
        AdaptedModel(tiny_model, config)
    assert [name for name, _ in tiny_model.module.named_modules()] == names
    AdaptedModel(tiny_model)


def test_an_interrupt_leaves_the_base_alone(tiny_model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(AdaptedModel, "reset", stop)
        with pytest.raises(KeyboardInterrupt):
            AdaptedModel(tiny_model)
    AdaptedModel(tiny_model)


def test_a_base_is_wrapped_once(tiny_model: BaseModel) -> None:
    model = AdaptedModel(tiny_model)
    with pytest.raises(ConfigError, match="has adapters already; close the device"):
        AdaptedModel(tiny_model)
    model.detach()
    AdaptedModel(tiny_model)


def test_a_fingerprint_names_the_base_and_the_shape(tiny_model: BaseModel) -> None:
    def fingerprint(base: BaseModel, config: AdapterConfig) -> str:
        model = AdaptedModel(base, config)
        model.load_state(PERSONAL, noise(model, PERSONAL))
        found = model.fingerprint(PERSONAL)
        model.detach()
        return found

    first = fingerprint(tiny_model, AdapterConfig())
    assert fingerprint(tiny_model, AdapterConfig(dropout=0.2)) == first
    shapes = (AdapterConfig(rank=4), AdapterConfig(alpha=8.0), AdapterConfig(top_layers=1))
    assert len({first, *(fingerprint(tiny_model, each) for each in shapes)}) == 4
    tiny_model.module.to(dtype=torch.bfloat16)  # type: ignore[call-arg]
    assert fingerprint(tiny_model, AdapterConfig()) == first, "the same weights in another type"
    with torch.no_grad():
        next(tiny_model.module.parameters()).add_(0.5)
    assert fingerprint(tiny_model, AdapterConfig()) != first


def test_an_unknown_slot_is_refused_by_name(adapted: AdaptedModel) -> None:
    with pytest.raises(ConfigError, match=r"no adapter slot 'own'; the slots are: shared, personal"):
        adapted.reset("own", 0)


SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "pad_token_id": None,
}
ARCHITECTURES = {
    "qwen2": Qwen2Config(**SHAPE),
    "gpt2": GPT2Config(vocab_size=300, n_embd=32, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8),
}


@pytest.mark.parametrize("top_layers", [None, 1])
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own call
def test_peft_loads_what_the_store_saved(
    tiny_model: BaseModel, tmp_path: Path, name: str, top_layers: int | None
) -> None:
    module: PreTrainedModel = AutoModelForCausalLM.from_config(ARCHITECTURES[name]).eval()  # type: ignore[no-untyped-call]
    tiny_model.module = module
    model = AdaptedModel(tiny_model, AdapterConfig(rank=2, top_layers=top_layers))
    model.load_state(PERSONAL, noise(model, PERSONAL))
    assert all(f".{2}." in key for key in model.state(PERSONAL)) or top_layers is None
    with model.active(PERSONAL):
        expected = logits(model)
    store = AdapterStore(tmp_path / "adapters")
    version = store.version(store.save_candidate(model))
    model.detach()
    loaded = PeftModel.from_pretrained(module, version.path / PERSONAL)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, expected)


# The store


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "device" / "adapters")


def fill(model: AdaptedModel, seed: int) -> Tensor:
    model.load_state(PERSONAL, noise(model, PERSONAL, seed))
    return model.flat(PERSONAL).clone()


def test_versions_are_promoted_rolled_back_and_loaded(adapted: AdaptedModel, store: AdapterStore) -> None:
    assert (store.current, store.load(adapted), store.roll_back()) == (None, None, None)
    first = fill(adapted, 1)
    one = store.save_candidate(adapted, metrics={"rouge1": 0.25, "kept": True})
    fill(adapted, 2)
    two = store.save_candidate(adapted, slots=[PERSONAL])
    assert (one, two, store.current) == (1, 2, None)
    store.promote(one)
    store.promote(two)
    again = AdapterStore(store.directory)
    assert again.current == two
    assert [version.slots for version in again.versions()] == [(PERSONAL, SHARED), (PERSONAL,)]
    assert again.version(one).metrics == {"rouge1": 0.25, "kept": True}
    assert again.roll_back() == one
    assert again.load(adapted) == one
    assert torch.equal(adapted.flat(PERSONAL), first)
    assert again.roll_back() is None
    assert AdapterStore(store.directory).current is None


def test_pruning_keeps_the_newest_and_the_present(adapted: AdaptedModel, store: AdapterStore) -> None:
    for _ in range(5):
        store.save_candidate(adapted)
    store.promote(1)
    store.promote(2)
    assert store.prune(keep=2) == [1, 3]
    assert [version.number for version in store.versions()] == [2, 4, 5]
    assert store.roll_back() is None  # the version before the present one is gone
    assert store.save_candidate(adapted) == 6
    with pytest.raises(ConfigError, match="keep must be >= 1, got 0"):
        store.prune(keep=0)


def test_clearing_and_retiring_put_the_bare_base_in_use(adapted: AdaptedModel, store: AdapterStore) -> None:
    for _ in range(2):
        store.promote(store.save_candidate(adapted))
    store.retire()
    assert (store.current, store.roll_back(), store.numbers) == (None, None, [1, 2])
    store.promote(2)
    store.clear()
    assert AdapterStore(store.directory).current is None
    assert (store.current, store.numbers, list(store.directory.rglob("*.safetensors"))) == (None, [], [])


def test_a_reader_leaves_the_folder_as_it_is(adapted: AdaptedModel, store: AdapterStore, tmp_path: Path) -> None:
    store.promote(store.save_candidate(adapted))
    (store.directory / "versions" / ".0002").mkdir()
    reader = AdapterStore(store.directory, read_only=True)
    assert (reader.current, reader.numbers) == (1, [1])
    assert (store.directory / "versions" / ".0002").exists(), "another process may be writing it"
    nothing = AdapterStore(tmp_path / "none", read_only=True)
    assert (nothing.current, nothing.numbers) == (None, [])
    assert not (tmp_path / "none").exists()


def test_a_failed_write_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise FULL

    replace_file(tmp_path / "file", b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            replace_file(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_an_unknown_version_is_refused(adapted: AdaptedModel, store: AdapterStore) -> None:
    store.save_candidate(adapted)
    with pytest.raises(StorageError, match=r"no adapter version 7; it holds \[1\]"):
        store.promote(7)


def test_everything_is_for_the_owner_only(adapted: AdaptedModel, store: AdapterStore) -> None:
    store.promote(store.save_candidate(adapted))
    top = store.directory.parent
    for path in [top, *top.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("content", ["{", '{"promoted": "x"}'])
def test_a_spoilt_pointer_is_reported(store: AdapterStore, content: str) -> None:
    (store.directory / "current.json").write_text(content)
    with pytest.raises(StorageError, match=r"current\.json"):
        AdapterStore(store.directory)


def test_spoilt_weights_are_reported(adapted: AdaptedModel, store: AdapterStore) -> None:
    number = store.save_candidate(adapted)
    (store.version(number).path / PERSONAL / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(StorageError, match="cannot be read"):
        store.load(adapted, number)


class Killed(BaseException):
    """What a kill looks like from inside: no handler for ordinary errors sees it."""


class Faults:
    """Counts the file system's operations, and makes one of them fail."""

    def __init__(self) -> None:
        self.countdown = -1
        self.error: BaseException = Killed()
        self.dead = False
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
            self.tick()

    def tick(self) -> None:
        if self.dead:
            raise self.error
        if self.countdown > 0:
            self.countdown -= 1
            if self.countdown == 0:
                self.dead = True  # a dead process does nothing more, its handlers included
                raise self.error

    @contextmanager
    def at(self, operation: int, error: BaseException) -> Iterator[None]:
        self.countdown, self.error = operation, error
        try:
            yield
        finally:
            self.countdown, self.dead = -1, False


@pytest.fixture(scope="session")
def fault_injector() -> Faults:
    return Faults()  # an audit hook cannot be removed, so there is one for all


@pytest.fixture
def faults(fault_injector: Faults, monkeypatch: pytest.MonkeyPatch) -> Faults:
    opened = os.fdopen

    def counted_open(descriptor: int, mode: str) -> object:
        fault_injector.tick()
        return opened(descriptor, mode)

    monkeypatch.setattr(os, "fsync", lambda _: fault_injector.tick())
    monkeypatch.setattr(os, "fdopen", counted_open)
    return fault_injector


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("error", [Killed(), FULL], ids=["killed", "disk full"])
def test_a_fault_at_any_operation_of_clearing_leaves_a_store_to_clear_again(
    adapted: AdaptedModel, store: AdapterStore, tmp_path: Path, faults: Faults, error: BaseException
) -> None:
    for _ in range(2):
        store.promote(store.save_candidate(adapted, slots=[PERSONAL]))
    operation, ended = 0, False
    while not ended:
        operation += 1
        opened = AdapterStore(shutil.copytree(store.directory, tmp_path / str(operation)))
        with contextlib.suppress(Killed, StorageError), faults.at(operation, error):
            opened.clear()
            ended = True
        again = opened if error is FULL else AdapterStore(opened.directory)
        assert again.load(adapted) in (None, 2)
        again.clear()
        assert (again.current, list(again.directory.rglob("*.safetensors"))) == (None, [])
    assert operation > 8  # the injector saw the operations


@pytest.mark.parametrize("error", [Killed(), FULL], ids=["killed", "disk full"])
def test_a_fault_at_any_operation_leaves_a_whole_store(
    adapted: AdaptedModel, store: AdapterStore, tmp_path: Path, faults: Faults, error: BaseException
) -> None:
    states = []
    for seed in (1, 2, 3):
        states.append(fill(adapted, seed))
        if seed < 3:
            store.promote(store.save_candidate(adapted, slots=[PERSONAL]))
    third = adapted.state(PERSONAL)
    outcomes: set[int | None] = set()
    operation, ended = 0, False
    while not ended:
        operation += 1
        directory = shutil.copytree(store.directory, tmp_path / str(operation))
        adapted.load_state(PERSONAL, third)
        with contextlib.suppress(Killed, StorageError), faults.at(operation, error):
            opened = AdapterStore(directory)
            opened.promote(opened.save_candidate(adapted, slots=[PERSONAL]))
            opened.prune(keep=1)
            ended = True
        reopened = AdapterStore(directory)
        assert not list(directory.rglob(".*"))
        for version in reopened.versions():
            reopened.load(adapted, version.number)
            assert torch.equal(adapted.flat(PERSONAL), states[version.number - 1])
        assert reopened.current in (2, 3)
        outcomes.add(reopened.current)
        assert reopened.roll_back() in (None, 1, 2)
        assert reopened.save_candidate(adapted, slots=[PERSONAL]) > 2
    assert operation > 15  # the injector saw the operations
    assert outcomes == {2, 3}


def test_a_fresh_adapter_needs_no_weights(tiny_model: BaseModel, tiny_model_folder: Path) -> None:
    config = AdapterConfig(rank=3, top_layers=1)
    model = AdaptedModel(tiny_model, config, slots=(SHARED,), seed=5)
    found = fresh_adapter(str(tiny_model_folder), config, 5)
    state = model.state(SHARED)
    assert list(found) == list(state)
    assert all(torch.equal(found[key], state[key]) for key in state)
