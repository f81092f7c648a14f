"""What a measurement depends on: settings, weights, code, where and how precisely it computes, and each user's data.

A piece of a run (one user of one seed under one arm) depends on nothing else: not on other seeds and arms, and but in
fleets not on other users, so a run can be given more of them. Weights, code and data enter as hashes, which name no
folder and hold no text.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

from client.dialogue import derive_id
from simulation.rundir import RunConfig
from simulation.settings import ComparisonSettings
from simulation.users import UserData

__all__ = ["describe_run", "run_name"]

_LIBRARIES: Final = ("torch", "transformers", "peft", "numpy", "flwr")
_PACKAGES: Final = ("client", "florilegium", "privacy", "server", "simulation", "strategies")
_CODE: Final = (".py", ".txt", ".toml")  # word lists, device profiles and the probe of forgetting are code, too
_WEIGHTS: Final = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")
_NAME_DIGITS: Final = 12


def describe_run(
    users_by_seed: Mapping[int, Sequence[UserData]], config: ComparisonSettings, source: Mapping[str, object]
) -> RunConfig:
    """Return what `config.json` says of a run; `source` tells its reader how the users were made."""
    return RunConfig(
        identity=config.identity()
        | {"weights": _weights(config.model), "code": _code(), "arithmetic": _arithmetic()}
        | {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        request=config.selection() | {"seeds": list(users_by_seed), "source": dict(source)},
        data={seed: {user.user_id: _data(user) for user in users} for seed, users in users_by_seed.items()},
        fleets={seed: _fleet(users) for seed, users in users_by_seed.items() if config.of_fleets},
    )


def run_name(users_by_seed: Mapping[int, Sequence[UserData]], config: ComparisonSettings) -> str:
    """Return a name for the run's directory: the same for the same arms, users, settings, weights and code."""
    run = describe_run(users_by_seed, config, source={})
    described = [run.identity, config.arms, run.data, run.fleets]
    return derive_id("run", json.dumps(described, sort_keys=True))[:_NAME_DIGITS]


def _data(user: UserData) -> str:
    return derive_id("data", json.dumps(asdict(user), sort_keys=True))


def _fleet(users: Sequence[UserData]) -> str:
    return derive_id("fleet", *(user.user_id for user in users))


def _weights(model: str) -> str:
    """Return a hash of a local model's files, or a Hub model's name."""
    from client.loading import locate

    folder = Path(locate(model))
    return _hash(path for path in folder.iterdir() if path.suffix in _WEIGHTS) if folder.is_dir() else model


def _arithmetic() -> str:
    """Return where models are, and in which precision they are trained, where nobody says otherwise."""
    import torch

    from client.finetuning.precision import resolve_precision
    from client.model import default_device

    device = default_device()
    return f"{device} {resolve_precision('auto', torch.float32, torch.device(device))}"


@cache
def _code() -> str:
    root = Path(__file__).parents[1]
    return _hash(path for name in _PACKAGES for path in (root / name).rglob("*") if path.suffix in _CODE)


def _hash(paths: Iterable[Path]) -> str:
    facts = [(path, path.stat()) for path in sorted(paths)]
    return derive_id(
        *(part for path, fact in facts for part in (path.name, _digest(path, fact.st_size, fact.st_mtime_ns)))
    )


@cache
def _digest(path: Path, size: int, modified_ns: int) -> str:
    """Return the hash of a file's content; large files are read once while they stay as they are."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
