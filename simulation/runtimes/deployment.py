"""The deployment runtime on one machine: a SuperLink, and a SuperNode for each device, as boards would run it.

Every link is TLS, and every node proves with a key of its own who it is. The app that `flwr run` hands in is a
description without code: each process loads the apps that are installed. Nodes are registered and connected before the
run begins, so that its first round sees them all.
"""

from __future__ import annotations

import json
import socket
import ssl
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import tomli_w

import florilegium
from client.app import FLEET_VARIABLE
from client.durable import make_directory
from client.recorded import RecordedFleet
from florilegium.errors import ConfigError
from simulation.runtimes.credentials import make_node_key, make_server_credentials
from simulation.runtimes.processes import Processes, RunFailedError, quiet_environment

__all__ = ["run_deployment"]

_LOOPBACK: Final = "127.0.0.1"
_LINK: Final = "loopback"  # the SuperLink's name in Flower's configuration
_POLL_SECONDS: Final = 0.5
_START_SECONDS: Final = 120.0  # of one server, on a machine that is busy


def run_deployment(
    fleet: Path,
    devices: int,
    *,
    run_config: Mapping[str, str],
    directory: Path,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Run the ServerApp and the ClientApp on a recorded fleet, each device in processes of its own.

    Args:
        fleet: its folder.
        devices: how many of it take part.
        run_config: of the ServerApp, `directory` aside; see `server.app`.
        directory: where the run is kept and goes on from; `logs` in it has what the processes write.
        tell: is given each line that the run writes.

    Raises:
        ConfigError: `devices` is out of its range.
        StorageError: there is no fleet, or the directory cannot be made.
        RunFailedError: the run did not come to its end; its logs say why.
    """
    folder = RecordedFleet(fleet).folder.resolve()
    if devices < 1:
        raise ConfigError(f"devices must be >= 1, got {devices}", "a fleet has at least one")
    home = tempfile.TemporaryDirectory(prefix="florilegium-", ignore_cleanup_errors=True)
    with home, Processes(directory / "logs") as processes:
        deployment = _Deployment(Path(home.name), processes, devices)
        deployment.start_link()
        tell("the SuperLink answers")
        for number in range(devices):
            deployment.start_node(number, folder)
        deployment.wait_for_nodes()
        tell(f"{devices} SuperNodes are connected")
        for line in deployment.run({**run_config, "directory": str(directory.resolve())}):
            tell(line)


class _Deployment:
    """A SuperLink and its SuperNodes; all that they keep is below one folder."""

    def __init__(self, home: Path, processes: Processes, devices: int) -> None:
        self._home, self._processes, self._devices = home, processes, devices
        self._port, *self._node_ports = _free_ports(1 + devices)
        self._address = f"{_LOOPBACK}:{self._port}"
        self._credentials = make_server_credentials(home)
        self._environment = quiet_environment(FLWR_HOME=str(home / "link"))
        make_directory(home / "link")
        link = {"address": self._address, "root-certificates": str(self._credentials.authority)}
        (home / "link" / "config.toml").write_text(tomli_w.dumps({"superlink": {_LINK: link}}))

    def start_link(self) -> None:
        """Start the SuperLink, and wait until it answers."""
        made = self._credentials
        command = ["flower-superlink", "--host", _LOOPBACK, "--port", str(self._port)]
        command += ["--ssl-ca-certfile", str(made.authority), "--ssl-certfile", str(made.certificate)]
        command += ["--ssl-keyfile", str(made.key), "--enable-supernode-auth"]
        command += ["--database", str(self._home / "state.db"), "--disable-runtime-dependency-installation"]
        self._processes.start("superlink", command, self._environment)
        trusted = ssl.create_default_context(cafile=str(made.authority))
        self._wait("the SuperLink", _START_SECONDS, lambda: _answers(f"https://{self._address}/health", trusted))

    def start_node(self, number: int, fleet: Path) -> None:
        """Register a device's key, and start its SuperNode."""
        home = self._home / f"node-{number}"
        make_directory(home)
        self._ask("supernode", "register", str(make_node_key(home / "key")))
        command = ["flower-supernode", "--superlink", self._address, "--host", _LOOPBACK]
        command += ["--port", str(self._node_ports[number]), "--root-certificates", str(self._credentials.authority)]
        command += ["--auth-supernode-private-key", str(home / "key")]
        command += ["--node-config", f"partition-id={number} num-partitions={self._devices}"]
        environment = quiet_environment(FLWR_HOME=str(home)) | {FLEET_VARIABLE: str(fleet)}
        self._processes.start(f"node-{number}", command, environment)

    def wait_for_nodes(self) -> None:
        """Wait until all nodes are connected."""

        def connected() -> bool:
            states = [node["status"] for node in self._ask("supernode", "list")["nodes"]]
            return states.count("online") == self._devices

        self._wait("SuperNodes", _START_SECONDS * self._devices, connected)

    def run(self, run_config: Mapping[str, str]) -> Iterator[str]:
        """Hand the run in, and yield what it writes until it ends."""
        app = self._home / "florilegium"
        make_directory(app)
        (app / "pyproject.toml").write_text(tomli_w.dumps(_description(run_config)))
        yield from self._processes.lines("run", ["flwr", "run", str(app), _LINK, "--stream"], self._environment)
        (run,) = self._ask("list")["runs"]
        if run["status"] != "finished:completed":
            said = run["status-details"] or run["status"]
            raise RunFailedError(said, f"more is in {self._processes.log('run')}")

    def _ask(self, *words: str) -> dict[str, Any]:
        """Give Flower's command line an order, and return its answer."""
        command = ["flwr", *words, _LINK, "--format", "json"]
        written = "\n".join(self._processes.lines("flwr", command, self._environment))
        answer: dict[str, Any] = json.loads(written[written.index("{") :])  # behind warnings, if there are any
        return answer

    def _wait(self, who: str, seconds: float, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            self._processes.check()
            if time.monotonic() > deadline:
                raise RunFailedError(
                    f"{who} did not answer in {seconds:.0f} seconds", "try again when the machine is less busy"
                )
            time.sleep(_POLL_SECONDS)


def _description(run_config: Mapping[str, str]) -> dict[str, object]:
    """Return a Flower app's `pyproject.toml` that names the installed apps."""
    app = {
        "publisher": "florilegium",
        "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
        "config": dict(run_config),
    }
    project = {"name": "florilegium", "version": florilegium.__version__, "license": "Apache-2.0"}
    return {"project": project | {"description": "Rounds of a fleet."}, "tool": {"flwr": {"app": app}}}


def _answers(address: str, trusted: ssl.SSLContext) -> bool:
    try:
        with urllib.request.urlopen(address, context=trusted, timeout=_POLL_SECONDS) as reply:
            reply.read()
            return True
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    """Return different ports of loopback that nobody listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server((_LOOPBACK, 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
