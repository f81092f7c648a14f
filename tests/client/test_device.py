"""The on-device loop, with the tiny model and people or an oracle who answer."""

from __future__ import annotations

import copy
import json
import math
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from client.annotation import Oracle
from client.device import Device, DeviceSettings
from client.dialogue import Annotation, Example, Verdict
from client.evaluation import uncertainty
from client.finetuning import Progress
from client.model import BaseModel
from client.synthesis import Synthesis
from florilegium.errors import ConfigError, MemoryBudgetError, StorageError

SMALL = {
    "bins": 8,
    "round_every": 10,
    "holdout_share": 0.3,
    "synthesizer": "none",
    "max_new_tokens": 4,
    "finetuning": {"epochs": 10, "batch_size": 4, "learning_rate": 0.01},
}
IDEALS = dict.fromkeys((*(f"d{number}" for number in range(40)), "first", "again"), "It is the red box by the door.")


def make(directory: Path, **changes: object) -> Path:
    Device.create(directory, DeviceSettings.parse({**SMALL, **changes}))
    return directory


def change(directory: Path, **changes: object) -> None:
    """Edit `device.toml`, as its owner would."""
    settings = DeviceSettings.parse({**SMALL, **changes})
    (directory / "device.toml").write_text(tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))


def feed(device: Device, first: int, last: int) -> None:
    for number in range(first, last):
        device.observe(f"Where is box {number}?", "I do not know.", dialogue_id=f"d{number}")


def test_a_device_learns_what_its_user_wants(tmp_path: Path, tiny_model: BaseModel) -> None:
    with Device.open(make(tmp_path / "d"), model=tiny_model, annotator=Oracle(IDEALS)) as device:
        feed(device, 0, 20)
        report = device.learn()
        assert report.outcome == "promoted"
        assert report.present is not None
        assert report.candidate is not None
        assert report.candidate.nll_per_token < report.present.nll_per_token
        assert device.adapters.current == report.version == 1


def test_a_learned_adapter_is_in_use_after_a_restart(tmp_path: Path, tiny_model: BaseModel) -> None:
    directory = make(tmp_path / "d")
    with Device.open(directory, model=tiny_model, annotator=Oracle(IDEALS)) as device:
        feed(device, 0, 20)
        before = device.observe("Where is box 99?", dialogue_id="first").dialogue.response
        assert device.learn().outcome == "promoted"
        after = device.observe("Where is box 99?").dialogue.response
    with Device.open(directory, model=tiny_model) as device:
        assert device.observe("Where is box 99?").dialogue.response == after != before


def test_embeddings_do_not_depend_on_the_adapter(tmp_path: Path, tiny_model: BaseModel) -> None:
    with Device.open(make(tmp_path / "d", holdout_share=0.3), model=tiny_model, annotator=Oracle(IDEALS)) as device:
        feed(device, 0, 20)
        device.learn()
        assert device.adapters.current == 1
        fresh = device.observe("Where is box 3?", "I do not know.", dialogue_id="again")
        old = next(item for item in device.buffer.dialogues() if item.dialogue.question != "Where is box 3?")
        (bare,) = tiny_model.embed([old.dialogue])
        # Stored vectors have half precision.
        assert float(bare.vector @ old.scored.vector) == pytest.approx(1.0, abs=2e-3)
        assert fresh.dialogue.dialogue_id == "again"


def test_a_worse_candidate_is_rolled_back(tmp_path: Path, tiny_model: BaseModel) -> None:
    """What the device trains on contradicts its hold-out, so the better it learns, the worse the hold-out fares."""
    ideals = dict.fromkeys(IDEALS, "zzz zzz zzz zzz zzz zzz")
    with Device.open(make(tmp_path / "d"), model=tiny_model, annotator=Oracle(ideals)) as device:
        feed(device, 0, 20)
        ideals |= {item.dialogue.dialogue_id: "My keys hang in the hall." for item in device.buffer.heldout()}
        report = device.learn()
        assert report.outcome == "rejected"
        assert report.present is not None
        assert report.candidate is not None
        assert report.candidate.nll_per_token > report.present.nll_per_token
        assert [version.metrics["outcome"] for version in device.adapters.versions()] == ["rejected"]
        assert device.adapters.current is None
        assert device._model.adapted.is_blank("personal")


