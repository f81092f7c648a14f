"""A device's part in a round: every plan on a real (tiny) model, with a server that is nothing but two functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch

from client.adapters import PERSONAL, SHARED, AdaptedModel, AdapterConfig
from client.dialogue import Example, derive_seed
from client.evaluation import nll
from client.finetuning import FineTuneConfig, Target, finetune, mean_gradient
from client.model import BaseModel
from client.participant import Assignment, FileMemory, Participant
from florilegium.errors import InputError, PrivacyError, StorageError
from florilegium.tensors import Tensors, add
from privacy.device_level import DeviceLevel
from privacy.ledger import Ledger, PrivacyBudgetError
from privacy.noise import SeededSource
from strategies.codecs.int8 import Int8
from strategies.codecs.topk import TopK
from strategies.gathering import Exchange, Gathering, Shared, prepare
from strategies.hyperparameters import IMPROVEMENT, improvement
from strategies.personal import PERSONAL_WAYS
from strategies.plan import Plan
from strategies.rule import Reply
from strategies.rules import RULES
from strategies.rules.fedit import FedIT

RANK, SCALE = 4, 2.0
CONFIG = FineTuneConfig(learning_rate=1e-2, batch_size=4, dtype="float32")
WORDS = ("rain", "tea", "garden", "letter", "window", "bread", "seven", "uncle")


def rows(device: int) -> list[Example]:
    return [
        Example(
            question=f"{WORDS[(device + number) % 8]} {WORDS[number % 8]}?",
            response=f"{WORDS[(3 * device + number) % 8]}.",
            source_id=f"{device}-{number}",
            example_id=f"{device}-{number}",
        )
        for number in range(6)
    ]


@pytest.fixture
def model(tiny_model: BaseModel) -> Iterator[AdaptedModel]:
    made = AdaptedModel(tiny_model, AdapterConfig(rank=RANK, alpha=SCALE * RANK, top_layers=1, dropout=0.0))
    made.reset(SHARED, 7)
    yield made
    made.detach()


class Fleet:
    """A server and its devices, all of one rank."""

    def __init__(self, plan: Plan, model: AdaptedModel, folder: Path, devices: int = 2) -> None:
        self.plan, self.model, self.folder, self.devices = plan, model, folder, range(devices)
        model.reset(SHARED, 7)
        assert plan.rule is not None
        start = plan.rule.start(model.state(SHARED), plan.turn(0, 0, rank=RANK, scale=SCALE))
        self.shared = Shared(state=start)
        self.sent: list[Tensors] = []

    def participant(self, device: int) -> Participant:
        return Participant(
            self.model, FileMemory(self.folder / f"{device}" / "memory"), f"d{device}", noise=SeededSource(device)
        )

    def exchange(self, number: int, at: int) -> Exchange:
        return prepare(
            self.plan, self.shared, self.plan.turn(number, at, rank=RANK, scale=SCALE), self.model.state(SHARED)
        )

    def answer(self, device: int, told: Exchange, steps: int = 4, run: int = 1) -> Tensors:
        task = Assignment(
            plan=self.plan,
            turn=told.turn,
            down=told.down,
            agreement=told.agreement,
            steps=steps,
            finetuning=CONFIG,
            run=run,
        )
        payload, _ = self.participant(device).answer(task, rows(device))
        self.sent.append(payload)
        return payload

    def round(self, number: int, *, repeat: Sequence[int] = ()) -> None:
        assert self.plan.rule is not None
        for at in range(self.plan.rule.exchanges(number)):
            told = self.exchange(number, at)
            gathering = Gathering(self.plan, self.shared, told, noise=SeededSource(99))
            for device in self.devices:
                payload = self.answer(device, told)
                if device in repeat:
                    payload = self.answer(device, told)
                gathering.take(Reply(device=device, weight=1.0, scale=SCALE, tensors=payload), told)
            self.shared = gathering.close()

    def losses(self, device: int, number: int) -> float:
        told = self.exchange(number, 0)
        participant = self.participant(device)
        loaded = participant.load_shared(self.plan, told.down, told.turn)
        with participant.serving(self.plan, loaded):
            nats, tokens = nll(self.model.base, rows(device))
        return nats / tokens


PLANS = [
    *(Plan(rule=RULES[name]()) for name in sorted(RULES)),
    *(Plan(rule=FedIT(), personal=PERSONAL_WAYS[way]) for way in ("dual", "ditto", "finetune")),
    Plan(rule=RULES["flora"](), personal=PERSONAL_WAYS["dual"]),
    Plan(rule=RULES["rolora"](), codec=Int8()),
    Plan(rule=RULES["rolora"](), codec=TopK()),
    Plan(rule=FedIT(), proximal=0.1),
]
every_plan = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.name}-{type(plan.codec).__name__}")


@every_plan
def test_a_fleet_learns(plan: Plan, model: AdaptedModel, tmp_path: Path) -> None:
    fleet = Fleet(plan, model, tmp_path)
    before = fleet.losses(0, 1)
    for number in (1, 2, 3):
        fleet.round(number)
    assert fleet.losses(0, 4) < before
    assert all(bool(tensor.isfinite().all()) for tensor in fleet.shared.state.values())


@every_plan
def test_asked_again_a_device_answers_the_same(plan: Plan, model: AdaptedModel, tmp_path: Path) -> None:
    once, again = Fleet(plan, model, tmp_path / "once"), Fleet(plan, model, tmp_path / "again")
    for number in (1, 2):
        once.round(number)
    for number in (1, 2):
        again.round(number, repeat=(0,))
    assert once.shared.state.keys() == again.shared.state.keys()
    for key, tensor in once.shared.state.items():
        assert torch.equal(tensor, again.shared.state[key]), key
    for device in once.devices:
        assert (once.folder / f"{device}/memory").read_bytes() == (again.folder / f"{device}/memory").read_bytes()


@every_plan
def test_nothing_leaves_but_what_is_declared(plan: Plan, model: AdaptedModel, tmp_path: Path) -> None:
    fleet = Fleet(plan, model, tmp_path)
    fleet.round(1)
    told = fleet.exchange(2, 0)
    payload = fleet.answer(0, told)
    assert {key: (tuple(t.shape), t.dtype) for key, t in payload.items()} == dict(told.declared.tensors)
    assert all(
        tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() for tensor in payload.values()
    )


def test_the_base_is_as_it_was_after_a_round_on_a_residual(model: AdaptedModel, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in model.module.named_parameters() if "lora" not in name}
    fleet = Fleet(Plan(rule=RULES["fedex"]()), model, tmp_path)
    for number in (1, 2):
        fleet.round(number)
    assert any(bool(tensor.any()) for key, tensor in fleet.shared.state.items() if key.startswith("residual."))
    for name, tensor in model.module.named_parameters():
        if "lora" not in name:
            assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("way", ["dual", "ditto", "finetune"])
def test_what_is_shared_does_not_depend_on_the_personal_adapter(way: str, model: AdaptedModel, tmp_path: Path) -> None:
    """All steps but the personal ones are those of the plain plan, so what leaves is the same to the bit."""
    personal = dataclasses.replace(PERSONAL_WAYS[way], share=0.5)
    plain, with_personal = (
        Fleet(Plan(rule=FedIT()), model, tmp_path / "a"),
        Fleet(Plan(rule=FedIT(), personal=personal), model, tmp_path / "b"),
    )
    for number in (1, 2):
        told = plain.exchange(number, 0)
        alone = [plain.answer(device, told, steps=2) for device in plain.devices]
        beside = [with_personal.answer(device, told, steps=4) for device in plain.devices]
        for one, other in zip(alone, beside, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_plan_that_shares_nothing_trains_alone(model: AdaptedModel, tmp_path: Path) -> None:
    plan = Plan(rule=None, personal=PERSONAL_WAYS["local"])
    participant = Participant(model, FileMemory(tmp_path / "memory"), "d0")
    with participant.serving(plan, None):
        before, tokens = nll(model.base, rows(0))
    for number in (1, 2, 3):
        participant.train_alone(plan, number, CONFIG, 8, rows(0), run=1)
    with participant.serving(plan, None):
        after, _ = nll(model.base, rows(0))
    assert after < before
    assert tokens


def test_local_noise_is_added_and_the_clip_is_kept(model: AdaptedModel, tmp_path: Path) -> None:
    def sent(noise_multiplier: float, folder: str) -> Tensors:
        privacy = DeviceLevel(
            clip_norm=0.01, noise_multiplier=noise_multiplier, delta=1e-5, placement="local", max_rounds=4, cohort=3
        )
        fleet = Fleet(Plan(rule=FedIT(), privacy=privacy), model, tmp_path / folder)
        return fleet.answer(0, fleet.exchange(1, 0))

    def norm(tensors: Mapping[str, torch.Tensor]) -> float:
        return float(torch.cat([tensor.reshape(-1) for tensor in tensors.values()]).norm())

    clean, noisy = sent(0.0, "clean"), sent(2.0, "noisy")
    assert norm(clean) == pytest.approx(0.01, rel=1e-4)
    noise = {key: noisy[key] - clean[key] for key in clean}
    size = sum(tensor.numel() for tensor in noise.values())
    assert norm(noise) / size**0.5 == pytest.approx(2.0 * 2 * 0.01, rel=0.1)  # z · 2C, thousands of draws


def test_every_release_is_charged_before_it_is_made_and_once(model: AdaptedModel, tmp_path: Path) -> None:
    fleet = Fleet(Plan(rule=FedIT()), model, tmp_path)
    ledger = Ledger(path=tmp_path / "ledger", max_rounds=2)
    participant = Participant(model, FileMemory(tmp_path / "memory"), "d0", ledger=ledger)

    def answer(number: int) -> Tensors:
        told = fleet.exchange(number, 0)
        task = Assignment(plan=fleet.plan, turn=told.turn, down=told.down, steps=1, finetuning=CONFIG)
        return participant.answer(task, rows(0))[0]

    first = answer(1)
    assert all(torch.equal(first[key], again) for key, again in answer(1).items())
    assert ledger.spent == 1
    answer(2)
    memory = (tmp_path / "memory").read_bytes()
    with pytest.raises(PrivacyError):
        answer(3)
    assert (tmp_path / "memory").read_bytes() == memory


def test_another_run_keeps_the_personal_adapter_alone(model: AdaptedModel, tmp_path: Path) -> None:
    plan = Plan(rule=RULES["fedsa"](), personal=PERSONAL_WAYS["dual"])
    fleet = Fleet(plan, model, tmp_path)
    fleet.round(1)
    fleet.round(2)
    memory = FileMemory(tmp_path / "0" / "memory")
    personal = memory.read()["personal"]
    fleet.answer(0, fleet.exchange(1, 0), steps=0, run=2)
    held = memory.read()
    assert all(torch.equal(personal[key], held["personal"][key]) for key in personal)
    assert not any(bool(tensor.any()) for tensor in held["kept"].values()), "B begins at zero in another run"


def test_an_older_round_is_refused(model: AdaptedModel, tmp_path: Path) -> None:
    fleet = Fleet(Plan(rule=FedIT()), model, tmp_path)
    told = fleet.exchange(1, 0)
    fleet.round(1)
    fleet.round(2)
    with pytest.raises(InputError, match="round 1 was asked for after round 2"):
        fleet.answer(0, told)


def test_the_second_exchange_needs_the_first(model: AdaptedModel, tmp_path: Path) -> None:
    fleet = Fleet(Plan(rule=RULES["sketch"]()), model, tmp_path)
    told = fleet.exchange(1, 0)
    gathering = Gathering(fleet.plan, fleet.shared, told)
    gathering.take(Reply(device=0, weight=1.0, scale=SCALE, tensors=fleet.answer(0, told)), told)
    fleet.shared = gathering.close()
    with pytest.raises(InputError, match="no work of this round"):
        fleet.answer(1, fleet.exchange(1, 1))


def second_exchange(fleet: Fleet, told: Exchange, payloads: Sequence[Tensors]) -> Exchange:
    """What follows when these answered the first."""
    gathering = Gathering(fleet.plan, fleet.shared, told, noise=SeededSource(len(payloads)))
    for device, payload in enumerate(payloads):
        gathering.take(Reply(device=device, weight=1.0, scale=SCALE, tensors=payload), told)
    before, fleet.shared = fleet.shared, gathering.close()
    following = fleet.exchange(told.turn.round, 1)
    fleet.shared = before
    return following


@pytest.mark.parametrize("name", ["sketch", "fedsb"])
def test_a_second_exchange_about_another_sum_is_answered_anew(name: str, model: AdaptedModel, tmp_path: Path) -> None:
    """A round that is tried again, or goes on after a server was killed, may have heard others the first time."""
    plan = Plan(rule=RULES[name]())
    fleet, other = Fleet(plan, model, tmp_path / "one"), Fleet(plan, model, tmp_path / "other")
    told = fleet.exchange(1, 0)
    payloads = [fleet.answer(device, told) for device in fleet.devices]
    both, alone = second_exchange(fleet, told, payloads), second_exchange(fleet, told, payloads[:1])
    first, found = fleet.answer(0, both), fleet.answer(0, alone)
    other.answer(0, told)
    expected = other.answer(0, alone)
    assert any(not torch.equal(first[key], tensor) for key, tensor in expected.items())
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize(("placement", "repeated"), [("central", 1), ("local", 0)])
def test_every_noised_sum_that_a_device_may_be_in_is_charged(
    placement: Literal["central", "local"], repeated: int, model: AdaptedModel, tmp_path: Path
) -> None:
    """A first exchange that is played again is noised again by the server, and its first sum may be known already.

    What the device itself has noised is sent again as it was.
    """
    privacy = DeviceLevel(clip_norm=0.5, noise_multiplier=2.0, delta=1e-5, max_rounds=9, cohort=2, placement=placement)
    fleet = Fleet(Plan(rule=RULES["sketch"](), privacy=privacy), model, tmp_path)
    ledger = Ledger(path=tmp_path / "ledger", max_rounds=9)
    participant = Participant(model, FileMemory(tmp_path / "memory"), "d0", ledger=ledger, noise=SeededSource(1))

    def answer(exchange: Exchange) -> Tensors:
        task = Assignment(plan=fleet.plan, turn=exchange.turn, down=exchange.down, steps=2, finetuning=CONFIG)
        return participant.answer(task, rows(0))[0]

    told = fleet.exchange(1, 0)
    payload, spent = answer(told), [ledger.spent]
    another = {key: tensor.flip(0) for key, tensor in payload.items()}
    both, alone = second_exchange(fleet, told, [payload, another]), second_exchange(fleet, told, [payload])
    for exchange in (both, both, told, alone, alone):
        answer(exchange)
        spent.append(ledger.spent)
    assert spent == [1, 2, 2, 2 + repeated, 3 + repeated, 3 + repeated]


def test_who_takes_no_shared_step_of_fedsb_moves_nothing(model: AdaptedModel, tmp_path: Path) -> None:
    fleet = Fleet(Plan(rule=RULES["fedsb"](), personal=PERSONAL_WAYS["dual"]), model, tmp_path)
    fleet.round(1)
    fleet.round(2)
    told = fleet.exchange(3, 0)
    assert any(bool(tensor.any()) for key, tensor in told.down.items() if key.startswith("core."))
    for key, tensor in fleet.answer(0, told, steps=1).items():
        torch.testing.assert_close(tensor, torch.zeros_like(tensor), atol=1e-7, rtol=0.0, msg=key)


def test_what_a_sketch_leaves_unsaid_is_not_fed_back(model: AdaptedModel, tmp_path: Path) -> None:
    """The next round sketches in another basis."""
    fleet = Fleet(Plan(rule=RULES["sketch"](), codec=TopK()), model, tmp_path)
    fleet.round(1)
    sections = FileMemory(tmp_path / "0" / "memory").read()
    assert not any(name.startswith("left") for name in sections)


def test_a_damaged_memory_is_named(model: AdaptedModel, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"not tensors")
    with pytest.raises(StorageError, match="cannot be read"):
        FileMemory(tmp_path / "memory").read()


def test_the_mean_gradient_is_autograd_s(model: AdaptedModel) -> None:
    """Reference: transformers' own loss of each row, averaged, through PEFT's layers."""
    flat = model.flat(PERSONAL)
    flat.add_(torch.randn(flat.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    found = mean_gradient(model, rows(0), target=Target(slot=PERSONAL, beside=()), config=CONFIG)
    losses = []
    with model.training(PERSONAL):
        for example in rows(0):
            ids, start = model.example_ids(example.question, example.response)
            labels = torch.tensor([[-100] * start + ids[start:]])
            losses.append(model.module(torch.tensor([ids]), labels=labels).loss)
        parameters = model.parameters(PERSONAL)
        expected = torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))
    for key, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[key], gradient, atol=1e-6, rtol=1e-3)


def test_nothing_can_be_folded_into_what_is_not_there(model: AdaptedModel) -> None:
    with pytest.raises(InputError, match="no adapted layer"), model.folded({"base_model.nowhere": torch.zeros(2, 2)}):
        pass
    layer = next(key.split(".lora_")[0] for key in model.state(SHARED))
    with pytest.raises(InputError, match="the layer's weights are"), model.folded({layer: torch.zeros(1, 1)}):
        pass


def judged(
    fleet: Fleet, *, unit: float = 1.0, device: int = 0, ledger: Ledger | None = None, holdout: int = 4
) -> dict[str, float]:
    """What a device says of its work in the first round."""
    told = fleet.exchange(1, 0)
    task = Assignment(
        plan=fleet.plan, turn=told.turn, down=told.down, steps=8, finetuning=CONFIG, improvement_unit=unit
    )
    participant = Participant(
        fleet.model, FileMemory(fleet.folder / f"{device}" / "memory"), f"d{device}", ledger=ledger
    )
    return participant.answer(task, rows(device), rows(device + 1)[:holdout])[1]


def test_a_personal_adapter_is_trained_beside_what_was_received(model: AdaptedModel, tmp_path: Path) -> None:
    """The same rows give the same personal adapter whatever the device's own shared steps were."""
    fleet = Fleet(Plan(rule=FedIT(), personal=PERSONAL_WAYS["dual"]), model, tmp_path)
    fleet.round(1)
    kept = FileMemory(tmp_path / "0" / "memory").read()
    received = Fleet(fleet.plan, model, tmp_path / "other").shared.state
    assert all(torch.equal(kept["start"][key], tensor) for key, tensor in received.items())
    model.load_state(SHARED, received)
    model.reset(PERSONAL, derive_seed(fleet.plan.seed, "personal", "d0"))
    seed = derive_seed(CONFIG.seed, "d0", 1, PERSONAL)
    config = dataclasses.replace(CONFIG, epochs=2, max_steps=2, seed=seed)
    finetune(model, rows(0), target=Target(slot=PERSONAL, beside=(SHARED,)), config=config)
    for key, tensor in model.state(PERSONAL).items():
        assert torch.equal(kept["personal"][key], tensor), key


