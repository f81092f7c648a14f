"""Tasks by hand: 2 s of download, 4 s of training, 2 s of upload, at 2 W, 10 W and 3 J a MB."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florilegium.errors import ConfigError
from simulation.fleet.faults import Fault
from simulation.fleet.tasks import Task, TaskCost, TaskRun, Usage, run_task, total_usage

MB = 10**6
MakeTask = Callable[..., Task]
# 10 W · 4 s + 2 W · 4 s + 3 J/MB · 3 MB = 40 + 8 + 9.
FULL = Usage(bytes_up=MB, bytes_down=2 * MB, energy_joules=57.0)

windows = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=9
)


def test_a_task_without_trouble(make_task: MakeTask) -> None:
    assert run_task(make_task(7), 100.0) == TaskRun(device=7, arrives_at=108.0, stops_at=108.0, usage=FULL)


@pytest.mark.parametrize(
    ("fault", "arrives_at", "energy_joules"),
    [
        # Training takes 12 s: 120 + 8 + 9.
        (Fault(training_slowdown=3.0), 16.0, 137.0),
        # Each transfer takes 4 s: 40 + 16 + 9.
        (Fault(link_slowdown=2.0), 12.0, 65.0),
    ],
)
def test_a_slow_task_takes_longer_and_more(
    make_task: MakeTask, fault: Fault, arrives_at: float, energy_joules: float
) -> None:
    run = run_task(make_task(fault=fault), 0.0)
    assert run.arrives_at == pytest.approx(arrives_at)
    assert (run.usage.bytes_up, run.usage.bytes_down) == (MB, 2 * MB)
    assert run.usage.energy_joules == pytest.approx(energy_joules)


@pytest.mark.parametrize(
    ("share", "bytes_up", "bytes_down", "energy_joules"),
    [
        (0.0, 0, 0, 0.0),
        # After 1 s: half of the download, 2 W · 1 s + 3 J/MB · 1 MB.
        (0.125, 0, MB, 5.0),
        # After 4 s: the download and 2 s of training, 10 · 2 + 2 · 2 + 3 · 2.
        (0.5, 0, 2 * MB, 30.0),
        # After 7 s: half of the upload, 10 · 4 + 2 · 3 + 3 · 2.5.
        (0.875, MB // 2, 2 * MB, 53.5),
    ],
)
def test_a_dropout_never_answers_and_has_spent_its_part(
    make_task: MakeTask, share: float, bytes_up: int, bytes_down: int, energy_joules: float
) -> None:
    run = run_task(make_task(fault=Fault(drops_after=share)), 10.0)
    assert not run.arrived
    assert run.stops_at == pytest.approx(10.0 + 8 * share)
    assert (run.usage.bytes_up, run.usage.bytes_down) == (bytes_up, bytes_down)
    assert run.usage.energy_joules == pytest.approx(energy_joules)


def test_a_device_that_goes_offline_pauses(make_task: MakeTask) -> None:
    # 3 s in the first window, 4 s in the second, the last one in the third.
    run = run_task(make_task(windows=[(1, 4), (10, 14), (20, 30)]), 0.0)
    assert run.arrives_at == 21.0
    assert run.usage == FULL, "waiting costs nothing"


def test_a_device_that_leaves_for_good_is_lost(make_task: MakeTask) -> None:
    # Online for 3 + 2 s: the download and 3 s of training, 10 · 3 + 2 · 2 + 3 · 2.
    run = run_task(make_task(windows=[(0, 3), (10, 12)]), 0.0)
    assert (run.arrives_at, run.stops_at) == (math.inf, 12.0)
    assert run.usage == Usage(bytes_up=0, bytes_down=2 * MB, energy_joules=40.0)
    assert run_task(make_task(windows=[(0, 3)]), 5.0) == TaskRun(
        device=0, arrives_at=math.inf, stops_at=5.0, usage=Usage()
    )


@given(windows, st.floats(0, 40))
def test_a_reply_arrives_when_the_device_was_online_for_its_work(
    make_task: MakeTask, windows: list[tuple[int, int]], start: float
) -> None:
    task = make_task(windows=windows)
    run = run_task(task, start)
    online = math.fsum(last - first for first, last in task.trace.intervals(start, run.stops_at))
    if run.arrived:
        assert online == pytest.approx(8.0)
        assert run.usage == FULL
    else:
        assert online < 8.0
        assert task.trace.next_online(run.stops_at) == math.inf


@given(st.floats(0, 0.999), st.floats(0, 0.999))
def test_who_drops_out_later_has_spent_no_less(make_task: MakeTask, one: float, two: float) -> None:
    early, late = (run_task(make_task(fault=Fault(drops_after=share)), 0.0).usage for share in sorted((one, two)))
    for name in ("bytes_up", "bytes_down", "energy_joules"):
        assert getattr(early, name) <= getattr(late, name) <= getattr(FULL, name)


def test_a_task_of_nothing_is_done_as_soon_as_the_device_is_there(make_task: MakeTask) -> None:
    nothing = TaskCost(tokens=0, parameters=0)
    there = make_task(windows=[(5, 6)])
    task = Task(device=0, profile=there.profile, trace=there.trace, cost=nothing)
    assert run_task(task, 0.0) == TaskRun(device=0, arrives_at=5.0, stops_at=5.0, usage=Usage())


def test_usage_adds_up() -> None:
    one, two = Usage(bytes_up=1, bytes_down=2, energy_joules=0.5), Usage(bytes_up=10, energy_joules=0.25)
    assert total_usage([one, two]) == Usage(bytes_up=11, bytes_down=2, energy_joules=0.75)
    assert total_usage([]) == Usage()


def test_impossible_tasks_are_refused(make_task: MakeTask) -> None:
    with pytest.raises(ConfigError, match="bytes_up must be >= 0, got -1"):
        TaskCost(tokens=1, parameters=1, bytes_up=-1)
    with pytest.raises(ConfigError, match="start must be finite, got inf"):
        run_task(make_task(), math.inf)
