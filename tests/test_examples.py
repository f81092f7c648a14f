"""Every example is a file that its command takes."""

from __future__ import annotations

from pathlib import Path

import pytest

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
