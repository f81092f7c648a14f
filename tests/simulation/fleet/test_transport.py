"""A simulated fleet between the real server and a runtime that is a script."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import client.recorded
from client import app as client_app
from client.adapters import AdapterConfig, fresh_adapter
from client.dialogue import Example
from client.finetuning import FineTuneConfig
from client.recorded import FleetSettings, Lesson, RecordedFleet
from florilegium.errors import ConfigError, StorageError
from florilegium.tensors import Tensors
from server.app import GridTransport
from server.checkpoint import Progress, RoundLog
from server.config import CoordinationConfig
from server.rounds import Coordinator
from server.transport import Answer, Request
from simulation.fleet.availability import DAY_SECONDS
from simulation.fleet.config import FleetConfig, assign
from simulation.fleet.faults import FaultConfig, draw_fault
from simulation.fleet.journal import FleetRecord, read_journal
from simulation.fleet.profile import find_profile
from simulation.fleet.spending import summarize
from simulation.fleet.tasks import TaskCost
from simulation.fleet.transport import SimulatedFleet
from simulation.fleet.work import LocalWork
from simulation.runtimes.inprocess import InProcessGrid, node_of
from strategies.rule import Turn
from tests.strategies.rules.fleet import ALPHA_PER_RANK, adapter

BOARDS = {"pi5": 1.0}
PHONES = {"phone": 1.0}


class KilledError(Exception):
    """The process is gone."""


@dataclass
class Runtime:
    """Devices that answer numbers of their own, others each time; `dies_at` counts plays."""

    count: int
    rank: int = 3
    played: list[tuple[int, int]] = field(default_factory=list)
    kept: dict[int, list[int]] = field(default_factory=dict)
    dies_at: int | None = None

    def devices(self) -> Mapping[int, int]:
        return dict.fromkeys(range(self.count), self.rank)

    def wait(self) -> None:
        raise AssertionError("nobody waits for a simulation")

    def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
        assert seconds is None, "the fleet's deadlines are not the runtime's"
        return map(self._play, requests)

    def _play(self, request: Request) -> Answer:
        if self.dies_at == len(self.played):
            raise KilledError
        self.played.append((request.turn.round, request.device))
        # A round that is asked for twice is one round: a device sends again what it sent.
        rounds = self.kept.setdefault(request.device, [])
        if request.turn.round not in rounds:
            rounds.append(request.turn.round)
        draw = torch.Generator().manual_seed(1000 * request.device + len(rounds))
        return Answer(
            device=request.device,
            tensors={key: torch.randn(tensor.shape, generator=draw) for key, tensor in request.down.items()},
        )


def seconds_of(works: Mapping[int, int]) -> Callable[[Request], TaskCost]:
    """A cost: a Raspberry Pi is at work for so many seconds and moves nothing."""
    parameters = int(find_profile("pi5").training_gflops * 1e9 / 4)
    return lambda request: TaskCost(tokens=works[request.device], parameters=parameters)


def boards(
    folder: Path,
    works: Mapping[int, int],
    *,
    faults: FaultConfig | None = None,
    windows: str = "",
    enough: int | None = None,
    needed: int = 1,
) -> tuple[SimulatedFleet, Runtime]:
    """Make a fleet of Raspberry Pis, online as lines of a trace file say or always."""
    trace = folder / "trace.csv"
    trace.write_text(f"device,start_seconds,end_seconds\n{windows}", encoding="utf-8")
    config = FleetConfig(
        devices=len(works), mix=BOARDS, faults=faults or FaultConfig(), trace_file=trace if windows else None
    )
    runtime = Runtime(len(works))
    fleet = SimulatedFleet(
        runtime, config, cost=seconds_of(works), journal=folder / "fleet.jsonl", enough=enough, needed=needed
    )
    return fleet, runtime


def requests(devices: Iterable[int], number: int = 1, exchange: int = 0) -> list[Request]:
    turn = Turn(round=number, exchange=exchange, rank=3, scale=1.0)
    return [Request(device=device, turn=turn, down={"w": torch.zeros(2)}, agreement={}) for device in devices]


def heard(answers: Iterable[Answer]) -> list[int]:
    return [answer.device for answer in answers]


def test_answers_come_in_the_order_of_arrival_and_time_goes_on(tmp_path: Path) -> None:
    fleet, runtime = boards(tmp_path, {0: 30, 1: 10, 2: 20})
    assert heard(fleet.ask(requests([0, 1, 2]), seconds=None)) == [1, 2, 0]
    assert runtime.played == [(1, 1), (1, 2), (1, 0)]
    assert fleet.now == 30.0
    assert heard(fleet.ask(requests([0, 1], 2), seconds=None)) == [1, 0]
    assert fleet.now == 60.0
    assert heard(fleet.ask([], seconds=None)) == []


def test_devices_are_played_when_their_answer_is_asked_for(tmp_path: Path) -> None:
    fleet, runtime = boards(tmp_path, {0: 30, 1: 10, 2: 20})
    answers = fleet.ask(iter(requests([0, 1, 2])), seconds=None)
    assert runtime.played == []
    for number, answer in enumerate(answers, start=1):
        assert len(runtime.played) == number
        assert runtime.played[-1] == (1, answer.device)


def test_who_is_late_is_played_in_vain_and_not_asked_before_it_is_done(tmp_path: Path) -> None:
    fleet, runtime = boards(tmp_path, {0: 30, 1: 10, 2: 100})
    assert heard(fleet.ask(requests([0, 1, 2]), seconds=40.0)) == [1, 0]
    assert runtime.played == [(1, 1), (1, 0), (1, 2)], "the late one last, for its own state"
    assert fleet.now == 40.0
    assert list(fleet.devices()) == [0, 1]
    with pytest.raises(ConfigError, match="device 2 is at work; ask those"):
        list(fleet.ask(requests([1, 2], 2), seconds=None))
    fleet.wait()
    assert fleet.now == 100.0
    assert list(fleet.devices()) == [0, 1, 2]
    (record,) = read_journal(tmp_path / "fleet.jsonl")
    assert (record.asked, record.heard, record.busy) == (3, 2, {2: 100.0})
    watts = find_profile("pi5").training_watts
    assert record.device_joules == pytest.approx({0: 30 * watts, 1: 10 * watts, 2: 100 * watts})
    assert record.wasted.energy_joules == pytest.approx(100 * watts)


def test_a_round_ends_with_enough_answers(tmp_path: Path) -> None:
    fleet, runtime = boards(tmp_path, {0: 30, 1: 10, 2: 20, 3: 40}, enough=2)
    assert heard(fleet.ask(requests([0, 1, 2, 3]), seconds=35.0)) == [1, 2]
    assert fleet.now == 20.0
    assert runtime.played == [(1, 1), (1, 2), (1, 0), (1, 3)]
    assert list(fleet.devices()) == [1, 2]


def test_who_drops_out_is_never_played(tmp_path: Path) -> None:
    faults = FaultConfig(dropout=0.5)
    lost = {device for device in range(20) if draw_fault(faults, 0, 1, device).drops_after is not None}
    assert 3 < len(lost) < 17
    fleet, runtime = boards(tmp_path, dict.fromkeys(range(20), 10), faults=faults)
    assert set(heard(fleet.ask(requests(range(20)), seconds=60.0))) == set(range(20)) - lost
    assert {device for _, device in runtime.played} == set(range(20)) - lost
    assert fleet.now == 60.0, "silence tells a server nothing"
    assert len(fleet.devices()) == 20, "they are there again"


def test_another_attempt_meets_other_faults_and_another_exchange_the_same(tmp_path: Path) -> None:
    faults = FaultConfig(dropout=0.5)
    fleet, _ = boards(tmp_path, dict.fromkeys(range(20), 10), faults=faults)
    first = heard(fleet.ask(requests(range(20)), seconds=60.0))
    assert heard(fleet.ask(requests(first, exchange=1), seconds=60.0)) == first
    again = heard(fleet.ask(requests(range(20)), seconds=60.0))
    assert again == [device for device in range(20) if draw_fault(faults, 0, 1, device, 2).drops_after is None] != first
    places = [(record.round, record.attempt, record.exchange) for record in read_journal(tmp_path / "fleet.jsonl")]
    assert places == [(1, 1, 0), (1, 1, 1), (1, 2, 0)]


def test_only_who_is_online_can_be_asked_and_a_pause_delays(tmp_path: Path) -> None:
    fleet, _ = boards(tmp_path, {0: 10, 1: 10, 2: 10}, windows="a,0,4\na,50,90\nb,0,200\nc,20,30\n")
    assert list(fleet.devices()) == [0, 1]
    # Device 0 goes offline after 4 of its 10 s, and does the other 6 from second 50 on.
    assert heard(fleet.ask(requests([0, 1]), seconds=None)) == [1, 0]
    assert fleet.now == 56.0
    assert list(fleet.devices()) == [0, 1]


def test_a_wait_ends_when_as_many_are_there_as_are_needed(tmp_path: Path) -> None:
    fleet, _ = boards(tmp_path, {0: 1, 1: 1, 2: 1}, windows="a,5,10\nb,7,20\nc,15,40\n", needed=2)
    assert fleet.devices() == {}
    fleet.wait()
    assert (fleet.now, list(fleet.devices())) == (7.0, [0, 1])
    fleet.wait()
    assert (fleet.now, list(fleet.devices())) == (15.0, [1, 2])
    with pytest.raises(ConfigError, match="nobody comes within a year with whom there are 2"):
        fleet.wait()


def test_nodes_may_be_numbered_otherwise(tmp_path: Path) -> None:
    class Nodes(Runtime):
        def devices(self) -> Mapping[int, int]:
            return {1000 + number: 3 for number in range(self.count)}

    config = FleetConfig(devices=3, mix=BOARDS)
    cost = seconds_of({1000: 3, 1001: 2, 1002: 1})
    fleet = SimulatedFleet(
        Nodes(3), config, cost=cost, journal=tmp_path / "fleet.jsonl", index_of=lambda node: node - 1000
    )
    assert list(fleet.devices()) == [1000, 1001, 1002]
    assert heard(fleet.ask(requests([1000, 1001, 1002]), seconds=None)) == [1002, 1001, 1000]
    (record,) = read_journal(tmp_path / "fleet.jsonl")
    assert set(record.device_joules) == {0, 1, 2}


def test_devices_that_the_fleet_has_not_or_of_other_ranks_are_refused(tmp_path: Path) -> None:
    cost = seconds_of({})
    small = SimulatedFleet(Runtime(4), FleetConfig(devices=3, mix=BOARDS), cost=cost, journal=tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match="device 3 is number 3 of a fleet that has 3"):
        small.devices()
    profile = find_profile("pi5").rank
    for limit, rank in ((profile, profile), (profile + 8, profile), (4, 4)):
        fleet = SimulatedFleet(
            Runtime(3, rank=rank),
            FleetConfig(devices=3, mix=BOARDS),
            cost=cost,
            journal=tmp_path / "b.jsonl",
            rank_limit=limit,
        )
        assert set(fleet.devices().values()) == {rank}
    fleet = SimulatedFleet(
        Runtime(3, rank=2), FleetConfig(devices=3, mix=BOARDS), cost=cost, journal=tmp_path / "b.jsonl", rank_limit=4
    )
    with pytest.raises(ConfigError, match="an adapter of rank 2, its profile asks for 4"):
        fleet.devices()


def test_values_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needed must be >= 1, got 0"):
        boards(tmp_path, {0: 1}, needed=0)
    with pytest.raises(ConfigError, match="enough must be >= 1, got 0"):
        boards(tmp_path, {0: 1}, enough=0)


def test_a_server_behind_the_journal_is_told_to_resume(tmp_path: Path) -> None:
    fleet, _ = boards(tmp_path, {0: 10})
    for number in (1, 2):
        list(fleet.ask(requests([0], number), seconds=None))
    again, _ = boards(tmp_path, {0: 10})
    assert again.now == 20.0
    with pytest.raises(ConfigError, match="the server is at round 2, and the journal holds round 2; call resume"):
        list(again.ask(requests([0], 2), seconds=None))
    again.resume(1)
    assert again.now == 10.0
    assert heard(again.ask(requests([0], 2), seconds=None)) == [0]
    with pytest.raises(StorageError, match="ends with round 2, the server's checkpoint with round 5"):
        again.resume(5)


COORDINATION = {"cohort": 4, "over_selection": 1.5, "minimum_replies": 3, "rounds": 5, "deadline_seconds": 3600.0}
LIVELY = FleetConfig(
    devices=40,
    mix={"phone": 0.8, "pi5": 0.2},
    faults=FaultConfig(dropout=0.3, stragglers=0.1, slow_links=0.1),
    join_share=0.2,
    leave_share=0.1,
    days=10.0,
    seed=3,
)


def served(
    folder: Path, runtime: Runtime, changes: Mapping[str, object] | None = None, *, config: FleetConfig = LIVELY
) -> tuple[Coordinator, SimulatedFleet]:
    """Make a server's rounds over a fleet; both go on from what is in the folder."""
    coordination = CoordinationConfig.parse(COORDINATION | dict(changes or {}))
    plan = coordination.make_plan()
    # A phone trains for 8 · 8 · 100 tokens · 4 · 10⁸ / 24 GFLOPS = 107 s, if nothing goes wrong.
    work = LocalWork(plan=plan, adapter=adapter(3), parameters=10**8, row_tokens=100.0, rows=50.0)
    fleet = SimulatedFleet(
        runtime,
        config,
        cost=work,
        journal=folder / "fleet.jsonl",
        enough=coordination.cohort,
        needed=coordination.minimum_replies,
    )
    made = Coordinator(
        coordination, adapter(3), rank=3, scale=ALPHA_PER_RANK, transport=fleet, directory=folder / "server"
    )
    fleet.resume(made.progress().round)
    return made, fleet


