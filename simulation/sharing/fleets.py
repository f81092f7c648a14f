"""The fleet of one seed on the disk: every device's rows, and how the base model does on its questions.

    SEED/fleet/            a recorded fleet; devices that take no part come after those that do
    SEED/facts/000017.json numbers of one device: answers asked for, and the base model's scores
    SEED/arms/fedit/       one arm's server, and a fleet of its own with the same rows

A device's facts are written last: where they are, the device is prepared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from client.durable import make_directory, replace_file, storage_errors
from client.evaluation import ExampleScore, evaluate
from client.finetuning import FineTuneConfig
from client.model import load_model
from client.recorded import FleetSettings, RecordedFleet
from server.app import GridTransport
from server.transport import Answer, Request
from simulation.sharing.config import SharingConfig
from simulation.sharing.lessons import prepare
from simulation.threads import single_thread
from simulation.users import UserData

__all__ = ["DeviceFacts", "Ground", "PrepareTask", "Prepared", "prepare_device"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """Numbers of one device that no arm changes.

    Attributes:
        asked: answers asked for to learn from, by stage, so far.
        gate_asked: answers asked for to judge by, likewise.
        bare: the base model's scores of held-out questions and of the gate's, by example.
    """

    asked: tuple[int, ...]
    gate_asked: tuple[int, ...]
    bare: dict[str, ExampleScore]


_FACTS = TypeAdapter(DeviceFacts)


class Ground:
    """One seed's folder.

    Args:
        folder: made when a device is first prepared.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def fleet(self) -> RecordedFleet:
        """The fleet as it was prepared; arms take a branch of it."""
        return RecordedFleet(self.folder / "fleet")

    def create(self, config: SharingConfig) -> None:
        """Make the fleet, if it is not there yet."""
        if not (self.folder / "fleet" / "fleet.toml").exists():
            settings = FleetSettings(
                model=config.model, adapter=config.adapter, finetuning=FineTuneConfig(batch_size=config.batch_size)
            )
            RecordedFleet.create(self.folder / "fleet", settings)

    def arm(self, name: str) -> Path:
        """Return an arm's folder."""
        return self.folder / "arms" / name

    def is_prepared(self, device: int) -> bool:
        """Whether all of a device is there."""
        return self._facts(device).exists()

    def facts(self, device: int) -> DeviceFacts:
        """Return a device's numbers."""
        return _FACTS.validate_json(self._facts(device).read_bytes())

    def write(self, device: int, facts: DeviceFacts) -> None:
        """Write a device's numbers."""
        path = self._facts(device)
        with storage_errors(path):
            make_directory(path.parent)
            replace_file(path, _FACTS.dump_json(facts))

    def _facts(self, device: int) -> Path:
        return self.folder / "facts" / f"{device:06d}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareTask:
    """One device to prepare.

    Attributes:
        seed: the draw of users it belongs to.
        device: its number in the fleet.
        user: whose it is.
        config: of the comparison.
        folder: of the seed.
    """

    seed: int
    device: int
    user: UserData
    config: SharingConfig
    folder: Path


def prepare_device(task: PrepareTask) -> Iterator[int]:
    """Prepare one device, and yield its number when it is on the disk."""
    config, ground = task.config, Ground(task.folder)
    with single_thread():
        base = load_model(config.model)
        curriculum = prepare(task.user, base, config, draw=task.seed, work=task.folder)
        judged = {lesson.example.example_id: lesson.example for lesson in curriculum.holdout}
        questions = [*judged.values(), *task.user.heldout]
        scores = evaluate(base, questions, max_new_tokens=config.max_new_tokens)
    ground.fleet.record(task.device, curriculum.lessons, curriculum.holdout)
    facts = DeviceFacts(
        asked=curriculum.asked,
        gate_asked=curriculum.gate_asked,
        bare={score.example_id: score for score in scores},
    )
    ground.write(task.device, facts)
    yield task.device


class Prepared:
    """A transport that has devices prepared before they are first asked.

    Args:
        inner: reaches the devices.
        prepare: called with each device that is asked.
    """

    def __init__(self, inner: GridTransport, prepare: Callable[[int], None]) -> None:
        self._inner, self._prepare = inner, prepare

    def devices(self) -> Mapping[int, int]:
        """Return who can be asked now."""
        return self._inner.devices()

    def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
        """Have devices prepared and asked, one by one."""
        return self._inner.ask(map(self._ready, requests), seconds=seconds)

    def send(self, requests: Iterable[Request]) -> None:
        """Have devices prepared and given their work."""
        self._inner.send(map(self._ready, requests))

    def poll(self, seconds: float | None) -> Iterator[Answer]:
        """Yield answers as they come."""
        return self._inner.poll(seconds)

    def wait(self) -> None:
        """Wait for devices."""
        self._inner.wait()

    def _ready(self, request: Request) -> Request:
        self._prepare(request.device)
        return request
