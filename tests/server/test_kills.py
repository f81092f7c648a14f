"""A server that dies before any step towards the disk goes on as if it had not, and so does what it serves.

The server runs in a process of its own and ends itself, without any clean-up, before its n-th flush, rename or removal.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from client.adapter_store import Metric
from client.adapters import SHARED
from server.checkpoint import Progress
from server.config import CoordinationConfig
from server.registry import Registry
from tests.server.test_tuning import FEDEX, judging
from tests.server.toy import Toy, assert_same, coordinate, play

KILLED = 9
forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
STEPS = ("fsync", "replace", "rename", "unlink", "rmdir")
ROUNDS = 3
CONFIG = CoordinationConfig.parse(
    {
        "cohort": 2,
        "rounds": ROUNDS,
        "keep_versions": 2,
        "tuner": FEDEX,
        "plan": {"rule": "fedex"},
    }
)


def serve(directory: Path) -> Progress:
    toy = Toy(CONFIG.make_plan(), dict.fromkeys(range(6), 3), judging)
    return play(coordinate(directory, toy, CONFIG, registry=True))[1]


def serve_until(directory: Path, last_step: int) -> None:
    """Serve, and die before a step."""
    left = last_step

    def counted(step: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(KILLED)
            return step(*args, **options)

        return call

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    serve(directory)


def contents(directory: Path) -> list[tuple[dict[str, Metric], dict[str, torch.Tensor]]]:
    registry = Registry(directory / "registry")
    found = []
    for version in registry.versions():
        metrics = {name: value for name, value in version.metrics.items() if name not in ("run", "seconds")}
        found.append((metrics, load_file(version.path / SHARED / "adapter_model.safetensors")))
    assert registry.current == registry.versions()[-1].number
    return found


def check(directory: Path, expected: Path, progress: Progress) -> None:
    found = serve(directory)
    assert_same(found, progress)
    assert {each.metrics["run"] for each in Registry(directory / "registry").versions()} == {found.run}
    for (metrics, tensors), (wanted, same) in zip(contents(directory), contents(expected), strict=True):
        assert metrics == wanted
        assert all(torch.equal(tensor, same[key]) for key, tensor in tensors.items())
    leftovers = [path.name for path in directory.rglob(".*")]
    assert not leftovers


def kill_before(steps: range, folder: Path) -> int:
    """Return how many of these kills there were; the others came after the end."""
    context = multiprocessing.get_context("fork")  # one thread computes, so that nothing is held by another one
    progress, killed = serve(folder / "whole"), 0
    for step in steps:
        directory = folder / f"{step}"
        process = context.Process(target=serve_until, args=(directory, step))
        process.start()
        process.join()
        killed += process.exitcode == KILLED
        assert process.exitcode in (KILLED, 0)
        check(directory, folder / "whole", progress)
    return killed


@forks
def test_a_few_kills_change_nothing(tmp_path: Path) -> None:
    assert kill_before(range(2, 56, 9), tmp_path) == 6


@forks
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_kill_changes_anything(tmp_path: Path) -> None:
    killed = kill_before(range(90), tmp_path)
    assert 40 < killed < 90, "the last ones come after the end"
