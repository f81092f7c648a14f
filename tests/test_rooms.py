"""The rooms and the arrows between them."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "privacy": {"florilegium", "privacy"},
    "client": {"client", "florilegium", "privacy", "strategies"},
    "strategies": {"florilegium", "privacy", "strategies"},
    "server": {"client", "florilegium", "privacy", "server", "strategies"},
    "simulation": {"client", "florilegium", "privacy", "server", "simulation", "strategies"},
}
ROOMS = {"client", "server", "strategies", "privacy", "simulation", "florilegium", "training", "benchmarks", "tests"}
VALUES = {f"florilegium.{name}" for name in ("errors", "heap", "packing", "settings", "tensors")}
NETWORK = ("flwr", "grpc", "httpx", "requests", "fastapi", "uvicorn")


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_dependencies_point_one_way(room: str) -> None:
    for path in sorted((ROOT / room).rglob("*.py")):
        rooms = {name.split(".")[0] for name in _imports(path)} & ROOMS
        assert rooms <= MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {rooms - MAY_IMPORT[room]}"


@pytest.mark.parametrize("room", ["client", "privacy", "strategies", "server"])
def test_rooms_below_know_only_values_of_the_public_face(room: str) -> None:
    for path in sorted((ROOT / room).rglob("*.py")):
        face = {name for name in _imports(path) if name.split(".")[0] == "florilegium"}
        if path == ROOT / room / "app.py":
            face -= {"florilegium.wire"}
        assert face <= VALUES, path.relative_to(ROOT)


def test_device_loop_runs_without_any_network_library() -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({NETWORK[:2] + NETWORK[4:]!r})); import client.device"
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", blocked], check=True, cwd=ROOT)


@pytest.mark.parametrize("room", ["client", "privacy", "server", "strategies"])
def test_only_a_room_s_door_names_a_network_library(room: str) -> None:
    for path in sorted((ROOT / room).rglob("*.py")):
        if path == ROOT / room / "app.py":
            continue
        assert not {name.split(".")[0] for name in _imports(path)} & set(NETWORK), path.relative_to(ROOT)


@pytest.mark.parametrize("room", ["client", "florilegium", "privacy", "server", "simulation", "strategies"])
def test_each_package_lies_under_the_root(room: str) -> None:
    origin = importlib.import_module(room).__file__
    assert origin is not None
    assert Path(origin).resolve().is_relative_to(ROOT)


def test_public_names_resolve() -> None:
    face = importlib.import_module("florilegium")
    assert set(face.__all__) == set(face._HOMES)
    for name in face.__all__:
        assert getattr(face, name) is not None


def test_importing_the_public_face_is_cheap() -> None:
    probe = "import florilegium, sys; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True, cwd=ROOT)


def test_the_face_has_no_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'flower'"):
        _ = importlib.import_module("florilegium").flower
