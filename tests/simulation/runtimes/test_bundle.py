"""The Flower app bundle: what it carries, and that both apps load from it where nothing else of the project is."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files

# Flower 1.41 asks pathspec 1.1 for a class by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[3]
MEGABYTE = 1_000_000

LOAD = """
import sys
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

sys.path.insert(0, sys.argv[1])
import client.app, client.loading, server.app

bundle = Path(sys.argv[1])
assert isinstance(client.app.app, ClientApp) and isinstance(server.app.app, ServerApp)
assert all(Path(module.__file__).is_relative_to(bundle) for module in (client.app, server.app, client.loading))
model = Path(client.loading.locate("seedling"))
assert (model / "model.safetensors").is_file() and not model.is_relative_to(bundle)

# What a user's device needs to select and to be measured, which no bundle of Flower's can carry.
from client.evaluation import probe_texts
from client.selection.lexicons import load_lexicons, possessives

assert probe_texts() and load_lexicons().domains and possessives().domains
"""


@pytest.fixture(scope="module")
def bundle() -> bytes:
    # As `flwr build` does, without a walk through folders whose files it would drop.
    files = {
        path.relative_to(ROOT).as_posix(): path
        for top in ROOT.iterdir()
        if top.name == ".gitignore" or not top.name.startswith(".")
        for path in ([top] if top.is_file() else top.rglob("*"))
        if path.is_file()
    }
    made, _ = build_fab_from_files(files)
    return made


def test_the_bundle_carries_the_code_of_both_apps_and_nothing_else(bundle: bytes) -> None:
    assert len(bundle) < 10 * MEGABYTE
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        files = {item.filename: item.file_size for item in archive.infolist()}
    rooms = {"client", "privacy", "server", "strategies"}
    about = {".info/CONTENT", "LICENSE", "README.md", "pyproject.toml"}
    assert {name for name in files if name.partition("/")[0] not in rooms} == about
    assert {Path(name).suffix for name in files.keys() - about} == {".py"}
    assert {"client/app.py", "server/app.py"} <= files.keys()
    assert max(files.values()) < MEGABYTE


def test_both_apps_load_from_an_unpacked_bundle_and_the_model_is_the_installed_one(
    bundle: bytes, tmp_path: Path
) -> None:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        archive.extractall(tmp_path / "app")
    clean = {name: value for name, value in os.environ.items() if name not in ("FLORILEGIUM_SEEDLING", "PYTHONPATH")}
    subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "app")], cwd=tmp_path, env=clean, check=True, timeout=250
    )
