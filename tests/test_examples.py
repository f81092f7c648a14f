"""Every example is a file that its command takes, or a program that runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from client.recorded import release
from florilegium.settings import Settings
from server.config import CoordinationConfig
from simulation.compare import CompareConfig
from simulation.sharing.config import SharingConfig

EXAMPLES = Path(__file__).parents[1] / "examples"
READERS: dict[str, type[Settings]] = {
    "compare-policies.toml": CompareConfig,
    "compare-strategies.toml": SharingConfig,
    "every-strategy.toml": SharingConfig,
    "hostile-devices.toml": SharingConfig,
    "server.toml": CoordinationConfig,
    "simulate.toml": SharingConfig,
}


def test_every_example_is_known() -> None:
    assert {path.name for path in EXAMPLES.glob("*.toml")} == READERS.keys()


@pytest.mark.parametrize("name", READERS)
def test_an_example_is_taken(name: str) -> None:
    settings = READERS[name].load(EXAMPLES / name)
    if isinstance(settings, CoordinationConfig):
        assert settings.make_plan().name == "dual+fedit"
    else:
        assert isinstance(settings, CompareConfig | SharingConfig)
        assert "none" in settings.arms


def test_a_search_by_halving_ends_with_a_run_that_played_all_rounds(
    tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = runpy.run_path(str(EXAMPLES / "halving.py"))
    try:
        best = example["main"](model=str(tiny_model_folder), devices=2, runs=4, rounds=2)
    finally:
        release()
    played = [len(line.rpartition(": ")[2].split()) for line in capsys.readouterr().out.splitlines()]
    assert len(played) == 4
    assert len(best.scores) == 2
    assert set(played) == {1, 2}, "the first plays on, and some run is dropped"
