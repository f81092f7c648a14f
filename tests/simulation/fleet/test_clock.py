"""Rounds by hand, laws of rounds, the wait for devices, and the queue of asynchronous rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florilegium.errors import ConfigError
from simulation.fleet.availability import DAY_SECONDS, Interval, Trace
from simulation.fleet.clock import ArrivalQueue, RoundOutcome, RoundRules, play_round, wait_until_online
from simulation.fleet.config import FleetConfig, assign
from simulation.fleet.faults import Fault, FaultConfig, draw_fault
from simulation.fleet.recorded import Recorded
from simulation.fleet.tasks import Task, TaskCost, Usage, run_task, total_usage

MB = 10**6
MakeTask = Callable[..., Task]

windows = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=6
)
faults = st.one_of(
    st.just(Fault()),
    st.builds(Fault, training_slowdown=st.floats(1, 9), link_slowdown=st.floats(1, 9)),
    st.builds(Fault, drops_after=st.floats(0, 0.99)),
)
drawn_tasks = st.lists(st.tuples(st.floats(0.25, 4), faults, st.one_of(st.none(), windows)), min_size=1, max_size=8)
rules = st.builds(
    RoundRules,
    deadline_seconds=st.one_of(st.just(math.inf), st.floats(0.5, 60)),
    enough=st.one_of(st.none(), st.integers(2, 9)),
    minimum=st.integers(1, 2),
)


def make_tasks(make_task: MakeTask, drawn: list[tuple[float, Fault, list[Interval] | None]]) -> list[Task]:
    return [
        make_task(device, speed=speed, fault=fault, windows=windows)
        for device, (speed, fault, windows) in enumerate(drawn)
    ]


@pytest.fixture
def four(make_task: MakeTask) -> list[Task]:
    """Return tasks that arrive after 4, 8 and 16 s, and one that drops out after 2 s with 2 MB received."""
    slow, twice, usual = make_task(0, speed=0.5), make_task(1, speed=2.0), make_task(2)
    return [slow, twice, usual, make_task(3, fault=Fault(drops_after=0.25))]


def test_a_round_by_hand(four: list[Task]) -> None:
    outcome = play_round(four, start=100.0)
    assert outcome.arrived == (1, 2, 0)
    assert [run.arrives_at for run in outcome.replies] == [104.0, 108.0, 116.0]
    assert (outcome.ended_at, outcome.duration_seconds) == (116.0, 16.0)
    # Received 2 MB each, sent 1 MB each but for the dropout. Watts · seconds: 10 · (8 + 2 + 4) + 2 · (8 + 2 + 4) = 168,
    # radio 3 · 9 = 27, and the dropout's 2 · 2 + 3 · 2 = 10.
    assert outcome.used == Usage(bytes_up=3 * MB, bytes_down=8 * MB, energy_joules=205.0)
    assert outcome.wasted == Usage(bytes_up=0, bytes_down=2 * MB, energy_joules=10.0)
    assert outcome.succeeded


def test_a_deadline_by_hand(four: list[Task]) -> None:
    outcome = play_round(four, start=100.0, rules=RoundRules(deadline_seconds=8.0))
    assert outcome.arrived == (1, 2), "who arrives at the deadline is heard"
    assert outcome.ended_at == 108.0
    assert [run.device for run in outcome.missed] == [0, 3]
    # The slow one finishes in vain: 10 · 8 + 2 · 8 + 3 · 3 = 105, and the dropout's 10.
    assert outcome.wasted == Usage(bytes_up=MB, bytes_down=4 * MB, energy_joules=115.0)
    assert play_round(four, start=100.0, rules=RoundRules(deadline_seconds=12.0)).ended_at == 112.0


def test_enough_replies_by_hand(four: list[Task]) -> None:
    outcome = play_round(four, start=0.0, rules=RoundRules(enough=1, deadline_seconds=50.0))
    assert (outcome.arrived, outcome.ended_at) == ((1,), 4.0)
    assert play_round(four, start=0.0, rules=RoundRules(enough=3)).ended_at == 16.0


def test_too_few_replies_waste_the_round(four: list[Task]) -> None:
    outcome = play_round(four, start=0.0, rules=RoundRules(deadline_seconds=8.0, minimum=3))
    assert outcome.arrived == (1, 2)
    assert not outcome.succeeded
    assert outcome.wasted == outcome.used


def test_without_a_deadline_a_round_ends_with_the_last_reply_or_loss(make_task: MakeTask) -> None:
    dropouts = [make_task(device, fault=Fault(drops_after=share)) for device, share in enumerate((0.25, 0.75))]
    assert play_round([*dropouts, make_task(2)], start=0.0).ended_at == 8.0
    alone = play_round(dropouts, start=0.0)
    assert (alone.ended_at, alone.arrived, alone.succeeded) == (6.0, (), False)
    assert play_round(dropouts, start=0.0, rules=RoundRules(deadline_seconds=60.0)).ended_at == 60.0


def test_ties_go_to_the_lower_device(make_task: MakeTask) -> None:
    tasks = [make_task(device) for device in (5, 3, 4)]
    assert play_round(tasks, start=0.0, rules=RoundRules(enough=2)).arrived == (3, 4)


@settings(max_examples=40, deadline=None)
@given(drawn_tasks, rules, st.floats(0, 40))
def test_nobody_is_heard_after_the_end_and_the_end_is_no_later_than_the_deadline(
    make_task: MakeTask, drawn: list[tuple[float, Fault, list[Interval] | None]], rules: RoundRules, start: float
) -> None:
    tasks = make_tasks(make_task, drawn)
    outcome = play_round(tasks, start=start, rules=rules)
    assert start <= outcome.ended_at <= start + rules.deadline_seconds
    assert all(run.arrives_at <= outcome.ended_at for run in outcome.replies)
    assert list(outcome.replies) == sorted(outcome.replies, key=lambda run: run.arrives_at)
    assert sorted(run.device for run in outcome.replies + outcome.missed) == list(range(len(tasks)))
    wanted = min(rules.enough or len(tasks), len(tasks))
    assert len(outcome.replies) <= wanted
    if len(outcome.replies) < wanted:
        assert not any(run.arrives_at <= start + rules.deadline_seconds < math.inf for run in outcome.missed)
    else:
        assert outcome.ended_at == outcome.replies[-1].arrives_at
    assert outcome.succeeded == (len(outcome.replies) >= rules.minimum)


@settings(max_examples=40, deadline=None)
@given(drawn_tasks, rules)
def test_usage_is_that_of_the_tasks_one_by_one(
    make_task: MakeTask, drawn: list[tuple[float, Fault, list[Interval] | None]], rules: RoundRules
) -> None:
    tasks = make_tasks(make_task, drawn)
    outcome = play_round(tasks, start=0.0, rules=rules)
    alone = total_usage(run_task(task, 0.0).usage for task in tasks)
    heard = total_usage(run.usage for run in outcome.replies)
    parts = (heard, outcome.wasted) if outcome.succeeded else (Usage(), outcome.wasted)
    for name in ("bytes_up", "bytes_down", "energy_joules"):
        assert getattr(outcome.used, name) == pytest.approx(getattr(alone, name))
        assert sum(getattr(part, name) for part in parts) == pytest.approx(getattr(alone, name))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.25, 4), st.floats(1, 9)), min_size=1, max_size=8))
def test_without_dropouts_and_deadline_all_arrive(make_task: MakeTask, drawn: list[tuple[float, float]]) -> None:
    tasks = [
        make_task(device, speed=speed, fault=Fault(training_slowdown=slowdown))
        for device, (speed, slowdown) in enumerate(drawn)
    ]
    outcome = play_round(tasks, start=0.0)
    assert sorted(outcome.arrived) == list(range(len(tasks)))
    assert outcome.wasted == Usage()


@settings(max_examples=40, deadline=None)
@given(drawn_tasks, st.floats(0.5, 60), st.floats(0, 60), st.randoms())
def test_a_longer_deadline_hears_no_fewer_and_the_order_of_tasks_changes_nothing(
    make_task: MakeTask,
    drawn: list[tuple[float, Fault, list[Interval] | None]],
    deadline: float,
    longer: float,
    random: Random,
) -> None:
    tasks = make_tasks(make_task, drawn)
    short = play_round(tasks, start=0.0, rules=RoundRules(deadline_seconds=deadline))
    assert set(short.arrived) <= set(
        play_round(tasks, start=0.0, rules=RoundRules(deadline_seconds=deadline + longer)).arrived
    )
    shuffled = list(tasks)
    random.shuffle(shuffled)
    assert play_round(shuffled, start=0.0, rules=RoundRules(deadline_seconds=deadline)) == short


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"deadline_seconds": 0.0}, r"deadline_seconds must be > 0, got 0\.0"),
        ({"deadline_seconds": math.nan}, "deadline_seconds must be > 0, got nan"),
        ({"enough": 0}, "enough must be >= 1, got 0"),
        ({"minimum": 0}, "minimum must be >= 1 and <= enough, got 0"),
        ({"enough": 2, "minimum": 3}, "minimum must be >= 1 and <= enough, got 3"),
    ],
)
def test_impossible_rules_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RoundRules(**values)  # type: ignore[arg-type]


def test_impossible_rounds_are_refused(make_task: MakeTask) -> None:
    with pytest.raises(ConfigError, match="one task each of at least one device"):
        play_round([], start=0.0)
    with pytest.raises(ConfigError, match="one task each of at least one device"):
        play_round([make_task(1), make_task(1)], start=0.0)


def test_the_wait_by_hand() -> None:
    windows: list[list[Interval]] = [[(0, 5), (20, 30)], [(5, 10)], [(8, 22)]]
    traces = [Trace(source=Recorded.of(each)) for each in windows]
    assert wait_until_online(traces, 0, 3.0) == 3.0
    assert wait_until_online(traces, 1, 3.0) == 3.0
    assert wait_until_online(traces, 2, 3.0) == 8.0, "who leaves at 5 does not meet who comes at 5"
    assert wait_until_online(traces, 2, 10.0) == 20.0
    assert wait_until_online(traces, 2, 22.0) == math.inf
    assert wait_until_online(traces, 3, 0.0) == math.inf


@settings(max_examples=40, deadline=None)
@given(st.lists(windows, max_size=6), st.integers(1, 6), st.integers(0, 50))
def test_the_wait_is_the_first_moment_at_which_enough_are_online(
    windows: list[list[Interval]], needed: int, start: int
) -> None:
    traces = [Trace(source=Recorded.of(each)) for each in windows]
    moments = [moment for moment in range(start, 60) if sum(trace.is_online(moment) for trace in traces) >= needed]
    assert wait_until_online(traces, needed, start) == (moments[0] if moments else math.inf)


def test_the_queue_gives_the_next_arrival(four: list[Task], make_task: MakeTask) -> None:
    queue = ArrivalQueue(start=10.0)
    for task in four:
        queue.send(task, at=10.0)
    assert len(queue) == 4
    lost = queue.pop()
    # The dropout stops after 2 s, the fast one arrives after 4 s; given another task then, it is back after 8 s.
    assert (lost.device, lost.arrived, queue.now) == (3, False, 12.0)
    assert (queue.pop().device, queue.now) == (1, 14.0)
    queue.send(four[1], at=queue.now)
    order = [(queue.pop().device, queue.now) for _ in range(3)]
    assert order == [(1, 18.0), (2, 18.0), (0, 26.0)], "of two at once the lower device goes first"
    with pytest.raises(ConfigError, match="no task is under way"):
        queue.pop()
    with pytest.raises(ConfigError, match=r"at must be >= 26\.0"):
        queue.send(make_task(), at=20.0)


@settings(max_examples=40, deadline=None)
@given(drawn_tasks, st.integers(0, 20))
def test_time_in_the_queue_only_goes_on(
    make_task: MakeTask, drawn: list[tuple[float, Fault, list[Interval] | None]], more: int
) -> None:
    tasks = make_tasks(make_task, drawn)
    queue = ArrivalQueue()
    sent = [queue.send(task, at=0.0) for task in tasks]
    popped, times = [], []
    while len(queue):
        popped.append(queue.pop())
        times.append(queue.now)
        if more:
            more -= 1
            sent.append(queue.send(tasks[popped[-1].device], at=queue.now))
    assert times == sorted(times) == sorted(run.stops_at for run in sent)
    assert len(popped) == len(sent)


def live(config: FleetConfig, until: float) -> list[RoundOutcome]:
    """Play rounds of 20 until a time: wait for 20, ask the first of them, go on with an hour's pause."""
    specs, clock = list(assign(config)), 0.0
    outcomes: list[RoundOutcome] = []
    cost = TaskCost(tokens=20_000, parameters=10**8, adapter_parameters=10**6, bytes_up=4 * MB, bytes_down=4 * MB)
    while (clock := wait_until_online([spec.trace for spec in specs], 20, clock)) < until:
        online = [spec for spec in specs if spec.trace.is_online(clock)][:20]
        tasks = [
            Task(
                device=spec.index,
                profile=spec.profile,
                trace=spec.trace,
                cost=cost,
                fault=draw_fault(config.faults, config.seed, len(outcomes), spec.index),
            )
            for spec in online
        ]
        outcomes.append(play_round(tasks, start=clock, rules=RoundRules(deadline_seconds=1800.0, minimum=10)))
        clock = outcomes[-1].ended_at + 3600.0
    return outcomes


def test_a_week_of_a_fleet_is_the_same_each_time_and_follows_the_day() -> None:
    config = FleetConfig(
        devices=60, mix={"phone": 1.0}, faults=FaultConfig(dropout=0.1, stragglers=0.2), time_zones=(0.0,), seed=4
    )
    outcomes = live(config, 7 * DAY_SECONDS)
    assert outcomes == live(config, 7 * DAY_SECONDS)
    hours = [outcome.started_at % DAY_SECONDS / 3600 for outcome in outcomes]
    assert sum(hour < 8 or hour > 21 for hour in hours) > 0.9 * len(hours) > 30, "20 of 60 phones meet by night"
    # 20,000 tokens · (4 · 10⁸ + 6 · 10⁶) / 24 GFLOPS = 338 s of training, and 2 s of transfers.
    assert all(outcome.duration_seconds >= 340 for outcome in outcomes)
    lost = sum(not run.arrived for outcome in outcomes for run in outcome.missed)
    # Binomial(20 a round, .1), five standard deviations: a phone that is unplugged comes back, and is late, not lost.
    asked = 20 * len(outcomes)
    assert abs(lost - 0.1 * asked) < 5 * math.sqrt(0.09 * asked)