def play(made: Coordinator) -> tuple[list[RoundLog], Progress]:
    logs = [log for log, _ in made.rounds()]
    return logs, made.progress()


def state(progress: Progress) -> tuple[int, Mapping[int, int], dict[str, bytes]]:
    tensors: Tensors = progress.shared.state
    return (
        progress.round,
        progress.participations,
        {key: tensor.numpy().tobytes() for key, tensor in tensors.items()},
    )


def test_all_rounds_come_about_with_dropouts_and_stragglers(tmp_path: Path) -> None:
    made, fleet = served(tmp_path, Runtime(40), {"rounds": 20})
    logs, progress = play(made)
    assert [log.round for log in logs] == list(range(1, 21))
    assert all(log.taken in (3, 4) and not log.refused and not log.failed for log in logs)
    records = list(read_journal(tmp_path / "fleet.jsonl"))
    lost = sum(record.asked - record.heard for record in records)
    assert lost > max(20, sum(log.silent for log in logs)), "who was late when a round had enough was not silent"
    assert sorted({record.round for record in records}) == list(range(1, 21))
    assert [record.started_at for record in records] == sorted(record.started_at for record in records)
    assert fleet.now == records[-1].ended_at > 20 * 107
    summary = summarize(tmp_path / "fleet.jsonl")
    assert summary.rounds == progress.round == 20
    assert 0.05 < summary.wasted_share < 0.5
    assert summary.mean_energy_wh > 0


