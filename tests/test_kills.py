"""A device loop that is killed at random moments loses nothing it acknowledged, and goes on.

The loop runs in a process of its own, forked from a server that has torch loaded, and writes to a pipe after every call
that returned. The parent kills it (SIGKILL), opens the directory and looks for what was acknowledged.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from peft import PeftModel

from client.device import Device, DeviceSettings
from client.dialogue import Annotation, Origin, Verdict
from client.model import load_model

KILLS = 200
LONGEST_LIFE_SECONDS = 1.5
STARTS = 0.2  # share of the kills that may come while a device is being opened
LONGEST_START_SECONDS = 60.0


def settings(model: Path) -> DeviceSettings:
    return DeviceSettings.parse(
        {
            "model": str(model),
            "bins": 8,
            "round_every": 12,
            "synthesis_count": 1,
            "max_new_tokens": 6,
            "holdout_share": 0.3,
            "finetuning": {"epochs": 2, "batch_size": 4},
        }
    )


def run_device(directory: Path, first: int, pipe: Connection) -> None:
    """Observe, annotate and learn until killed, saying what is done after it is done."""
    import torch

    torch.set_num_threads(1)
    with Device.open(directory) as device:
        device.load()
        pipe.send(("open", "", ""))
        number = first
        while True:
            seen = device.observe(
                f"What is fact {number} of {number % 7}?", f"It is {number}.", dialogue_id=f"d{number}"
            )
            pipe.send(("dialogue", f"d{number}", seen.decision.action))
            if number % 3 == 0:
                annotation = Annotation(
                    dialogue_id=f"d{number}", verdict=Verdict.IDEAL, ideal=f"Fact {number}.", origin=Origin.EDITED
                )
                if device.annotate(annotation):
                    pipe.send(("annotation", f"d{number}", f"Fact {number}."))
            if device.due:
                device.learn()
                pipe.send(("round", "", ""))
            number += 1


def check(directory: Path, acknowledged: list[tuple[str, str, str]]) -> None:
    """Look for everything that was acknowledged, and load the adapter in use."""
    with Device.open(directory) as device:
        held = {item.dialogue.dialogue_id for item in [*device.buffer.dialogues(), *device.buffer.heldout()]}
        replaced = {entry.decision.victim_id for entry in device.buffer.decisions(limit=100_000)}
        for kind, key, value in acknowledged:
            if kind == "dialogue":
                assert device.buffer.decisions(key), f"the decision on {key} is lost"
                if value in ("keep", "replace"):
                    assert key in held | replaced, f"{key} was kept and is neither held nor replaced"
            elif kind == "annotation" and key in held:
                annotation = device.buffer.annotation(key)
                assert annotation is not None, f"the annotation of {key} is lost"
                assert annotation.ideal == value
        current = device.adapters.current
        folder = None if current is None else device.adapters.version(current).path / "personal"
    if folder is not None:
        base = load_model(device.settings.model).module
        PeftModel.from_pretrained(base, str(folder)).unload()


def kill_many_times(directory: Path, model: Path, kills: int, seed: int) -> int:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["client.device", __name__])
    Device.create(directory, settings(model))
    rng = random.Random(seed)
    acknowledged: list[tuple[str, str, str]] = []
    for _ in range(kills):
        reader, writer = context.Pipe(duplex=False)
        first = 1 + sum(kind == "dialogue" for kind, _, _ in acknowledged)
        process = context.Process(target=run_device, args=(directory, first, writer))
        process.start()
        writer.close()
        if rng.random() > STARTS:
            reader.poll(LONGEST_START_SECONDS)  # how long opening takes is the machine's business
        time.sleep(rng.uniform(0.0, LONGEST_LIFE_SECONDS))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        try:
            while True:
                acknowledged.append(reader.recv())
        except EOFError:
            pass
        check(directory, acknowledged)
    return sum(kind != "open" for kind, _, _ in acknowledged)


def test_a_few_kills_lose_nothing(tmp_path: Path, tiny_model_folder: Path) -> None:
    kill_many_times(tmp_path / "device", tiny_model_folder, kills=5, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills_lose_nothing(tmp_path: Path, tiny_model_folder: Path) -> None:
    acknowledged = kill_many_times(tmp_path / "device", tiny_model_folder, kills=KILLS, seed=2)
    assert acknowledged > KILLS, "the loop hardly ran between the kills"
