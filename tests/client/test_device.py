"""The on-device loop, with the tiny model and people or an oracle who answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.annotation import Oracle
from client.device import Device, DeviceSettings
from client.dialogue import Annotation, Verdict
from client.evaluation import uncertainty
from client.model import BaseModel
from florilegium.errors import ConfigError, StorageError

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
        assert device._model.is_blank("personal")


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
    import torch

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
                device.learn()
            states.append(device._model.state("personal"))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def test_forgetting_what_was_never_seen_says_so(tmp_path: Path, tiny_model: BaseModel) -> None:
    with Device.open(make(tmp_path / "d"), model=tiny_model) as device:
        assert not device.forget("nobody")


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
    settings = DeviceSettings.parse({**SMALL, "adapter": {"target_modules": ["q_proj"], "top_layers": 1}})
    Device.create(tmp_path / "d", settings)
    assert DeviceSettings.load(tmp_path / "d" / "device.toml") == settings