def killed(folder: Path, runtime: Runtime, plays: int) -> None:
    """Play until the process dies, at the play of that number, if there are so many."""
    runtime.dies_at = len(runtime.played) + plays
    with suppress(KilledError):
        play(served(folder, runtime)[0])
    runtime.dies_at = None


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, list[FleetRecord], int]:
    folder, runtime = tmp_path_factory.mktemp("whole"), Runtime(40)
    made, _ = served(folder, runtime)
    return state(play(made)[1]), list(read_journal(folder / "fleet.jsonl")), len(runtime.played)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=2))
def test_a_run_that_was_killed_within_rounds_ends_the_same(
    uninterrupted: tuple[object, list[FleetRecord], int], deaths: list[int]
) -> None:
    expected, records, _ = uninterrupted
    with TemporaryDirectory() as name:
        folder, runtime = Path(name), Runtime(40)
        for plays in deaths:
            killed(folder, runtime, plays)
        made, _ = served(folder, runtime)
        assert state(play(made)[1]) == expected
        assert list(read_journal(folder / "fleet.jsonl")) == records


@pytest.mark.parametrize("stop", range(1, 5))
def test_a_run_that_was_stopped_between_rounds_ends_the_same(
    uninterrupted: tuple[object, list[FleetRecord], int], stop: int, tmp_path: Path
) -> None:
    expected, records, plays = uninterrupted
    runtime = Runtime(40)
    first, _ = served(tmp_path, runtime)
    for log, _ in first.rounds():
        if log.round == stop:
            break
    made, fleet = served(tmp_path, runtime)
    ended_at = max(record.ended_at for record in records if record.round == stop)
    assert fleet.now == ended_at
    assert state(play(made)[1]) == expected
    assert list(read_journal(tmp_path / "fleet.jsonl")) == records
    assert len(runtime.played) == plays


