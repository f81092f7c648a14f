"""A user's device in coordinated rounds: what it learns from, what it answers with, and kills at any write."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import tomli_w
import torch

import client.device
import client.member
import client.participant
from client.adapters import AdapterConfig, AdapterStore, fresh_adapter
from client.buffer import PrivateBuffer
from client.device import Device, DeviceSettings
from client.dialogue import Annotation, Verdict
from client.finetuning import FineTuneConfig
from client.member import DeviceMember
from client.participant import Assignment
from florilegium.errors import BusyError, StorageError
from florilegium.tensors import Tensors
from privacy.device_level import DeviceLevel
from privacy.ledger import Ledger, PrivacyBudgetError, RoundChargedError
from strategies.gathering import Shared, prepare
from strategies.personal import PERSONAL_WAYS
from strategies.plan import Plan
from strategies.rules import RULES

RANK, SCALE = 2, 2.0
CONFIG = FineTuneConfig(learning_rate=0.01, batch_size=4, dtype="float32")
IDEAL: Final = "It is the red box by the door."
PRIVATE: Final = DeviceLevel(clip_norm=1.0, noise_multiplier=1.0, delta=1e-5, max_rounds=3, cohort=1, placement="local")


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """Make a device whose user answered everything."""
    directory = tmp_path_factory.mktemp("prepared") / "d"
    Device.create(
        directory,
        DeviceSettings.parse(
            {
                "model": str(tiny_model_folder),
                "bins": 8,
                "holdout_share": 0.3,
                "synthesizer": "none",
                "max_new_tokens": 4,
                "adapter": {"rank": RANK, "alpha": SCALE * RANK, "top_layers": 1, "dropout": 0.0},
                "finetuning": {"epochs": 10, "batch_size": 4, "learning_rate": 0.01, "dtype": "float32"},
            }
        ),
    )
    with Device.open(directory, coordinated=True) as device:
        for number in range(16):
            device.observe(f"Where is box {number}?", "I do not know.", dialogue_id=f"d{number}")
        for item in [*device.buffer.dialogues(), *device.buffer.heldout()]:
            device.annotate(Annotation(dialogue_id=item.dialogue.dialogue_id, verdict=Verdict.IDEAL, ideal=IDEAL))
        device.buffer.set_meta("coordination_key", "the same for all copies")
    return directory


@pytest.fixture
def directory(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "d"))


def change(directory: Path, **changes: object) -> None:
    """Edit `device.toml`, as its owner would."""
    values = DeviceSettings.load(directory / "device.toml").model_dump(mode="json", exclude_none=True)
    (directory / "device.toml").write_text(tomli_w.dumps(values | changes))


def plan(*, personal: str | None = "dual", rule: str = "fedit", privacy: DeviceLevel | None = None) -> Plan:
    way = None if personal is None else PERSONAL_WAYS[personal]
    return Plan(rule=RULES[rule](), personal=way, privacy=privacy)


def task(directory: Path, fleet: Plan, *, number: int = 1, steps: int = 12, of: float = 0.0) -> Assignment:
    """Return what a server asks in a round; its B is `of` everywhere."""
    shape = AdapterConfig(rank=RANK, alpha=SCALE * RANK, top_layers=1, dropout=0.0)
    fresh = fresh_adapter(DeviceSettings.load(directory / "device.toml").model, shape, 3)
    start = {key: torch.full_like(each, of) if ".lora_B." in key else each for key, each in fresh.items()}
    assert fleet.rule is not None
    turn = fleet.turn(number, 0, rank=RANK, scale=SCALE)
    told = prepare(fleet, Shared(state=fleet.rule.start(start, turn)), turn, start)
    down = fleet.rule.down(fleet.rule.start(start, turn), turn)
    return Assignment(plan=fleet, turn=turn, down=down, agreement=told.agreement, steps=steps, finetuning=CONFIG, run=1)


def take_part(directory: Path, asked: Assignment) -> Tensors:
    """Do what the app does."""
    with DeviceMember(directory) as member:
        examples = member.examples(asked.turn.round)
        participant = member.participant(privacy=asked.plan.privacy)
        update, _ = participant.answer(asked, examples, member.holdout(asked.turn.round))
        member.choose(participant, asked)
    return update


def say(directory: Path) -> str:
    """Return what the device answers, which is not kept."""
    with Device.open(directory) as device:
        return device._answer("Where is box 3?").text


def test_what_the_gate_finds_no_worse_is_in_use_after_a_restart(directory: Path) -> None:
    bare = say(directory)
    take_part(directory, task(directory, plan()))
    with Device.open(directory) as device:
        assert device.worn == ("personal",)  # the shared adapter of a first round adds nothing
        assert device.status()["adapters_in_use"] == ["personal"]
    take_part(directory, task(directory, plan(), number=2, of=1e-3))
    with Device.open(directory, read_only=True) as device:
        assert device.worn == ("personal", "shared")
    answered = say(directory)
    assert answered == say(directory) != bare
    with Device.open(directory) as device:
        assert (device.roll_back(), device.worn) == (1, ("personal",))
        assert (device.roll_back(), device.worn) == (None, ())
    assert say(directory) == bare


def test_what_is_worse_than_the_device_s_own_adapter_is_not_in_use(directory: Path) -> None:
    with Device.open(directory) as device:
        assert device.learn().outcome == "promoted"
    before = say(directory)
    take_part(directory, task(directory, plan(personal=None), of=1e-3))
    with Device.open(directory) as device:
        assert (device.worn, device.adapters.numbers) == (("personal",), [1])
    assert say(directory) == before


def test_without_holdout_it_goes_on_as_before(directory: Path) -> None:
    with Device.open(directory) as device:
        for item in device.buffer.heldout():
            device.annotate(Annotation(dialogue_id=item.dialogue.dialogue_id, verdict=Verdict.SKIP))
    assert take_part(directory, task(directory, plan()))
    with Device.open(directory) as device:
        assert device.worn == ()


def test_it_learns_for_itself_from_what_it_got(directory: Path) -> None:
    """A round of its own is judged against the coordinated adapters, and starts beside them if it is set so."""
    change(directory, start="present")
    take_part(directory, task(directory, plan(), number=2, of=1e-3))
    with Device.open(directory) as device:
        present = dict(AdapterStore(directory / "adapters").version(1).metrics)
        report = device.learn()
        assert present["outcome"] == "promoted"
        assert report.outcome == "promoted"
        assert report.candidate is not None
        assert report.present is not None
        assert report.candidate.nll_per_token <= report.present.nll_per_token
        assert device.worn == ("personal", "shared")
    change(directory, start="fresh")
    with Device.open(directory) as device:
        assert device.learn().present == report.candidate
        newest = device.adapters.numbers[-1]
        assert device.adapters.version(newest).slots == ("personal",)


def test_a_kill_at_any_write_changes_nothing(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = task(directory, plan(), number=2, of=1e-3)
    whole = Path(shutil.copytree(directory, tmp_path / "whole"))
    expected, in_use = take_part(whole, asked), say(whole)
    writes: list[tuple[object, str]] = [
        (client.participant, "write_sections"),
        (AdapterStore, "save_candidate"),
        (AdapterStore, "promote"),
        (AdapterStore, "prune"),
        (PrivateBuffer, "set_meta"),
    ]
    for position, (owner, name) in enumerate(writes):
        for when in ("before", "after"):
            killed = Path(shutil.copytree(directory, tmp_path / f"{position}-{when}"))
            with monkeypatch.context() as patched:
                patched.setattr(owner, name, dying(getattr(owner, name), when))
                with pytest.raises(Killed):
                    take_part(killed, asked)
            again = take_part(killed, asked)
            assert all(torch.equal(tensor, again[key]) for key, tensor in expected.items()), (name, when)
            assert say(killed) == in_use
            with Device.open(killed) as device:
                assert device.worn == ("personal", "shared")
                assert device.roll_back() is None, "it was put in use once"


def dying(function: Callable[..., object], when: str) -> Callable[..., object]:
    def call(*arguments: object, **named: object) -> object:
        if when == "after":
            function(*arguments, **named)
        raise Killed

    return call


def test_a_private_release_is_booked_before_it_and_never_given_back(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = task(directory, plan(personal=None, privacy=PRIVATE))
    with monkeypatch.context() as patched:
        patched.setattr(client.participant, "write_sections", dying(lambda: None, "before"))
        with pytest.raises(Killed):
            take_part(directory, asked)
    ledger = Ledger(path=directory / "coordination" / "ledger", max_rounds=3)
    assert ledger.spent == 1
    with pytest.raises(RoundChargedError):  # another draw of noise would tell more than was booked
        take_part(directory, asked)
    following = replace(asked, turn=replace(asked.turn, round=2))
    sent = take_part(directory, following)
    assert all(torch.equal(tensor, sent[key]) for key, tensor in take_part(directory, following).items())
    assert ledger.spent == 2
    change(directory, coordination={"max_releases": 2})
    with pytest.raises(PrivacyBudgetError):
        take_part(directory, replace(asked, turn=replace(asked.turn, round=3)))
    with pytest.raises(PrivacyBudgetError):  # nor under a plan that asks for no privacy
        take_part(directory, replace(asked, plan=plan(personal=None), turn=replace(asked.turn, round=3)))
    with Device.open(directory) as device:
        assert device.forget("d1")
    assert ledger.spent == 2


def test_forgetting_deletes_what_learned_in_coordinated_rounds(directory: Path) -> None:
    take_part(directory, task(directory, plan()))
    with Device.open(directory) as device:
        held = device.buffer.dialogues()[0].dialogue.dialogue_id
        assert device.memory.exists()
        assert device.forget(held)
        assert (device.memory.exists(), device.worn, device.adapters.numbers) == (False, (), [])


def test_other_adapters_begin_as_a_new_device(directory: Path) -> None:
    take_part(directory, task(directory, plan()))
    shape = {"rank": RANK, "alpha": SCALE * RANK, "dropout": 0.0}  # in all layers
    change(directory, adapter=shape)
    with DeviceMember(directory) as member:
        assert not member.participant().has_personal
    assert say(directory)


def test_a_device_in_use_is_busy_and_still_says_its_rank(directory: Path) -> None:
    with Device.open(directory), DeviceMember(directory) as member:
        assert member.shape.rank == RANK
        with pytest.raises(BusyError):
            member.examples(1)
    with DeviceMember(directory) as member:
        assert member.examples(1)
        with pytest.raises(BusyError):
            Device.open(directory)
    Device.open(directory).close()


def test_a_directory_without_a_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is no device"):
        DeviceMember(tmp_path)
