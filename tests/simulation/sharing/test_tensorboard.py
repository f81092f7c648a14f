"""What TensorBoard's own reader finds of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from florilegium.errors import StorageError
from simulation.records import METRICS, RoundRecord
from simulation.sharing.tensorboard import RoundWriter, scalars

WAYS = ("none", "shared", "personal")


def record(device: int, number: int, *, way: str = "shared", unseen: bool = False, uplink: int = 0) -> RoundRecord:
    return RoundRecord(
        seed=3,
        user=f"user{device}",
        arm="dual+fedit",
        round=number,
        seen=10 * number,
        scores=dict.fromkeys(METRICS, (device + 1) / 16 + number),
        way=way,
        unseen=unseen,
        uplink_bytes=uplink,
    )


def measured(number: int) -> list[RoundRecord]:
    """Eleven devices that take part and one that does not, on numbers that float32 holds."""
    ways = ["none"] * 2 + ["shared"] * 5 + ["personal"] * 4
    fleet = [record(device, number, way=way, uplink=100 * number * device) for device, way in enumerate(ways)]
    return [*fleet, record(20, number, way="none", unseen=True)]


def points(reader: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    tags: Sequence[str] = reader.Reload().Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags}


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    return points(EventAccumulator(str(folder)))


def test_a_round_in_numbers() -> None:
    found = scalars(measured(2))
    assert found["rouge1/mean"] == 2 + 6 / 16
    assert found["rouge1/worst_tenth"] == 2 + (1 + 2) / 2 / 16, "two of eleven, the lowest"
    assert found["nll/worst_tenth"] == 2 + (10 + 11) / 2 / 16, "two of eleven, the highest"
    assert [found[f"answers_with/{way}"] for way in WAYS] == [2 / 11, 5 / 11, 4 / 11]
    assert found["network/uplink_bytes"] == 200 * 5
    assert found["unseen/rouge1/mean"] == 2 + 21 / 16
    assert [found[f"unseen/answers_with/{way}"] for way in WAYS] == [1, 0, 0]
    assert "unseen/network/uplink_bytes" not in found
    assert not any(tag.startswith("unseen") for tag in scalars(measured(2)[:-1]))


def test_a_reader_sees_a_round_as_soon_as_it_is_added(tmp_path: Path) -> None:
    with RoundWriter(tmp_path / "arm" / "seed-3") as board:
        for rounds in ((0,), (0, 5), (0, 5, 10)):
            board.add(measured(rounds[-1]))
            found = read(tmp_path / "arm" / "seed-3")
            assert found.keys() == scalars(measured(0)).keys()
            for tag, seen in found.items():
                expected = [scalars(measured(number))[tag] for number in rounds]
                assert [step for step, _ in seen] == [*rounds]
                assert [value for _, value in seen] == pytest.approx(expected, rel=1e-6)


def test_an_arm_that_goes_on_has_each_point_once(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), RoundWriter(tmp_path) as board:
        board.add(measured(0))
        board.add(measured(5))
        raise KeyboardInterrupt
    watching = EventAccumulator(str(tmp_path))
    assert [step for step, _ in points(watching)["rouge1/mean"]] == [0, 5]
    with RoundWriter(tmp_path) as board:
        for number in (0, 5, 10):
            board.add(measured(number))
        assert [step for step, _ in read(tmp_path)["rouge1/mean"]] == [0, 5, 10]
        assert points(watching) == read(tmp_path), "also where it was open all the time"
    assert len([*tmp_path.iterdir()]) == 1
    assert points(watching) == read(tmp_path)


def test_no_user_is_named(tmp_path: Path) -> None:
    with RoundWriter(tmp_path) as board:
        board.add(measured(0))
    (file,) = tmp_path.iterdir()
    assert b"rouge1/mean" in file.read_bytes()
    assert b"user" not in file.read_bytes()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(StorageError, match="seed-0 cannot be written"):
        RoundWriter(tmp_path / "tensorboard" / "fedit" / "seed-0")
