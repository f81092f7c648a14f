"""How the devices of an arm come to what they answer with: alone, in one place, or coordinated.

Coordinated rounds go through the real ServerApp's coordinator and the real ClientApp, in process. What a round leaves
is on the disk, so an arm that was stopped goes on in the round that it was in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import tomli_w
from torch import Tensor

from client.adapter_store import Version
from client.app import app
from client.dialogue import Example, derive_seed
from client.durable import replace_file, storage_errors
from client.model import BaseModel
from client.recorded import release
from client.serving import Serving
from florilegium.errors import InputError
from florilegium.tensors import Tensors
from server.app import GridTransport, coordinator
from server.config import CoordinationConfig
from server.registry import Registry
from server.transport import BufferedTransport, Transport
from simulation.fleet import FleetConfig, LocalWork, SimulatedFleet, assign, summarize
from simulation.hostile import Hostile
from simulation.runtimes.crew import CrewGrid
from simulation.runtimes.deployment import run_deployment
from simulation.runtimes.inprocess import InProcessGrid, node_of
from simulation.runtimes.ray import run_ray
from simulation.sharing.arms import SharingArm
from simulation.sharing.config import SharingConfig
from simulation.sharing.fleets import Ground, Prepared, PrepareTask, prepare_device
from simulation.users import UserData
from strategies.plan import Plan
from strategies.settings import PlanSettings

__all__ = ["ArmTask", "Learning", "make_learning"]

_SECONDS_PER_HOUR: Final = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTask:
    """One arm to play on one seed's fleet.

    Attributes:
        seed: the draw of users.
        users: of all devices, in the order of their numbers; those that take no part are the last.
        unseen: how many those are.
        arm: what to play.
        config: of the comparison.
        folder: of the seed.
        run: the run's directory, which keeps what outlives the folder.
        workers: processes that play devices of a round; with 1, this one does.
    """

    seed: int
    users: tuple[UserData, ...]
    unseen: int
    arm: SharingArm
    config: SharingConfig
    folder: Path
    run: Path
    workers: int = 1

    @property
    def devices(self) -> int:
        """How many take part."""
        return len(self.users) - self.unseen

    @property
    def measured(self) -> list[int]:
        """The devices that are measured."""
        most = self.config.measured
        return [*range(self.devices)[:most], *range(self.devices, len(self.users))]

    def kept(self, kind: str) -> Path:
        """Return the folder in which the run keeps something of this arm on this seed."""
        return self.run / kind / self.arm.name / f"seed-{self.seed}"


class Learning(ABC):
    """How the devices of an arm come to what they answer with."""

    def __init__(self, task: ArmTask, ground: Ground) -> None:
        self.task, self.ground, self._open = task, ground, ExitStack()

    @abstractmethod
    def go_to(self, number: int) -> None:
        """Do a round's work, if it is not done."""

    @abstractmethod
    def serving(self, device: int, number: int) -> Serving | None:
        """Return what a device could answer with after a round; None if with nothing but the base model."""

    def spent(self, device: int) -> dict[str, float]:
        """Return what a device spent on the network and the simulated clock so far, as a record names it."""
        return {}

    def shared_adapter(self) -> Version | None:
        """Return the shared adapter after the last round; None if nothing is shared."""
        return None

    def close(self) -> None:
        """Let go of what is held open."""
        self._open.close()

    @property
    def _plan(self) -> Plan:
        assert self.task.arm.plan is not None
        return self.task.arm.plan.plan(seed=self.task.config.seed, cohort=self.task.devices)


class _Nothing(Learning):
    """No adapter anywhere."""

    def go_to(self, number: int) -> None:
        return None

    def serving(self, device: int, number: int) -> None:
        return None


class _Alone(Learning):
    """Each device trains an adapter of its own."""

    def __init__(self, task: ArmTask, ground: Ground) -> None:
        super().__init__(task, ground)
        home = ground.arm(task.arm.name)
        self._fleet, self._mark = ground.fleet.branch(home / "fleet"), home / "round"

    def go_to(self, number: int) -> None:
        if number > (int(self._mark.read_text()) if self._mark.exists() else 0):
            self._round(number)
            with storage_errors(self._mark):
                replace_file(self._mark, str(number).encode())

    def _round(self, number: int) -> None:
        for device in range(self.task.devices):
            self._train(device, number, self._fleet.examples(device, number), times=1)

    def _train(self, device: int, number: int, examples: Sequence[Example], *, times: int) -> None:
        config, devices = self.task.config, self.task.devices
        steps = times * config.steps_of(number, devices)
        if not steps or not examples:
            return
        finetuning = config.finetuning_of(self.task.arm.name)
        with suppress(InputError):  # as a server would go on without a device that fails; the device keeps what it had
            self._fleet.participant(device).train_alone(self._plan, number, finetuning, steps, examples)

    def serving(self, device: int, number: int) -> Serving | None:
        return Serving(participant=self._fleet.participant(device), plan=self._plan)


