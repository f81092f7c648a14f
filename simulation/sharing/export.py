"""Export: an arm's shared adapter as its last round left it, for whoever wants to use it elsewhere.

    adapters/fedit/seed-0/adapter_config.json, adapter_model.safetensors     what `PeftModel.from_pretrained` loads
                          residual.safetensors      where the rule has one; see `server.registry`
                          metrics.json              numbers of its round
                          README.md                 what it was trained on

What a comparison trains, it trains on simulated users only.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from client.adapter_store import Version
from client.adapters import SHARED
from client.durable import make_directory, storage_errors, write_new_file

__all__ = ["export_adapter"]

_ABOUT: Final = """\
# A shared adapter from a comparison

It was trained on simulated users only: by the simulated devices of one run, on the users that the run's `config.json`
names, and by no fleet in use. Where these users come from a file, it may repeat what they said: treat it as you treat
the file.

    PeftModel.from_pretrained(base, "the path of this folder")

puts it on the run's base model. If there is a `residual.safetensors`, its matrices, `(outputs, inputs)` by layer, are
to be added to the base's weights.
"""


def export_adapter(version: Version, folder: Path) -> None:
    """Copy a registry's version; what is in the folder is replaced.

    Raises:
        StorageError: the disk is full or refuses.
    """
    with storage_errors(folder):
        if folder.exists():
            shutil.rmtree(folder)
        make_directory(folder.parent)
        shutil.copytree(version.path / SHARED, folder)
        for file in version.path.glob("*.*"):
            shutil.copy(file, folder)
        write_new_file(folder / "README.md", _ABOUT.encode())