def test_without_holdout_nothing_is_promoted(tmp_path: Path, tiny_model: BaseModel) -> None:
    with Device.open(make(tmp_path / "d", holdout_share=0.0), model=tiny_model, annotator=Oracle(IDEALS)) as device:
        feed(device, 0, 12)
        assert device.learn().outcome == "no-holdout"
        assert device.adapters.current is None


def test_without_answers_nothing_is_trained(tmp_path: Path, tiny_model: BaseModel) -> None:
    with Device.open(make(tmp_path / "d"), model=tiny_model) as device:
        feed(device, 0, 12)
        report = device.learn()
        assert (report.outcome, report.originals) == ("nothing-annotated", 0)
        assert report.asked == len(device.buffer.pending()) > 0


def test_a_round_asks_first_about_what_the_model_is_unsure_of(tmp_path: Path, tiny_model: BaseModel) -> None:
    directory = make(tmp_path / "d", annotation="informative", annotation_budget=1, holdout_share=0.0)
    with Device.open(directory, model=tiny_model) as device:
        feed(device, 0, 6)
        held = [item.dialogue for item in device.buffer.dialogues()]
        device.learn()
        (asked,) = device.buffer.pending()
        values = dict(zip((each.dialogue_id for each in held), uncertainty(tiny_model, held), strict=True))
        assert asked.dialogue.dialogue_id == max(values, key=values.__getitem__)


def test_people_answer_later(tmp_path: Path, tiny_model: BaseModel) -> None:
    directory = make(tmp_path / "d")
    with Device.open(directory, model=tiny_model) as device:
        feed(device, 0, 20)
        device.learn()
    with Device.open(directory, model=tiny_model) as device:
        for item in device.buffer.pending():
            key = item.dialogue.dialogue_id
            assert device.annotate(Annotation(dialogue_id=key, verdict=Verdict.IDEAL, ideal=IDEALS[key]))
        assert not device.buffer.pending()
        assert device.learn().outcome == "promoted"


def test_a_round_is_due_after_so_many_dialogues(tmp_path: Path, tiny_model: BaseModel) -> None:
    with Device.open(make(tmp_path / "d"), model=tiny_model, annotator=Oracle(IDEALS)) as device:
        feed(device, 0, 9)
        assert not device.due
        feed(device, 9, 10)
        assert device.due
        device.learn()
        assert not device.due


def test_an_edited_reply_is_an_ideal_answer(tmp_path: Path, tiny_model: BaseModel) -> None:
    with Device.open(make(tmp_path / "d", holdout_share=0.0), model=tiny_model) as device:
        seen = device.observe("Where is the box?")
        assert device.edit(seen.dialogue, "By the door.")
        annotation = device.buffer.annotation(seen.dialogue.dialogue_id)
        assert annotation is not None
        assert (annotation.verdict, annotation.ideal, annotation.origin) == ("ideal", "By the door.", "edited")


@pytest.mark.parametrize("holdout_share", [0.0, 0.5])
def test_an_edited_reply_is_kept_even_if_selection_dropped_it(
    tmp_path: Path, tiny_model: BaseModel, holdout_share: float
) -> None:
    directory = make(tmp_path / "d", bins=2, policy="eoe", holdout_share=holdout_share)
    with Device.open(directory, model=tiny_model) as device:
        seen = [device.observe(f"Where is box {number}?", dialogue_id=f"d{number}") for number in range(12)]
        dropped = [each.dialogue for each in seen if each.decision.action == "drop"]
        assert dropped
        for dialogue in dropped:
            assert device.edit(dialogue, "By the door.")
            held = [*device.buffer.dialogues(), *device.buffer.heldout()]
            assert dialogue.dialogue_id in {item.dialogue.dialogue_id for item in held}
            assert device.buffer.decisions(dialogue.dialogue_id)[0].decision.action != "drop"
        assert len(device.buffer) <= 2


def test_an_edited_reply_that_fits_no_bin_is_refused(tmp_path: Path, tiny_model: BaseModel) -> None:
    with Device.open(make(tmp_path / "d", bin_kilobytes=1), model=tiny_model) as device:
        seen = device.observe("Where? " * 200, "I do not know.")
        assert seen.decision.reason == "too-large"
        assert not device.edit(seen.dialogue, "By the door.")


