"""Device profiles: the files, and the arithmetic of time and energy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from florilegium.errors import ConfigError
from simulation.fleet import profile as module
from simulation.fleet.profile import DeviceProfile, find_profile, read_profiles, training_flops

FOLDER = Path(module.__file__).parent / "profiles"
NAMES = ("jetson_orin_nano", "laptop", "phone", "pi5")
SIMPLE = DeviceProfile(
    memory_mb=1000,
    training_gflops=2.0,
    idle_watts=2.0,
    training_watts=10.0,
    radio_joules_per_mb=3.0,
    uplink_mbps=4.0,
    downlink_mbps=8.0,
    battery_wh=0.0,
    rank=8,
    share=1.0,
)


def test_the_profiles_are_the_files_of_the_folder() -> None:
    assert tuple(read_profiles()) == NAMES
    assert all(find_profile(name).name == name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_comment_that_says_where_it_is_from(name: str) -> None:
    blocks = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").split("\n\n")
    assert all(block.startswith("# ") for block in blocks)
    says = ("estimate", "measured by others", "choice", "mains", "median", "usual", "power mode's own")
    assert all(any(word in block.lower() for word in says) for block in blocks[1:])


@pytest.mark.parametrize("name", NAMES)
def test_profiles_are_plausible(name: str) -> None:
    profile = find_profile(name)
    assert profile.training_watts > profile.idle_watts
    assert profile.downlink_mbps >= profile.uplink_mbps
    assert (profile.habits is None) == (profile.battery_wh == 0), "here, what has no battery is never turned off"
    # From 1 (a board's processor) to 100 (a GPU) billion operations a joule.
    assert 1 < profile.training_gflops / profile.training_watts < 100


def test_a_new_profile_is_one_file_more(tmp_path: Path) -> None:
    for name in NAMES:
        shutil.copy(FOLDER / f"{name}.toml", tmp_path)
    text = (FOLDER / "pi5.toml").read_text(encoding="utf-8")
    (tmp_path / "pi6.toml").write_text(text.replace("rank = 8", "rank = 12"), encoding="utf-8")
    profiles = read_profiles(tmp_path)
    assert set(profiles) == {*NAMES, "pi6"}
    assert (profiles["pi6"].name, profiles["pi6"].rank) == ("pi6", 12)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ranc = 8", r"odd\.toml: unknown key 'ranc'; did you mean 'rank'"),
        ("training_gflops = 0.0", r"odd\.toml: training_gflops = 0\.0 is refused: .*greater than 0"),
        ("training_gflops = inf", r"training_gflops = inf is refused"),
        ("battery_wh = 20.0", r"a device with a battery needs \[habits\]"),
        ("[habits]\nnight_share = 1.5", r"habits\.night_share = 1\.5 is refused"),
        ("[habits]\nnigth_share = 0.5", r"unknown key 'habits\.nigth_share'"),
    ],
)
def test_a_bad_profile_is_refused_with_file_key_and_rule(tmp_path: Path, line: str, message: str) -> None:
    key = line.partition(" =")[0]
    kept = [each for each in (FOLDER / "pi5.toml").read_text(encoding="utf-8").splitlines() if not each.startswith(key)]
    (tmp_path / "odd.toml").write_text("\n".join([*kept, line]), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_profiles(tmp_path)


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match="no device profile 'pi'; did you mean 'pi5'"):
        find_profile("pi")


def test_flops_of_training_are_those_that_torch_counts() -> None:
    tokens, wide, rank = 7, 12, 3
    torch.manual_seed(0)
    x = torch.randn(tokens, wide, requires_grad=True)  # a layer below wants its gradient
    frozen = torch.randn(wide, wide)
    down, up = torch.randn(rank, wide, requires_grad=True), torch.randn(wide, rank, requires_grad=True)
    with FlopCounterMode(display=False) as lora:
        (x @ frozen.T + x @ down.T @ up.T).sum().backward()  # type: ignore[no-untyped-call]
    assert lora.get_total_flops() == training_flops(tokens, frozen=wide * wide, trained=2 * rank * wide)
    with FlopCounterMode(display=False) as full:
        (x @ frozen.requires_grad_().T).sum().backward()  # type: ignore[no-untyped-call]
    assert full.get_total_flops() == training_flops(tokens, frozen=0, trained=wide * wide)


def test_seconds_and_joules_by_hand() -> None:
    # 1,000 tokens · (4 · 10⁶ + 6 · 10⁵) = 4.6 · 10⁹ operations, at 2 · 10⁹ a second.
    assert SIMPLE.training_seconds(1000, 10**6, adapter_parameters=10**5) == pytest.approx(2.3)
    # 1 MB = 8 Mbit up at 4 Mbps, 3 MB = 24 Mbit down at 8 Mbps.
    assert SIMPLE.transfer_seconds(10**6, 3 * 10**6) == pytest.approx(2.0 + 3.0)
    # 10 W · 2.3 s + 2 W · 5 s + 3 J/MB · 4 MB = 23 + 10 + 12.
    energy = SIMPLE.energy_joules(training_seconds=2.3, transfer_seconds=5.0, transfer_bytes=4 * 10**6)
    assert energy == pytest.approx(45.0)


def test_a_battery_s_share_by_hand() -> None:
    assert SIMPLE.battery_share(1e9) == 0.0, "a device on mains has none to drain"
    # 19.3 Wh = 69,480 J.
    assert find_profile("phone").battery_share(6_948.0) == pytest.approx(0.1)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_time_and_energy_are_additive(one: int, two: int, up: int, down: int) -> None:
    seconds = SIMPLE.training_seconds
    assert seconds(one, 7) + seconds(two, 7) == pytest.approx(seconds(one + two, 7))
    assert SIMPLE.transfer_seconds(up, 0) + SIMPLE.transfer_seconds(0, down) == SIMPLE.transfer_seconds(up, down)
    energies = [
        SIMPLE.energy_joules(training_seconds=t, transfer_seconds=s, transfer_bytes=b)
        for t, s, b in ((one, two, up), (two, one, down), (one + two, one + two, up + down))
    ]
    assert energies[0] + energies[1] == pytest.approx(energies[2])
