"""florilegium: personalize a language model on every device of a fleet, from a tiny private buffer.

The public names are imported when they are first used, so that `import florilegium` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.device import Device as Device
    from client.dialogue import Annotation as Annotation
    from client.dialogue import Dialogue as Dialogue
    from client.model import load_model as load_model
    from client.settings import DeviceSettings as DeviceSettings
    from florilegium.errors import FlorilegiumError as FlorilegiumError
    from simulation.compare import CompareConfig as CompareConfig
    from simulation.compare import run_compare as run_compare
    from simulation.readers import read_users as read_users
    from simulation.sharing.compare import run_sharing as run_sharing
    from simulation.sharing.config import SharingConfig as SharingConfig
    from simulation.world import generate_users as generate_users

_HOMES = {
    "Annotation": "client.dialogue",
    "CompareConfig": "simulation.compare",
    "Device": "client.device",
    "DeviceSettings": "client.settings",
    "Dialogue": "client.dialogue",
    "FlorilegiumError": "florilegium.errors",
    "SharingConfig": "simulation.sharing.config",
    "generate_users": "simulation.world",
    "load_model": "client.model",
    "read_users": "simulation.readers",
    "run_compare": "simulation.compare",
    "run_sharing": "simulation.sharing.compare",
}

__all__ = [
    "Annotation",
    "CompareConfig",
    "Device",
    "DeviceSettings",
    "Dialogue",
    "FlorilegiumError",
    "SharingConfig",
    "generate_users",
    "load_model",
    "read_users",
    "run_compare",
    "run_sharing",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'florilegium' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
