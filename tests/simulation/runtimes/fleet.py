"""A recorded fleet of the tiny model, and what a run of it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import tomli_w
from safetensors.torch import load_file
from torch import Tensor

from client.adapters import AdapterConfig
from client.dialogue import Example
from client.finetuning import FineTuneConfig
from client.recorded import FleetSettings, Lesson, RecordedFleet

DEVICES = 3
ROUNDS = 2
ADAPTER = AdapterConfig(rank=2, alpha=4.0, top_layers=1, dropout=0.0)
WORDS = ("rain", "tea", "garden", "letter", "window", "bread", "seven", "uncle")


def record_fleet(folder: Path, model: Path) -> Path:
    """Record three devices with rows of their own."""
    settings = FleetSettings(model=str(model), adapter=ADAPTER, finetuning=FineTuneConfig(dtype="float32"))
    fleet = RecordedFleet.create(folder, settings)
    for device in range(DEVICES):
        fleet.record(device, [_lesson(device, number) for number in range(6)])
    return folder


def _lesson(device: int, number: int) -> Lesson:
    example = Example(
        question=f"{WORDS[(device + number) % 8]} {WORDS[number % 8]}?",
        response=f"{WORDS[(3 * device + number) % 8]} {WORDS[device]}.",
        source_id=f"{device}-{number}",
        example_id=f"{device}-{number}",
    )
    return Lesson(example=example, since=1 + number // 3)


def write_config(folder: Path, model: Path, **changes: object) -> Path:
    """Write the settings of a run in which all devices take part."""
    values = {
        "model": str(model),
        "adapter": asdict(ADAPTER),
        "plan": {"rule": "fedit", "personal": "dual"},
        "rounds": ROUNDS,
        "cohort": DEVICES,
        "minimum_replies": DEVICES,
        "local_steps": 4,
        "batch_size": 4,
        **changes,
    }
    path = folder / "coordination.toml"
    path.write_text(tomli_w.dumps(values))
    return path


def processes_in(folder: Path) -> dict[int, str]:
    """Return the commands of all processes that work in a folder, by their numbers; children work where parents do."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found[int(process.name)] = (process / "cmdline").read_text()
    return found


def outcome(fleet: Path, directory: Path) -> dict[str, Tensor]:
    """Return all tensors that a run left behind: the server's, and what each device keeps but for the run's number."""
    files = {"server": directory / "coordination.safetensors"}
    files |= {f"device-{device}": fleet / "devices" / f"{device:06d}" / "memory" for device in range(DEVICES)}
    held = {f"{name}/{key}": tensor for name, file in files.items() for key, tensor in load_file(file).items()}
    return {key: tensor for key, tensor in held.items() if tensor.numel() and "/mark/" not in key}


def assert_alike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, tolerance: float = 0.0) -> None:
    """Hold two outcomes to the same numbers, to the bit by default."""
    assert sum(key.startswith("device-") and "/personal/" in key for key in expected) >= DEVICES
    assert found.keys() == expected.keys()
    apart = max(float((found[key].double() - expected[key].double()).abs().max()) for key in expected)
    assert apart <= tolerance