class _Central(_Alone):
    """One adapter, trained on everybody's rows in one place, with the steps of all devices together."""

    def _round(self, number: int) -> None:
        everything = [row for device in range(self.task.devices) for row in self._fleet.examples(device, number)]
        self._train(self._place, number, everything, times=self.task.devices)

    def serving(self, device: int, number: int) -> Serving | None:
        return super().serving(self._place, number)

    @property
    def _place(self) -> int:
        return len(self.task.users)

    @property
    def _plan(self) -> Plan:
        return PlanSettings(rule="none", personal="local").plan(seed=self.task.config.seed, cohort=1)


class _Coordinated(Learning):
    """A server coordinates, and devices share what the plan says."""

    def __init__(self, task: ArmTask, ground: Ground) -> None:
        super().__init__(task, ground)
        self._home = ground.arm(task.arm.name)
        self._clock: SimulatedFleet | None = None
        self._config = config = task.config.coordination(task.arm, task.devices)
        self._fleet = ground.fleet.branch(self._home / "fleet", ranks=self._ranks())
        told = {"fleet": str(self._fleet.folder)}
        if task.workers == 1:
            transport = GridTransport(InProcessGrid(app, task.devices, node_config=told), config)
        else:
            crew = CrewGrid(task.devices, workers=task.workers, node_config=told)
            self._open.callback(crew.close)
            transport = GridTransport(crew, config, pause=crew.pause, hears_all=True)
        self._server = coordinator(config, transport, self._home / "server", around=self._around(config))
        self._progress = self._server.progress()
        if self._clock is not None:
            self._clock.resume(self._progress.round)
        self._rounds = self._server.rounds()
        self._open.callback(self._rounds.close)

    def go_to(self, number: int) -> None:
        if self._progress.round < number:
            _, self._progress = next(self._rounds)

    def serving(self, device: int, number: int) -> Serving | None:
        if not number:
            return None
        participant, plan, shape = self._fleet.participant(device), self._plan, self._fleet.settings.shape(device)
        assert plan.rule is not None
        turn = plan.turn(number + 1, 0, rank=shape.rank, scale=shape.alpha / shape.rank, device=node_of(device))
        down = plan.rule.down(self._progress.shared.state, turn)
        return Serving(participant=participant, plan=plan, loaded=participant.load_shared(plan, down, turn))

    def spent(self, device: int) -> dict[str, float]:
        if device >= self.task.devices:
            return {}
        devices = self.task.devices
        if self.task.config.fleet is None:
            up, down = self._progress.uplink_bytes, self._progress.downlink_bytes
            return {"uplink_bytes": up // devices, "downlink_bytes": down // devices}
        summary = summarize(self._journal)  # which knows of replies that came too late for the server, too
        return {
            "uplink_bytes": summary.bytes_up // devices,
            "downlink_bytes": summary.bytes_down // devices,
            "fleet_hours": summary.fleet_seconds / _SECONDS_PER_HOUR,
            "energy_wh": summary.energy_wh.get(device, 0.0),
        }

    def shared_adapter(self) -> Version:
        for _ in self._rounds:  # none is left, but a server that was killed may not have kept its last version
            pass
        return Registry(self._home / "server" / "registry").versions()[-1]

    @property
    def _journal(self) -> Path:
        return self._home / "fleet.jsonl"

    def _ranks(self) -> dict[str, int]:
        """Return the ranks of devices that have less than the server's."""
        config, rule = self.task.config, self._plan.rule
        if config.fleet is None or not config.ranks_by_profile or rule is None or not rule.mixed_ranks:
            return {}
        drawn = assign(self._hardware(config.fleet))
        return {str(spec.index): spec.profile.rank for spec in drawn if spec.profile.rank < config.rank}

    def _hardware(self, fleet: FleetConfig) -> FleetConfig:
        """Return the fleet of this seed."""
        return fleet.model_copy(update={"devices": self.task.devices, "seed": derive_seed(fleet.seed, self.task.seed)})

    def _around(self, config: CoordinationConfig) -> Callable[[GridTransport, Tensors], Transport]:
        """Return what stands between the server and the devices: who prepares and who attacks, hardware and days."""

        def around(grid: GridTransport, adapter: Tensors) -> Transport:
            devices = self._with_hostile(Prepared(grid, self._prepare))
            if self.task.config.fleet is None:
                return devices
            ranked = bool(self._ranks())
            self._clock = SimulatedFleet(
                devices,
                self._hardware(self.task.config.fleet),
                cost=self._work(adapter),
                journal=self._journal,
                index_of=_index_of,
                enough=config.cohort,
                needed=config.minimum_replies,
                rank_limit=config.adapter.rank if ranked else None,
            )
            return self._clock

        return around

    def _with_hostile(self, prepared: Prepared) -> BufferedTransport:
        """Return the transport with this seed's hostile devices."""
        hostile = self.task.config.hostile
        if hostile is None:
            return prepared
        seeded = hostile.model_copy(update={"seed": derive_seed(hostile.seed, self.task.seed)})
        return Hostile(prepared, seeded, devices=self.task.devices, index_of=_index_of)

    def _prepare(self, node: int) -> None:
        device = _index_of(node)
        if not self.ground.is_prepared(device):
            task = PrepareTask(
                seed=self.task.seed,
                device=device,
                user=self.task.users[device],
                config=self.task.config,
                folder=self.task.folder,
            )
            release()  # the process's one model must be without adapters
            for _ in prepare_device(task):
                pass

    def _work(self, adapter: Tensors) -> LocalWork:
        """Return what a task costs: as much as if all devices had the rows of the first."""
        rows = self._fleet.examples(0, self.task.config.rounds)
        with self._fleet.participant(0).bare() as base:
            lengths = [len(base.chat.example(row.question, row.response)[0]) for row in rows]
            return LocalWork(
                plan=self._plan,
                adapter=adapter,
                parameters=_multiplied(base),
                row_tokens=sum(lengths) / len(lengths),
                rows=len(rows),
                holdout_rows=len(self._fleet.holdout(0, self.task.config.rounds)),
            )


def _multiplied(base: BaseModel) -> int:
    """Return how many of the model's own weights take part in products: a table that is only looked up does not."""
    weights = [tensor for name, tensor in base.module.named_parameters() if "lora_" not in name]
    table = base.module.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    tied = bool(base.module.config.get_text_config().tie_word_embeddings)
    return sum(tensor.numel() for tensor in weights) - (0 if tied else table.numel())


def _index_of(node: int) -> int:
    return node - node_of(0)


class _ThroughFlower(_Coordinated):
    """The same in processes of Flower's, from one measurement to the next: each start of them takes its time."""

    def go_to(self, number: int) -> None:
        if self._progress.round < number and number in self.task.config.measured_rounds:
            settings, path = self._config.model_copy(update={"rounds": number}), self._home / "coordination.toml"
            with storage_errors(path):
                values = settings.model_dump(mode="json", exclude_none=True)
                replace_file(path, tomli_w.dumps(values).encode())
            _RUNTIMES[self.task.config.runtime](
                self._fleet.folder,
                self.task.devices,
                run_config={"config": str(path.resolve())},
                directory=self._home / "server",
            )
            self._progress = self._server.progress()


class _Runtime(Protocol):
    """Runs both apps on a recorded fleet until the run's end; see `simulation.runtimes`."""

    def __call__(self, fleet: Path, devices: int, *, run_config: Mapping[str, str], directory: Path) -> None: ...


_RUNTIMES: Final[Mapping[str, _Runtime]] = {"ray": run_ray, "deployment": run_deployment}


def make_learning(task: ArmTask, ground: Ground) -> Learning:
    """Return how an arm's devices learn."""
    if task.arm.kind == "central":
        return _Central(task, ground)
    if task.arm.kind == "plan":
        coordinated = _Coordinated if task.config.runtime == "inprocess" else _ThroughFlower
        return (coordinated if task.arm.shares else _Alone)(task, ground)
    return _Nothing(task, ground)