@pytest.mark.parametrize("way", ["none", "dual", "ditto", "finetune"])
def test_an_improvement_is_the_fall_of_the_holdout_s_loss(way: str, model: AdaptedModel, tmp_path: Path) -> None:
    """Reference: the shared adapter as it was received and with what was sent, loaded by hand."""
    fleet = Fleet(Plan(rule=FedIT(), personal=PERSONAL_WAYS.get(way)), model, tmp_path)
    found = judged(fleet, unit=0.5)
    losses = []
    received, sent = fleet.shared.state, FileMemory(tmp_path / "0" / "memory").read()["sent0"]
    for shared in (received, add(received, sent)):
        model.load_state(SHARED, shared)
        with model.active(SHARED):
            nats, tokens = nll(model.base, rows(1)[:4])
        losses.append(nats / tokens)
    assert found == {"improvement": improvement(*losses, unit=0.5)}
    assert found["improvement"] != 0


def test_of_an_improvement_nothing_is_said_unasked_or_without_a_holdout(model: AdaptedModel, tmp_path: Path) -> None:
    assert judged(Fleet(Plan(rule=FedIT()), model, tmp_path / "a"), unit=0.0) == {}
    assert judged(Fleet(Plan(rule=FedIT()), model, tmp_path / "b"), holdout=0) == {}


