"""What a measurement depends on is in a run's identity."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

from simulation import identity
from simulation.sharing.config import SharingConfig

ROOT = Path(__file__).parents[2]


def test_all_code_that_is_installed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: set[Path] = set()

    def collect(paths: Iterable[Path]) -> str:
        hashed.update(paths)
        return ""

    monkeypatch.setattr(identity, "_hash", collect)
    identity._code.__wrapped__()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = [name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    for package in packages:
        shipped = {path for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".txt", ".toml")}
        assert shipped
        assert shipped <= hashed


def test_a_fleet_s_recorded_windows_count_and_not_where_they_lie(tmp_path: Path) -> None:
    found = []
    for name, window in (("one", "0,100"), ("two", "0,100"), ("three", "50,60")):
        trace = tmp_path / f"{name}.csv"
        trace.write_text(f"device,start_seconds,end_seconds\na,{window}\n", encoding="utf-8")
        found.append(SharingConfig.parse({"arms": ("fedit",), "fleet": {"trace_file": str(trace)}}).identity())
    assert found[0] == found[1] != found[2]