def test_a_regenerated_response_is_another_dialogue_and_the_first_is_asked_about(
    tmp_path: Path, tiny_model: BaseModel
) -> None:
    with Device.open(make(tmp_path / "d", holdout_share=0.0), model=tiny_model) as device:
        first = device.observe("Where is the box?", dialogue_id="d0").dialogue
        again = device.regenerate(first).dialogue
        assert again.dialogue_id != first.dialogue_id
        assert again.response != first.response
        assert device.regenerate(first).dialogue == again
        annotation = device.buffer.annotation("d0")
        assert annotation is not None
        assert annotation.origin == "regenerated"


def test_training_without_a_forgotten_dialogue_equals_never_having_had_it(
    tmp_path: Path, tiny_model: BaseModel
) -> None:
    states = []
    for name, numbers in (("with", range(7)), ("without", (0, 1, 3, 4, 5, 6))):
        directory = make(tmp_path / name, holdout_share=0.3, synthesizer="questions", synthesis_count=1)
        with Device.open(directory, model=tiny_model, annotator=Oracle(IDEALS)) as device:
            for number in numbers:
                device.observe(f"Where is box {number}?", "I do not know.", dialogue_id=f"d{number}")
            device.learn()
            if name == "with":
                assert device.forget("d2")
                assert device.adapters.current is None
                assert device.due
                device.learn()
                assert not device.due
            states.append(device._model.adapted.state("personal"))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def test_forgetting_what_was_never_seen_says_so(tmp_path: Path, tiny_model: BaseModel) -> None:
    with Device.open(make(tmp_path / "d"), model=tiny_model) as device:
        assert not device.forget("nobody")
        assert not device.due


def test_forgetting_takes_the_responses_that_were_drawn_instead_with_it(tmp_path: Path, tiny_model: BaseModel) -> None:
    with Device.open(make(tmp_path / "d", policy="fifo", holdout_share=0.0), model=tiny_model) as device:
        redrawn = [device.observe("Where is the blue box?", dialogue_id="d0").dialogue]
        for _ in range(3):
            redrawn.append(device.regenerate(redrawn[-1]).dialogue)
        feed(device, 1, 3)
        device.buffer.forget(redrawn[1].dialogue_id)  # a gap in the chain
        assert device.forget("d0")
        assert [item.dialogue.dialogue_id for item in device.buffer.dialogues()] == ["d1", "d2"]
    assert not any(b"blue box" in file.read_bytes() for file in (tmp_path / "d").iterdir() if file.is_file())


class Killed(BaseException):
    """The end of the process, as the code sees it."""


@contextmanager
def learned(directory: Path, model: BaseModel) -> Iterator[Device]:
    """Open a device that has promoted an adapter."""
    with Device.open(make(directory), model=model, annotator=Oracle(IDEALS)) as device:
        feed(device, 0, 20)
        assert device.learn().outcome == "promoted"
        yield device