@pytest.mark.parametrize("stop", [1, 3])
def test_a_journal_that_is_ahead_of_the_server_is_cut_back(
    uninterrupted: tuple[object, list[FleetRecord], int], stop: int, tmp_path: Path
) -> None:
    """A kill between the end of a round and its checkpoint."""
    expected, records, _ = uninterrupted
    runtime = Runtime(40)
    checkpoint = tmp_path / "server" / "coordination.safetensors"
    first, _ = served(tmp_path, runtime)
    kept = b""
    for log, _ in first.rounds():
        if log.round == stop:
            kept = checkpoint.read_bytes()
        if log.round == stop + 1:
            break
    checkpoint.write_bytes(kept)
    made, fleet = served(tmp_path, runtime)
    assert fleet.now == max(record.ended_at for record in records if record.round == stop)
    assert state(play(made)[1]) == expected
    assert list(read_journal(tmp_path / "fleet.jsonl")) == records


def test_another_fleet_cannot_go_on(tmp_path: Path) -> None:
    play(served(tmp_path, Runtime(40), {"rounds": 1})[0])
    with pytest.raises(ConfigError, match="a fleet with other settings"):
        served(tmp_path, Runtime(40), config=LIVELY.model_copy(update={"seed": 4}))


def test_a_fleet_of_other_recorded_windows_cannot_go_on(tmp_path: Path) -> None:
    fleet, _ = boards(tmp_path, {0: 10}, windows="a,0,100\n")
    list(fleet.ask(requests([0]), seconds=None))
    boards(tmp_path, {0: 10}, windows="a,0,100\n")
    with pytest.raises(ConfigError, match="a fleet with other settings"):
        boards(tmp_path, {0: 10}, windows="a,50,60\n")