def test_to_be_judged_changes_nothing_of_what_is_learned(model: AdaptedModel, tmp_path: Path) -> None:
    plan = Plan(rule=FedIT(), personal=PERSONAL_WAYS["dual"])
    one, other = Fleet(plan, model, tmp_path / "a"), Fleet(plan, model, tmp_path / "b")
    judged(one)
    judged(other, unit=0.0)
    mine, its = (FileMemory(fleet.folder / "0" / "memory").read() for fleet in (one, other))
    for section in ("personal", "sent0"):
        assert all(torch.equal(tensor, its[section][key]) for key, tensor in mine[section].items())


@pytest.mark.parametrize(("way", "kept"), [("none", set()), ("ditto", {"personal"}), ("dual", {"personal", "start"})])
def test_what_a_round_needed_is_not_kept_beyond_it(
    way: str, kept: set[str], model: AdaptedModel, tmp_path: Path
) -> None:
    """What an exact codec leaves unsaid, nothing but zeros, is not kept at all."""
    fleet = Fleet(Plan(rule=FedIT(), personal=PERSONAL_WAYS.get(way)), model, tmp_path)
    fleet.round(1)
    sections = FileMemory(tmp_path / "0" / "memory").read()
    assert {name for name, tensors in sections.items() if tensors} == kept | {"sent0", "asked0", "mark"}