@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")], ids=["killed", "failing disk"])
@pytest.mark.parametrize(
    "place",
    [
        "client.storage.Database.scrub",
        "client.device.AdapterStore.clear",
        "client.adapter_store._remove",
        "client.device.shutil.rmtree",
        "client.device.PrivateBuffer.set_meta",
    ],
)
def test_a_forgetting_that_is_cut_short_is_ended_by_the_next_opening_or_call(
    tmp_path: Path, tiny_model: BaseModel, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    directory = tmp_path / "d"
    with learned(directory, tiny_model) as device, monkeypatch.context() as patched:
        for name in ("finetuning.pt", ".finetuning.pt.new"):
            (directory / "round" / name).write_text("weights")
        patched.setattr(place, fail)
        with pytest.raises((Killed, OSError, StorageError)):
            device.forget("d3")
    with Device.open(directory, model=tiny_model) as device:
        assert not device.buffer.decisions("d3")
        assert (device.adapters.current, device.adapters.numbers, device.due) == (None, [], True)
        assert not [*directory.rglob("*.safetensors"), *directory.rglob("*finetuning*")]
        assert device._model.adapted.is_blank("personal")
        assert not device.forget("d3")


def test_drafts_of_a_killed_process_are_removed(tmp_path: Path, tiny_model: BaseModel) -> None:
    drafts = [tmp_path / "d" / name for name in (".device.toml.new", "round/.finetuning.pt.new", "adapters/.x.new")]
    with Device.open(make(tmp_path / "d"), model=tiny_model):
        (tmp_path / "d" / "round").mkdir()
        for draft in drafts:
            draft.write_text("what was written")
    with Device.open(tmp_path / "d", read_only=True):
        assert all(draft.exists() for draft in drafts), "another process may be writing them"
    with Device.open(tmp_path / "d", model=tiny_model):
        assert not any(draft.exists() for draft in drafts)


# --- strength --------------------------------------------------------------------------------------------------------

OVERFIT = {"epochs": 60, "batch_size": 4, "learning_rate": 0.02}


def divided(directory: Path, model: BaseModel, **changes: object) -> Device:
    """Open a device that learns one answer by heart while its hold-out wants one that begins alike."""
    ideals = dict(IDEALS)
    make(directory, **changes)
    device = Device.open(directory, model=model, annotator=Oracle(ideals))
    feed(device, 0, 20)
    ideals |= {item.dialogue.dialogue_id: "It is the blue box in the hall." for item in device.buffer.heldout()}
    return device


def tensors(device: Device, version: int) -> dict[str, torch.Tensor]:
    return load_file(device.adapters.version(version).path / "personal" / "adapter_model.safetensors")


def test_a_candidate_that_learned_too_much_is_used_at_a_lower_strength(tmp_path: Path, tiny_model: BaseModel) -> None:
    with divided(tmp_path / "whole", tiny_model, finetuning=OVERFIT, gate={"strengths": [1.0]}) as device:
        assert device.learn().strength == 1.0
        trained, nll = tensors(device, 1), device.adapters.version(1).metrics["nll_per_token"]
    with divided(tmp_path / "part", tiny_model, finetuning=OVERFIT) as device:
        report = device.learn()
        assert (report.outcome, report.strength) == ("promoted", 0.25)
        metrics = device.adapters.version(1).metrics
        assert metrics["strength"] == 0.25
        assert float(metrics["nll_per_token"] or 0) < float(nll or 0) - 0.5
        for key, tensor in tensors(device, 1).items():
            assert torch.equal(tensor, trained[key] * (0.25 if ".lora_B." in key else 1.0))
            assert torch.equal(tensor, device._model.adapted.state("personal")[key])


def test_a_round_that_goes_on_is_taken_back_towards_the_present_adapter(tmp_path: Path, tiny_model: BaseModel) -> None:
    changes = {"start": "present", "gate": {"strengths": [1.0]}}
    with Device.open(make(tmp_path / "whole", **changes), model=tiny_model, annotator=Oracle(IDEALS)) as device:
        feed(device, 0, 20)
        assert device.learn().outcome == "promoted"
        feed(device, 20, 30)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    change(tmp_path / "part", **changes | {"gate": {"strengths": [0.5]}})
    found = {}
    for name in ("whole", "part"):
        with Device.open(tmp_path / name, model=tiny_model, annotator=Oracle(IDEALS)) as device:
            device.learn()
            found[name], present = tensors(device, 2), tensors(device, 1)
    for key, tensor in found["part"].items():
        assert torch.allclose(tensor, (present[key] + found["whole"][key]) / 2, atol=1e-7)
        assert not torch.equal(tensor, found["whole"][key])


@pytest.mark.parametrize("start", ["fresh", "present"])
@pytest.mark.parametrize("place", ["client.gate.Gate.choose_strength", "client.device.AdapterStore.save_candidate"])
def test_a_round_that_was_killed_at_the_gate_chooses_the_same_again(
    tmp_path: Path, tiny_model: BaseModel, monkeypatch: pytest.MonkeyPatch, start: str, place: str
) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    with divided(tmp_path / "quiet", tiny_model, start=start) as device:
        report, adapter = device.learn(), tensors(device, 1)
    with divided(tmp_path / "killed", tiny_model, start=start) as device, monkeypatch.context() as patched:
        patched.setattr(place, die)
        with pytest.raises(Killed):
            device.learn()
        answers = device._annotator
    with Device.open(tmp_path / "killed", model=tiny_model, annotator=answers) as device:
        again = device.learn()
        assert (again.outcome, again.strength, again.candidate) == (report.outcome, 0.5, report.candidate)
        assert all(torch.equal(tensor, adapter[key]) for key, tensor in tensors(device, 1).items())


# --- rounds that do not end well -------------------------------------------------------------------------------------


def fail_with(error: BaseException) -> Callable[[Progress], None]:
    def progress(_: Progress) -> None:
        raise error

    return progress


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (MemoryBudgetError, {"memory_mb": 1}),
        (KeyboardInterrupt, {"progress": fail_with(KeyboardInterrupt())}),
        (StorageError, {"progress": fail_with(StorageError("the disk is full"))}),
    ],
)
def test_a_round_that_fails_leaves_the_adapter_in_use(
    tmp_path: Path, tiny_model: BaseModel, error: type[BaseException], arguments: dict[str, object]
) -> None:
    with learned(tmp_path / "d", tiny_model) as device:
        before = device._model.adapted.flat("personal").clone()
        feed(device, 20, 30)
        with pytest.raises(error):
            device.learn(**arguments)  # type: ignore[arg-type]
        assert torch.equal(device._model.adapted.flat("personal"), before)
        assert device.due, "the round is still to be done"


