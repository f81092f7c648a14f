"""The Ray runtime: the same ServerApp and ClientApp through Flower's simulation engine, on many cores.

The engine runs in a child process: interrupted, it leaves threads behind that wait for ever. In it, our ServerApp is
called by another that hands it the run's configuration and waits until all virtual nodes are registered, which the
engine does not. A worker that dies is started again by Ray and asked the same; a device that is asked the same answers
the same, so the run ends as if nothing had happened. `flwr run` has no setting for that: there, a dead worker stays in
the pool, and each message that it is given fails.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from flwr.app import ConfigRecordValues, Context
from flwr.serverapp import Grid, ServerApp

from client import app as client_app
from client.recorded import RecordedFleet
from florilegium.errors import ConfigError, FlorilegiumError
from server import app as server_app
from simulation.runtimes.processes import Processes, quiet_environment

__all__ = ["drive", "run_ray"]

_RETRIES: Final = 3  # of one message, when its worker dies; more may mean that the message is why
_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    devices: int
    run_config: dict[str, str]
    cpus: int
    cpus_per_client: float
    gpus_per_client: float


def run_ray(
    fleet: Path,
    devices: int,
    *,
    run_config: Mapping[str, str],
    directory: Path,
    cpus_per_client: float = 1.0,
    gpus_per_client: float = 0.0,
    cpus: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Run the ServerApp and the ClientApp on a recorded fleet, several devices at a time.

    Args:
        fleet: its folder.
        devices: how many of it take part; each is a virtual node.
        run_config: of the ServerApp, `directory` aside; see `server.app`.
        directory: where the run is kept and goes on from; `logs` in it has what the processes write.
        cpus_per_client: cores of one worker, which plays one device at a time.
        gpus_per_client: GPUs of one worker; a half lets two share one.
        cpus: cores for all workers; all that are there, but no more than the devices fill, by default.
        tell: is given each line that the run writes.

    Raises:
        ConfigError: a number is out of its range.
        StorageError: there is no fleet, or the directory cannot be made.
        RunFailedError: the run did not come to its end; its log says why.
    """
    folder = RecordedFleet(fleet).folder.resolve()
    if devices < 1:
        raise ConfigError(f"devices must be >= 1, got {devices}", "a fleet has at least one")
    usable = min(os.cpu_count() or 1, math.ceil(devices * cpus_per_client)) if cpus is None else cpus
    if not 0 < cpus_per_client <= usable:
        raise ConfigError(
            f"cpus_per_client must be > 0 and at most {usable}, got {cpus_per_client}", "no worker would fit"
        )
    job = _Job(
        devices=devices,
        run_config={**run_config, "directory": str(directory.resolve())},
        cpus=usable,
        cpus_per_client=cpus_per_client,
        gpus_per_client=gpus_per_client,
    )
    # Ray adds a script's folder to its workers' paths, and there this file would hide Ray itself.
    code = "import simulation.runtimes.ray as runtime; runtime.drive()"
    # Not where TMPDIR says: Ray's sockets need a short path.
    home = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
    environment = quiet_environment(
        threads=max(1, int(cpus_per_client)),
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        RAY_AUTH_MODE="token",  # Ray listens to the whole network, and would play anyone's code
        RAY_AUTH_TOKEN=secrets.token_urlsafe(32),
        RAY_TMPDIR=home.name,
    ) | {client_app.FLEET_VARIABLE: str(folder)}
    with home, Processes(directory / "logs") as processes:
        for line in processes.lines("ray", [sys.executable, "-c", code, json.dumps(asdict(job))], environment):
            if "ClientAppActor.terminate" not in line:  # Ray wonders at workers that are told to end
                tell(line)


def drive() -> None:
    """Play the run that the command line describes; the child process's part."""
    from flwr.simulation import run_simulation  # with Ray, which is slow to import

    # Of the engine's two doors, `flwr run` and this one, this one is marked as deprecated.
    logging.getLogger("flwr").addFilter(lambda record: "deprecated" not in record.getMessage())
    job = _Job(**json.loads(sys.argv[1]))
    signal.signal(signal.SIGTERM, lambda *_: _end())  # until Ray sets a handler of its own, which raises
    resources: dict[str, ConfigRecordValues] = {
        "num_cpus": job.cpus_per_client,
        "num_gpus": job.gpus_per_client,
        # The engine hands what it does not know to Ray: workers come back, and what they were at is done again.
        "max_restarts": -1,
        "max_task_retries": _RETRIES,
    }
    try:
        run_simulation(
            server_app=_prepared(job),
            client_app=client_app.app,
            num_supernodes=job.devices,
            backend_config={
                "client_resources": resources,
                "init_args": {"address": "local", "num_cpus": job.cpus, "log_to_driver": False},
            },
        )
    except BaseException as error:
        try:
            if not isinstance(error, FlorilegiumError):
                traceback.print_exc()
            print(_first_cause(error), flush=True)
        finally:  # nobody may be there to read it
            _end()


def _end() -> None:
    """End this process's session: the engine's threads may wait for ever, and Ray's agents outlive a driver."""
    os.killpg(os.getpid(), signal.SIGKILL)


def _first_cause(error: BaseException) -> str:
    """Say in one line what an error began with; the engine wraps what goes wrong in errors that say nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = " ".join(str(error).split())
    return said if isinstance(error, FlorilegiumError) else f"{type(error).__name__}: {said}"


def _prepared(job: _Job) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        context.run_config = dict(job.run_config)
        while len(list(grid.get_node_ids())) < job.devices:
            time.sleep(_POLL_SECONDS)
        server_app.app(grid, context)

    return app