def test_metrics_are_said_again_as_they_were(model: AdaptedModel, tmp_path: Path) -> None:
    fleet = Fleet(Plan(rule=FedIT(), weighting="rows"), model, tmp_path)
    first = judged(fleet, unit=0.3)
    assert first["rows"] == 6.0
    assert judged(fleet, unit=0.3) == first


def test_an_improvement_is_charged_as_a_release_of_its_own(model: AdaptedModel, tmp_path: Path) -> None:
    privacy = DeviceLevel(clip_norm=0.5, noise_multiplier=2.0, delta=1e-5, max_rounds=9, cohort=2)
    fleet = Fleet(Plan(rule=FedIT(), privacy=privacy), model, tmp_path)
    ledger = Ledger(path=tmp_path / "ledger", max_rounds=2)
    assert "improvement" in judged(fleet, ledger=ledger)
    assert [(charge.round_id, dict(charge.mechanism)) for charge in ledger.charges()] == [
        ("0-1-0", {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": 1e-5}),
        ("0-1-0-improvement", {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-5}),
    ]
    with pytest.raises(PrivacyBudgetError):
        judged(fleet, ledger=Ledger(path=tmp_path / "other", max_rounds=1), device=1)
    assert not (tmp_path / "1" / "memory").exists()


def test_no_improvement_leaves_where_nobody_adds_noise_to_it(model: AdaptedModel, tmp_path: Path) -> None:
    privacy = DeviceLevel(clip_norm=0.5, noise_multiplier=2.0, delta=1e-5, placement="local", max_rounds=9, cohort=2)
    fleet = Fleet(Plan(rule=FedIT(), privacy=privacy), model, tmp_path)
    with pytest.raises(PrivacyError, match="without noise"):
        judged(fleet)
    assert not (tmp_path / "0" / "memory").exists()


@pytest.mark.parametrize("name", ["sketch", "fedsb", "fedkseed"])
def test_an_improvement_is_of_the_exchange_that_trains(name: str, model: AdaptedModel, tmp_path: Path) -> None:
    fleet = Fleet(Plan(rule=RULES[name]()), model, tmp_path)
    metrics = judged(fleet)
    assert (IMPROVEMENT in metrics) == (name != "fedsb"), "whose first round takes no step"