@pytest.mark.parametrize("start", ["fresh", "present"])
@pytest.mark.parametrize("place", ["client.device.AdapterStore.promote", "client.device.PrivateBuffer.update_meta"])
def test_a_round_that_was_killed_after_training_does_not_train_again(
    tmp_path: Path, tiny_model: BaseModel, monkeypatch: pytest.MonkeyPatch, start: str, place: str
) -> None:
    def die(_: object, values: object) -> None:
        if isinstance(values, int) or "round" in values:  # type: ignore[operator]
            raise Killed

    directory = make(tmp_path / "d", start=start)
    with Device.open(directory, model=tiny_model, annotator=Oracle(IDEALS)) as device, monkeypatch.context() as patched:
        feed(device, 0, 20)
        patched.setattr(place, die)
        with pytest.raises(Killed):
            device.learn()
    with Device.open(directory, model=tiny_model, annotator=Oracle(IDEALS)) as device:
        assert (device.due, device.status()["rounds"]) == (True, 0)
        trained = next(directory.rglob("*.safetensors")).read_bytes()
        report = device.learn()
        assert (report.number, report.outcome, report.version, report.training) == (1, "promoted", 1, None)
        assert report.strength == device.adapters.version(1).metrics["strength"]
        assert [path.read_bytes() for path in directory.rglob("*.safetensors")] == [trained]
        assert (device.due, device.status()["rounds"]) == (False, 1)
        feed(device, 20, 30)
        assert device.learn().training is not None, "the next round is another one"


def test_a_report_is_numbers_that_json_knows(tmp_path: Path, tiny_model: BaseModel) -> None:
    directory = make(tmp_path / "d", synthesizer="questions", synthesis_count=1)
    with Device.open(directory, model=tiny_model, annotator=Oracle(IDEALS)) as device:
        feed(device, 0, 12)
        report = json.loads(json.dumps(asdict(device.learn())))
        assert all(count > 0 for count in report["drops"].values())
        assert report["drops"]


