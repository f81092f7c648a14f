"""What a comparison leaves of what its arms shared, and how its arms came along, in the run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from client.adapter_store import Version
from client.adapters import SHARED
from client.model import BaseModel
from server.registry import Registry
from simulation.sharing.compare import SharingProgress, run_sharing
from simulation.sharing.export import export_adapter
from simulation.sharing.tensorboard import scalars
from strategies.rule import Loaded
from tests.simulation.sharing.test_sharing import USERS, StoppedError, make_config, read_records

ARMS = ("local", "fedit", "fedex")
ROUNDS = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """Play three arms; the server of one dies between its last checkpoint and the version it would have kept."""
    path, config = tmp_path_factory.mktemp("runs") / "run", make_config(tiny_model_folder, arms=ARMS)
    save = Registry.save

    def die(self: Registry, loaded: Loaded, *, scale: float, metrics: Mapping[str, float]) -> int:
        if metrics["round"] == ROUNDS:
            raise StoppedError
        return save(self, loaded, scale=scale, metrics=metrics)

    def stop(progress: SharingProgress) -> None:
        if progress.doing == "fedex, seed 0, round 3":
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, "save", die)
        with pytest.raises(StoppedError):
            run_sharing({0: USERS[0]}, config, path)
    with pytest.raises(StoppedError):
        run_sharing({0: USERS[0]}, config, path, progress=stop)
    run_sharing({0: USERS[0]}, config, path)
    return path


def test_arms_that_share_leave_the_adapter_of_their_last_round(run: Path) -> None:
    assert {folder.name for folder in (run / "adapters").iterdir()} == {"fedit", "fedex"}
    for arm in ("fedit", "fedex"):
        folder = run / "adapters" / arm / "seed-0"
        assert json.loads((folder / "metrics.json").read_text())["round"] == ROUNDS
        assert (folder / "residual.safetensors").exists() == (arm == "fedex")
        assert "simulated users only" in (folder / "README.md").read_text()


def test_peft_loads_it(run: Path, tiny_model: BaseModel) -> None:
    ids = torch.tensor([[5, 9, 14, 3, 8]])
    with torch.no_grad():
        bare = tiny_model.module(ids).logits
        model = PeftModel.from_pretrained(tiny_model.module, str(run / "adapters" / "fedit" / "seed-0"))
        assert not torch.allclose(model(ids).logits, bare, atol=1e-4)
        with model.disable_adapter():
            torch.testing.assert_close(model(ids).logits, bare)


def test_tensorboard_has_each_measured_round_once(run: Path) -> None:
    for arm in ARMS:
        folder = run / "tensorboard" / arm / "seed-0"
        assert len([*folder.iterdir()]) == 1
        reader = EventAccumulator(str(folder)).Reload()
        records = [record for record in read_records(run) if record.arm == arm]
        expected = {number: scalars([each for each in records if each.round == number]) for number in (0, 2, 4)}
        assert set(reader.Tags()["scalars"]) == expected[0].keys()
        for tag in expected[0]:
            found = {event.step: event.value for event in reader.Scalars(tag)}
            assert len(found) == len(reader.Scalars(tag))
            assert found == pytest.approx({number: values[tag] for number, values in expected.items()}, rel=1e-6)


def test_a_version_replaces_what_was_exported_before(tmp_path: Path) -> None:
    def version(number: int, content: float, files: tuple[str, ...]) -> Version:
        path = tmp_path / str(number)
        (path / SHARED).mkdir(parents=True)
        (path / SHARED / "adapter_config.json").write_text(str(content))
        for name in files:
            (path / name).write_text("")
        return Version(number=number, path=path, slots=(SHARED,))

    out = tmp_path / "adapters" / "mine" / "seed-1"
    export_adapter(version(1, 0.5, ("metrics.json", "residual.safetensors")), out)
    assert {file.name for file in out.iterdir()} == {
        "README.md", "adapter_config.json", "metrics.json", "residual.safetensors"
    }  # fmt: skip
    export_adapter(version(2, 0.75, ("metrics.json",)), out)
    assert {file.name for file in out.iterdir()} == {"README.md", "adapter_config.json", "metrics.json"}
    assert (out / "adapter_config.json").read_text() == "0.75"


def test_a_residual_is_of_the_adapter_s_layers(run: Path) -> None:
    folder = run / "adapters" / "fedex" / "seed-0"
    adapter, residual = load_file(folder / "adapter_model.safetensors"), load_file(folder / "residual.safetensors")
    assert residual
    for layer, matrix in residual.items():
        b, a = adapter[f"{layer}.lora_B.weight"], adapter[f"{layer}.lora_A.weight"]
        assert matrix.shape == (b.shape[0], a.shape[1])
