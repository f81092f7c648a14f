"""The fleet: which device is what, and that it stays so."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from florilegium.errors import ConfigError, InputError
from simulation.fleet.availability import DAY_SECONDS, Always, Daily
from simulation.fleet.config import DeviceSpec, FleetConfig, assign, draw_device
from simulation.fleet.faults import FaultConfig
from simulation.fleet.profile import read_profiles

RICH = FleetConfig(devices=300, join_share=0.4, leave_share=0.3, days=20.0, seed=5)


def test_a_fleet_is_the_same_each_time() -> None:
    assert list(assign(RICH)) == list(assign(RICH))
    assert [spec.index for spec in assign(RICH)] == list(range(300))


def test_a_device_does_not_depend_on_how_many_there_are() -> None:
    many = RICH.model_copy(update={"devices": 10_000})
    assert list(islice(assign(many), 10)) == list(assign(RICH.model_copy(update={"devices": 10})))
    assert draw_device(many, 9_999) == draw_device(RICH, 9_999)


def test_seeds_make_different_fleets() -> None:
    fleets = [tuple(assign(FleetConfig(devices=20, seed=seed))) for seed in range(5)]
    assert all(one != two for place, one in enumerate(fleets) for two in fleets[place + 1 :])


def test_shares_of_the_mix_are_those_asked_for() -> None:
    mix = {"phone": 6.0, "laptop": 3.0, "pi5": 1.0, "jetson_orin_nano": 0.0}
    counts = Counter(spec.profile.name for spec in assign(FleetConfig(devices=5000, mix=mix)))
    assert set(counts) == {"phone", "laptop", "pi5"}
    for name, share in (("phone", 0.6), ("laptop", 0.3), ("pi5", 0.1)):
        # Binomial: five standard deviations.
        assert abs(counts[name] - 5000 * share) < 5 * math.sqrt(5000 * share * (1 - share))


def test_without_a_mix_the_profiles_say_their_shares() -> None:
    shares = {name: profile.share for name, profile in read_profiles().items()}
    assert list(assign(FleetConfig(devices=200))) == list(assign(FleetConfig(devices=200, mix=shares)))


def test_only_the_weights_of_a_mix_matter() -> None:
    one = FleetConfig(devices=200, mix={"phone": 1.0, "pi5": 3.0})
    other = FleetConfig(devices=200, mix={"pi5": 6.0, "phone": 2.0})
    assert list(assign(one)) == list(assign(other))


def test_what_is_drawn_for_one_purpose_changes_nothing_else() -> None:
    base = list(assign(RICH))
    faulty = RICH.model_copy(update={"faults": FaultConfig(dropout=0.5, stragglers=0.5)})
    assert list(assign(faulty)) == base
    staying = list(assign(RICH.model_copy(update={"join_share": 0.0, "leave_share": 0.0})))
    assert [(spec.profile, spec.trace.source) for spec in staying] == [(s.profile, s.trace.source) for s in base]
    elsewhere = list(assign(RICH.model_copy(update={"time_zones": (9.0,)})))
    for one, two in zip(base, elsewhere, strict=True):
        assert one.profile == two.profile
        assert (one.trace.joins_at, one.trace.leaves_at) == (two.trace.joins_at, two.trace.leaves_at)
        if isinstance(one.trace.source, Daily) and isinstance(two.trace.source, Daily):
            assert one.trace.source.shift_hours == two.trace.source.shift_hours
            assert two.trace.source.zone_hours == 9.0


def test_devices_join_and_leave_as_often_as_asked() -> None:
    fleet = list(assign(RICH.model_copy(update={"devices": 4000})))
    late = [spec.trace.joins_at for spec in fleet if spec.trace.joins_at > 0]
    gone = [spec.trace for spec in fleet if spec.trace.leaves_at < math.inf]
    # Binomial(4,000, .4) and (4,000, .3): standard deviations 31 and 29; five of them.
    assert abs(len(late) - 1600) < 155
    assert abs(len(gone) - 1200) < 145
    # Uniform over 20 days: the mean's standard deviation is 20 · .289 / √1,600 = .14 days; five of them.
    assert abs(sum(late) / len(late) / DAY_SECONDS - 10) < 0.73
    assert all(trace.joins_at < trace.leaves_at <= 20 * DAY_SECONDS for trace in gone)


def test_time_zones_are_drawn_evenly() -> None:
    config = FleetConfig(devices=3000, mix={"phone": 1.0}, time_zones=(-5.0, 0.0, 8.0))
    zones = Counter(spec.trace.source.zone_hours for spec in assign(config) if isinstance(spec.trace.source, Daily))
    # Binomial(3,000, 1/3): standard deviation 26; five of them.
    assert all(abs(zones[zone] - 1000) < 130 for zone in (-5.0, 0.0, 8.0))


def test_without_availability_all_are_online_all_the_time() -> None:
    fleet = list(assign(RICH.model_copy(update={"availability": False, "join_share": 0.0, "leave_share": 0.0})))
    assert all(spec.trace.source == Always() and spec.trace.next_online(1e7) == 1e7 for spec in fleet)


def test_recorded_traces_are_dealt_out_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("device,start_seconds,end_seconds\nx,0,10\ny,5,20\nx,30,40\n", encoding="utf-8")
    fleet = list(assign(FleetConfig(devices=5, trace_file=path)))
    intervals = [list(spec.trace.intervals(0.0, 100.0)) for spec in fleet]
    assert intervals == [[(0, 10), (30, 40)], [(5, 20)]] * 2 + [[(0, 10), (30, 40)]]
    path.write_text("device,start_seconds,end_seconds\nx,10,0\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"trace\.csv, line 2"):
        next(assign(FleetConfig(trace_file=path)))


def test_a_fleet_is_drawn_one_by_one_and_never_held() -> None:
    endless = assign(RICH.model_copy(update={"devices": 10**12}))
    assert isinstance(next(endless), DeviceSpec)
    tracemalloc.start()
    for _ in islice(endless, 2000):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"devices": 0}, "devices = 0 is refused"),
        ({"mix": {"phon": 1.0}}, "no device profile 'phon'; did you mean 'phone'"),
        ({"mix": {"phone": -1.0}}, r"the weight of phone must be finite and >= 0, got -1\.0"),
        ({"mix": {"phone": 0.0}}, "the weights must not all be 0"),
        ({"availability": False, "trace_file": "x.csv"}, "recorded traces need availability = true"),
        ({"time_zones": [15.0]}, r"time zones must be in \[-12, 14\] hours"),
        ({"time_zones": []}, "time_zones"),
        ({"join_share": 1.5}, r"join_share = 1\.5 is refused"),
        ({"faults": {"droput": 0.1}}, r"unknown key 'faults\.droput'; did you mean 'dropout'"),
    ],
)
def test_an_impossible_fleet_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FleetConfig.parse(values)