# --- synthesis -------------------------------------------------------------------------------------------------------


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Put a synthesizer in place of all: one child of its own and one too large; return the temperatures asked for."""
    told: list[float] = []

    def write(_: BaseModel, examples: Sequence[Example], *, temperature: float, **__: object) -> list[Synthesis]:
        (example,) = examples
        told.append(temperature)
        texts = (f"And {example.question} At {temperature}?", "Where? " * 9999)
        children = [
            replace(example, question=text, example_id=f"{example.source_id}-{n}") for n, text in enumerate(texts)
        ]
        return [Synthesis(children=tuple(children), drops=Counter())]

    monkeypatch.setattr("client.rows.SYNTHESIZERS", {"questions": write, "none": lambda *_, **__: [NOTHING]})
    return told


NOTHING = Synthesis(children=(), drops=Counter())


def test_a_child_that_fits_no_bin_is_dropped_and_learning_goes_on(
    tmp_path: Path, tiny_model: BaseModel, writer: list[float]
) -> None:
    directory = make(tmp_path / "d", synthesizer="questions")
    with Device.open(directory, model=tiny_model, annotator=Oracle(IDEALS)) as device:
        feed(device, 0, 20)
        for _ in range(2):
            report = device.learn()
            assert report.outcome in {"promoted", "rejected"}
            assert report.synthesized == report.originals == report.drops["too-long"] > 0
        assert len(writer) == report.originals, "what was written stays"


def test_children_follow_the_settings_of_synthesis(tmp_path: Path, tiny_model: BaseModel, writer: list[float]) -> None:
    directory = make(tmp_path / "d", synthesizer="questions")
    for settings, synthesized in (
        ({"synthesizer": "questions"}, True),
        ({"synthesizer": "questions", "synthesis_temperature": 0.25}, True),
        ({"synthesizer": "none"}, False),
    ):
        change(directory, **settings)
        with Device.open(directory, model=tiny_model, annotator=Oracle(IDEALS)) as device:
            feed(device, 0, 12)
            assert bool(device.learn().synthesized) == synthesized
            assert not device.buffer.children("d0") or str(writer[-1]) in device.buffer.children("d0")[0].question
    assert Counter(writer).keys() == {0.7, 0.25}


# --- settings that change --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [{"rank": 4}, {"alpha": 8.0}, {"target_modules": ["q_proj"]}])
def test_an_adapter_of_another_shape_gives_way_to_the_bare_base(
    tmp_path: Path, tiny_model: BaseModel, adapter: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "d"
    with learned(directory, tiny_model):
        pass
    change(directory, adapter=adapter)
    with Device.open(directory, model=tiny_model, annotator=Oracle(IDEALS)) as device:
        assert (device.adapters.current, device.due) == (1, False)
        device.load()
        assert (device.adapters.current, device.due) == (None, True)
        assert device._model.adapted.is_blank("personal")
        assert device.learn().outcome == "promoted"
    (message,) = [record.getMessage() for record in caplog.records]
    assert "adapter version 1 is of another base model or shape" in message
    with Device.open(directory, model=tiny_model) as device:
        device.load()
        assert device.adapters.current == 2
        assert device.roll_back() is None
        assert device.forget("d0")


def test_another_base_model_embeds_again_and_starts_over(
    tmp_path: Path, tiny_model: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "d"
    with learned(directory, tiny_model):
        pass
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter.mul_(1.5)
    with Device.open(directory, model=other, annotator=Oracle(IDEALS)) as device:
        device.load()
        assert len(caplog.records) == 2
        assert (device.adapters.current, device.due) == (None, True)
        for item in [*device.buffer.dialogues(), *device.buffer.heldout()]:
            (bare,) = other.embed([item.dialogue])
            assert float(bare.vector @ item.scored.vector) == pytest.approx(1.0, abs=2e-3)
        assert device.learn().originals > 0, "what was answered stays"
    with Device.open(directory, model=other) as device:
        device.load()
        assert len(caplog.records) == 2


def test_with_fewer_bins_a_device_goes_on(tmp_path: Path, tiny_model: BaseModel) -> None:
    with Device.open(make(tmp_path / "d", policy="fifo"), model=tiny_model) as device:
        feed(device, 0, 20)
        newest = [item.dialogue.dialogue_id for item in device.buffer.dialogues()][-2:]
    change(tmp_path / "d", policy="fifo", bins=2)
    with Device.open(tmp_path / "d", model=tiny_model) as device:
        assert [item.dialogue.dialogue_id for item in device.buffer.dialogues()] == newest
        assert len(device.buffer.heldout()) == 1


def test_a_device_has_lexicons_of_its_own(tmp_path: Path, tiny_model: BaseModel) -> None:
    (make(tmp_path / "d", holdout_share=0.0, eoe="histogram") / "lexicons").mkdir()
    (tmp_path / "d" / "lexicons" / "things.txt").write_text("box\n")
    with Device.open(tmp_path / "d", model=tiny_model) as device:
        seen = device.observe("Where is the box?", "There.")
        (item,) = device.buffer.dialogues()
        (embedding,) = tiny_model.embed([seen.dialogue])
        assert item.scored.domain == "things"
        assert item.scored.eoe == pytest.approx(embedding.eoe_histogram)


# --- opening ---------------------------------------------------------------------------------------------------------


def test_what_needs_no_model_loads_none(tmp_path: Path, tiny_model: BaseModel) -> None:
    directory = tmp_path / "d"
    with learned(directory, tiny_model) as device:
        device.learn()
    change(directory, model=str(tmp_path / "absent"))
    with Device.open(directory) as device:
        assert device.roll_back() == 1
        assert device.annotate(Annotation(dialogue_id="d19", verdict=Verdict.SKIP)) in {True, False}
        assert device.forget("d0")
        assert device.status()["adapter_version"] is None


def test_others_look_while_one_has_the_device(tmp_path: Path, tiny_model: BaseModel) -> None:
    change_nothing = "is closed, or open for looking only"
    with learned(tmp_path / "d", tiny_model) as device:
        with Device.open(tmp_path / "d", model=tiny_model, read_only=True) as reader:
            assert reader.status() == device.status()
            assert [item.dialogue for item in reader.buffer.dialogues()] == [
                item.dialogue for item in device.buffer.dialogues()
            ]
            with pytest.raises(StorageError, match=change_nothing):
                reader.observe("Where is it?", "There.")
        with pytest.raises(StorageError, match="in use by process"):
            Device.open(tmp_path / "d")
        device.observe("Where is it?")
    with pytest.raises(StorageError, match=change_nothing):
        device.observe("Where is it?")


def test_looking_at_a_device_that_never_ran(tmp_path: Path) -> None:
    with Device.open(make(tmp_path / "d"), read_only=True) as device:
        assert device.status()["seen"] == 0


def test_a_failed_start_leaves_the_model_to_the_next_one(tmp_path: Path, tiny_model: BaseModel) -> None:
    with learned(tmp_path / "d", tiny_model):
        next((tmp_path / "d").rglob("*.safetensors")).write_text("nonsense")
    for _ in range(2):
        with (
            Device.open(tmp_path / "d", model=tiny_model) as device,
            pytest.raises(StorageError, match="roll back to another version"),
        ):
            device.observe("Where is it?")
    with Device.open(tmp_path / "d", model=tiny_model) as device:
        assert device.roll_back() is None
        device.observe("Where is it?")


def test_two_devices_cannot_wear_one_model_at_a_time_but_in_turn(tmp_path: Path, tiny_model: BaseModel) -> None:
    with Device.open(make(tmp_path / "a"), model=tiny_model) as first:
        first.observe("Where is it?")
        with Device.open(make(tmp_path / "b"), model=tiny_model) as second:
            with pytest.raises(ConfigError, match="close the device"):
                second.observe("Where is it?")
            first.close()
            second.observe("Where is it?")


# --- threads ---------------------------------------------------------------------------------------------------------


def test_what_is_said_during_training_waits_and_changes_nothing(tmp_path: Path, tiny_model: BaseModel) -> None:
    def say() -> None:
        seen.append(device.observe("Where is my hat?", dialogue_id="first").dialogue.response)

    def progress(step: Progress) -> None:
        if step.step == 1:
            thread.start()
            thread.join(0.2)
        assert not seen, "the model is being trained"

    states, seen = [], list[str]()
    for name, follow in (("quiet", None), ("busy", progress)):
        with Device.open(make(tmp_path / name), model=tiny_model, annotator=Oracle(IDEALS)) as device:
            thread = threading.Thread(target=say)
            feed(device, 0, 20)
            assert device.learn(progress=follow).outcome == "promoted"
            if follow:
                thread.join()
            states.append(device._model.adapted.state("personal"))
            (answer,) = seen or [""]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    assert answer == seen[0]


def test_closing_leaves_the_base_as_it_was(tmp_path: Path, tiny_model: BaseModel) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    with Device.open(make(tmp_path / "d"), model=tiny_model, annotator=Oracle(IDEALS)) as device:
        feed(device, 0, 12)
        device.learn()
    after = tiny_model.module.state_dict()
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_a_directory_that_is_no_device_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is no device; make one"):
        Device.open(tmp_path)


def test_a_device_is_not_made_twice(tmp_path: Path) -> None:
    make(tmp_path / "d")
    with pytest.raises(ConfigError, match="is a device already"):
        Device.create(tmp_path / "d")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "papr"}, r"policy = 'papr' is refused: must be one of .*paper"),
        ({"adapter": {"rnk": 4}}, r"unknown key 'adapter\.rnk'; did you mean 'rank'"),
        ({"adapter": {"rank": 0}}, r"rank must be >= 1, got 0"),
        ({"bins": 0}, r"bins = 0 is refused"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        DeviceSettings.parse(settings)
    assert "\n" not in str(caught.value)


def test_settings_survive_the_file(tmp_path: Path) -> None:
    changes = {"adapter": {"target_modules": ["q_proj"], "top_layers": 1}, "finetuning": {"clip_norm": math.inf}}
    settings = DeviceSettings.parse({**SMALL, **changes, "device": "cpu", "eoe": "histogram"})
    Device.create(tmp_path / "d", settings)
    assert DeviceSettings.load(tmp_path / "d" / "device.toml") == settings
