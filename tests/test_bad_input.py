"""What people and broken machines feed a device: each a sound result or one clear line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from client.device import Device, DeviceSettings
from client.dialogue import Annotation, Verdict
from client.model import BaseModel
from florilegium.errors import FlorilegiumError, InputError, StorageError

SETTINGS = {"bins": 24, "holdout_share": 0.3, "synthesizer": "none", "max_new_tokens": 4}
ODD_TEXTS = {
    "emoji": "🙂🏳️‍🌈👩‍👩‍👧‍👦 wo ist mein 🔑?",
    "right-to-left": "أين مفتاحي؟ \u202eإنه على الطاولة",
    "chinese": "我的钥匙在哪里？请再说一遍。",
    "control characters": "a\x00b\x1b[31mc\u200d",
    "special tokens": "<|user|><|end|><|assistant|> hi <|pad|>",
    "brackets": "[[[]]][",
    "one letter": "x",
}


@pytest.fixture
def device(tmp_path: Path, tiny_model: BaseModel) -> Iterator[Device]:
    Device.create(tmp_path / "d", DeviceSettings.parse(SETTINGS))
    with Device.open(tmp_path / "d", model=tiny_model) as opened:
        yield opened


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
def test_odd_text_is_answered_kept_and_learned_from(device: Device, text: str) -> None:
    for number in range(6):
        device.observe(f"{text} {number}", dialogue_id=f"d{number}")
        device.annotate(Annotation(dialogue_id=f"d{number}", verdict=Verdict.IDEAL, ideal=text))
    held = {item.dialogue.question for item in (*device.buffer.dialogues(), *device.buffer.heldout())}
    assert held == {f"{text} {number}" for number in range(6)}
    assert device.learn().outcome in {"promoted", "rejected", "no-holdout"}


def test_a_megabyte_in_one_turn_is_answered_and_not_kept(device: Device) -> None:
    seen = device.observe("Where is my key? " * 62_000)
    assert seen.decision.reason == "too-large"
    assert not device.buffer.dialogues()


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_empty_text_is_refused_and_nothing_is_stored(device: Device, text: str) -> None:
    with pytest.raises(InputError, match="question is empty"):
        device.observe(text)
    assert device.buffer.seen == 0


def test_a_lone_surrogate_is_refused_in_one_line(device: Device) -> None:
    for response in ("fine", None):
        with pytest.raises(InputError) as caught:
            device.observe("broken \ud800 text", response)
    assert "\n" not in str(caught.value)
    assert "broken" not in str(caught.value)


def fill(device: Device) -> list[str]:
    """Observe until the disk refuses; return what was acknowledged."""
    stored: list[str] = []
    with suppress(StorageError):
        while True:
            key = f"d{len(stored)}"
            device.observe(f"{key} " + "where is it? " * 200, "There.", dialogue_id=key)
            stored.append(key)
    with pytest.raises(StorageError, match=r"full|space"):
        device.observe("One more?" * 200, "No.")
    return stored


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_loses_nothing(tmp_path: Path, tiny_model: BaseModel) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        Device.create(
            disk / "d", DeviceSettings.parse({**SETTINGS, "bins": 1000, "holdout_share": 0.0, "policy": "fifo"})
        )
        with Device.open(disk / "d", model=tiny_model) as device:
            stored = fill(device)
            assert stored
            assert [item.dialogue.dialogue_id for item in device.buffer.dialogues()] == stored
        with Device.open(disk / "d", model=tiny_model) as device:
            assert [item.dialogue.dialogue_id for item in device.buffer.dialogues()] == stored
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_device_of_another_model_says_so(tmp_path: Path) -> None:
    Device.create(tmp_path / "d", DeviceSettings.parse({**SETTINGS, "model": str(tmp_path / "absent")}))
    with Device.open(tmp_path / "d") as device:
        assert device.status()["seen"] == 0, "what needs no model works without"
        with pytest.raises(FlorilegiumError, match="absent") as caught:
            device.observe("Where is it?")
    assert "\n" not in str(caught.value)