def test_the_real_apps_run_on_a_fleet_of_mixed_ranks(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = FleetConfig(devices=8, mix={"phone": 1.0, "pi5": 1.0}, availability=False, faults=LIVELY.faults, seed=2)
    shape = AdapterConfig(rank=6, alpha=12.0, top_layers=1, dropout=0.0)
    ranks = {spec.index: min(spec.profile.rank, 6) for spec in assign(config)}
    assert set(ranks.values()) == {4, 6}
    recorded = RecordedFleet.create(
        tmp_path / "devices",
        FleetSettings(
            model=str(tiny_model_folder),
            adapter=shape,
            ranks={str(device): rank for device, rank in ranks.items()},
            finetuning=FineTuneConfig(dtype="float32"),
        ),
    )
    example = Example(question="rain today?", response="bread and tea.", source_id="a", example_id="a")
    for device in ranks:
        recorded.record(device, [Lesson(example=example)])
    coordination = CoordinationConfig.parse(
        COORDINATION | {"model": str(tiny_model_folder), "adapter": shape, "plan": {"rule": "flexlora"}, "rounds": 2}
    )
    grid = InProcessGrid(client_app.app, len(ranks), node_config={"fleet": str(recorded.folder)})
    inner = GridTransport(grid, coordination)
    shared = fresh_adapter(str(tiny_model_folder), shape, 0)
    fleet = SimulatedFleet(
        inner,
        config,
        cost=LocalWork(plan=coordination.make_plan(), adapter=shared, parameters=10**8, row_tokens=9.0, rows=1.0),
        journal=tmp_path / "fleet.jsonl",
        index_of=lambda node: node - node_of(0),
        rank_limit=6,
    )
    made = Coordinator(coordination, shared, rank=6, scale=2.0, transport=fleet, directory=tmp_path / "server")
    try:
        logs, _ = play(made)
    finally:
        client.recorded.release()
        client.recorded.open_fleet.cache_clear()
    assert all(log.taken >= 3 and not log.refused and not log.failed for log in logs)
    summary = summarize(tmp_path / "fleet.jsonl")
    assert summary.rounds == 2
    assert summary.bytes_down == pytest.approx(sum(log.downlink_bytes for log in logs), rel=0.2)
    assert summary.bytes_up >= sum(log.uplink_bytes for log in logs)


def test_answers_to_what_was_sent_come_in_the_order_of_arrival(tmp_path: Path) -> None:
    fleet, runtime = boards(tmp_path, {0: 30, 1: 10, 2: 20})
    fleet.send(requests([0, 1, 2]))
    assert runtime.played == []
    assert fleet.devices() == {}
    answers, order = fleet.poll(None), []
    for answer in answers:
        order.append((answer.device, fleet.now, list(fleet.devices())))
        if fleet.now == 10.0:
            fleet.send(requests([1], 2))  # arrives at 20, as does device 2
    assert order == [(1, 10.0, [1]), (1, 20.0, [1]), (2, 20.0, [1, 2]), (0, 30.0, [0, 1, 2])]
    assert runtime.played == [(1, 1), (2, 1), (1, 2), (1, 0)]
    records = list(read_journal(tmp_path / "fleet.jsonl"))
    assert [(record.started_at, record.ended_at) for record in records] == [(0, 10), (10, 20), (0, 20), (0, 30)]
    assert [(record.round, record.attempt) for record in records] == [(1, 0), (2, 0), (2, 0), (2, 0)]
    assert records[0].busy == {0: 30.0, 2: 20.0}


def test_a_poll_ends_when_its_time_is_over_or_all_have_answered(tmp_path: Path) -> None:
    fleet, _ = boards(tmp_path, {0: 30, 1: 10})
    fleet.send(requests([0, 1]))
    assert heard(fleet.poll(15.0)) == [1]
    assert fleet.now == 15.0
    assert heard(fleet.poll(100.0)) == [0]
    assert fleet.now == 30.0
    assert heard(fleet.poll(100.0)) == []
    assert fleet.now == 30.0, "nobody is waited for"


def test_a_poll_waits_for_who_dropped_out_as_long_as_it_may(tmp_path: Path) -> None:
    faults = FaultConfig(dropout=0.5)
    lost = [device for device in range(6) if draw_fault(faults, 0, 1, device).drops_after is not None]
    fleet, runtime = boards(tmp_path, dict.fromkeys(range(6), 10), faults=faults)
    fleet.send(requests(range(6)))
    assert set(heard(fleet.poll(50.0))) == set(range(6)) - set(lost)
    assert 0 < len(runtime.played) == 6 - len(lost) < 6
    assert fleet.now == 50.0
    assert heard(fleet.poll(50.0)) == []
    assert fleet.now == 100.0
    fleet.send(requests(lost, 2))
    list(fleet.poll(None))
    records = list(read_journal(tmp_path / "fleet.jsonl"))
    assert fleet.now == records[-1].ended_at <= 110.0, "without a time it ends when the last one has stopped"
    assert sum(record.wasted.energy_joules > 0 for record in records if record.round == 1) == len(lost)


def test_who_has_answered_while_the_server_waited_is_there_to_be_polled(tmp_path: Path) -> None:
    fleet, _ = boards(tmp_path, {0: 10, 1: 10}, windows="a,0,100\nb,50,100\n")
    fleet.send(requests([0]))
    fleet.wait()
    assert fleet.now == 10.0
    assert fleet.devices() == {}, "its answer has not been fetched"
    with pytest.raises(ConfigError, match="device 0 is at work"):
        fleet.send(requests([0], 2))
    fleet.wait()
    assert (fleet.now, list(fleet.devices())) == (50.0, [1])
    assert heard(fleet.poll(None)) == [0]
    assert fleet.now == 50.0


def test_tasks_under_way_are_lost_with_the_server(tmp_path: Path) -> None:
    fleet, _ = boards(tmp_path, {0: 30, 1: 10, 2: 200})
    fleet.send(requests([0, 1, 2]))
    next(fleet.poll(None))
    again, runtime = boards(tmp_path, {0: 30, 1: 10, 2: 200})
    again.resume(1)
    assert (again.now, list(again.devices())) == (10.0, [1])
    assert heard(again.poll(None)) == []
    again.wait()
    assert (again.now, list(again.devices())) == (30.0, [0, 1])
    assert runtime.played == []


BUFFERED: dict[str, object] = {
    "cohort": 3,
    "over_selection": 1.0,
    "minimum_replies": 1,
    "deadline_seconds": 1800.0,
    "asynchronous": {"concurrency": 6},
}


def test_buffered_rounds_come_about_with_dropouts_and_stragglers(tmp_path: Path) -> None:
    made, fleet = served(tmp_path, Runtime(40), BUFFERED | {"rounds": 20})
    logs, _ = play(made)
    assert [log.round for log in logs] == list(range(1, 21))
    assert all(log.taken == 3 and not log.refused and not log.failed for log in logs)
    assert sum(log.silent for log in logs) > 0
    assert any(log.staleness > 0 for log in logs)
    ends = [record.ended_at for record in read_journal(tmp_path / "fleet.jsonl")]
    assert ends == sorted(ends)
    assert fleet.now == ends[-1]


def test_nobody_waits_for_stragglers_in_buffered_rounds(tmp_path: Path) -> None:
    config = FleetConfig(devices=40, mix=BOARDS, faults=FaultConfig(stragglers=0.3))
    seconds = []
    for name, changes in (("waiting", {}), ("buffered", {"asynchronous": {"concurrency": 6}})):
        cohort: dict[str, object] = {"cohort": 6, "minimum_replies": 6, "over_selection": 1.0, "deadline_seconds": None}
        play(served(tmp_path / name, Runtime(40), cohort | changes, config=config)[0])
        summary = summarize(tmp_path / name / "fleet.jsonl")
        assert (summary.rounds, summary.wasted_share) == (5, 0.0)
        seconds.append(summary.fleet_seconds)
    assert seconds[1] < 0.7 * seconds[0], "as many replies, from as many devices at a time"


def test_buffered_rounds_go_on_after_a_stop(tmp_path: Path) -> None:
    runtime = Runtime(40)
    for rounds, time_before in ((4, 0.0), (8, 4 * 107 / 4)):
        made, fleet = served(tmp_path, runtime, BUFFERED | {"rounds": rounds})
        assert fleet.now >= time_before
        assert play(made)[1].round == rounds
    records = list(read_journal(tmp_path / "fleet.jsonl"))
    assert sorted({record.round for record in records}) == list(range(1, 9))
    ends = [record.ended_at for record in records]
    assert ends == sorted(ends)


@pytest.mark.parametrize("cap", [None, 1])
def test_buffered_rounds_of_one_reply_go_on_after_a_stop(cap: int | None, tmp_path: Path) -> None:
    """A round may end without any work given out in it: after the one before, or because nobody may be asked again."""
    config, runtime = FleetConfig(devices=6, mix=BOARDS), Runtime(6)
    changes = BUFFERED | {"cohort": 1, "participation_cap": cap, "rounds": 6}
    now = 0.0
    for stop in (3, 5):
        made, fleet = served(tmp_path, runtime, changes, config=config)
        assert fleet.now >= now
        for log, _ in made.rounds():
            if log.round == stop:
                break
        now = fleet.now
    made, fleet = served(tmp_path, runtime, changes, config=config)
    assert fleet.now >= now > 0
    assert play(made)[1].round == 6


def test_of_ten_thousand_devices_those_asked_alone_are_played(tmp_path: Path) -> None:
    config = FleetConfig(devices=10_000, faults=FaultConfig(dropout=0.3))
    cost = TaskCost(tokens=10_000, parameters=10**8, bytes_up=10**6, bytes_down=10**6)
    runtime = Runtime(10_000)
    fleet = SimulatedFleet(runtime, config, cost=lambda _: cost, journal=tmp_path / "fleet.jsonl")
    for number in (1, 2, 3):
        online = fleet.devices()
        assert 4_000 < len(online) < 10_000
        list(fleet.ask(requests(list(online)[:50], number), seconds=600.0))
    assert len(runtime.played) < 150


def test_memory_is_that_of_a_few_numbers_a_device(tmp_path: Path) -> None:
    config = FleetConfig(devices=500, mix=PHONES)
    tracemalloc.start()
    fleet = SimulatedFleet(Runtime(500), config, cost=seconds_of({}), journal=tmp_path / "fleet.jsonl")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # 10,000 devices take 40 MB at the most.
    assert held < 500 * 4_000
    assert fleet.now == 0.0


def test_one_answer_is_in_memory_at_a_time(tmp_path: Path) -> None:
    class Heavy(Runtime):
        def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
            for request in requests:
                yield Answer(device=request.device, tensors={"w": torch.zeros(1)}, metrics={"blob": len(self.blob())})

        def blob(self) -> bytes:
            return bytes(10**6)

    config = FleetConfig(devices=50, mix=BOARDS)
    fleet = SimulatedFleet(
        Heavy(50), config, cost=seconds_of(dict.fromkeys(range(50), 9)), journal=tmp_path / "fleet.jsonl"
    )
    tracemalloc.start()
    for _ in fleet.ask(requests(range(50)), seconds=5.0):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 10**6


def test_a_month_of_a_fleet_s_life_is_gone_through(tmp_path: Path) -> None:
    config = FleetConfig(devices=120, faults=FaultConfig(dropout=0.1, stragglers=0.2), leave_share=0.2, seed=1)
    cost = TaskCost(tokens=100_000, parameters=10**8, bytes_up=4 * 10**6, bytes_down=4 * 10**6)
    fleet = SimulatedFleet(
        Runtime(120), config, cost=lambda _: cost, journal=tmp_path / "fleet.jsonl", enough=20, needed=30
    )
    number = 0
    while fleet.now < 30 * DAY_SECONDS:
        number += 1
        online = list(fleet.devices())
        list(fleet.ask(requests(online[:26], number), seconds=7200.0))
        for _ in range(8):
            fleet.wait()
    assert number > 50
    assert summarize(tmp_path / "fleet.jsonl").fleet_seconds > 29 * DAY_SECONDS


def test_the_fleet_is_the_one_that_its_settings_describe(tmp_path: Path) -> None:
    fleet = SimulatedFleet(Runtime(40), LIVELY, cost=seconds_of({}), journal=tmp_path / "fleet.jsonl")
    online = [spec.index for spec in assign(LIVELY) if spec.trace.is_online(0.0)]
    assert list(fleet.devices()) == online
    assert 0 < len(online) < 40
