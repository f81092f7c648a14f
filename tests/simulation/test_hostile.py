"""Hostile devices, and what merging makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors
from privacy.egress import ErrorCode
from server.config import CoordinationConfig
from server.rounds import Coordinator, TooFewRepliesError
from server.transport import Answer, Request
from simulation.hostile import ATTACKS, Hostile, HostileConfig, draw_hostile
from simulation.sharing.compare import SharingProgress, run_sharing
from simulation.sharing.config import SharingConfig
from strategies.factors import Factors, join, layers
from strategies.robust import ROBUST_RULES
from tests.server.toy import Post, assert_same, play
from tests.simulation.sharing.test_sharing import make_config, read_records, without_seconds
from tests.simulation.test_compare import make_user
from tests.strategies.rules.fleet import ALPHA_PER_RANK, adapter

DEVICES = 20
HOSTILE = draw_hostile(HostileConfig(), DEVICES)


@given(st.integers(1, 200), st.floats(0.01, 1.0), st.integers(0, 2**40))
def test_a_share_of_the_devices_is_hostile_at_least_one_and_always_the_same(
    devices: int, share: float, seed: int
) -> None:
    config = HostileConfig(share=share, seed=seed, attack="mixed")
    drawn = draw_hostile(config, devices)
    assert len(drawn) == max(1, round(share * devices))
    assert drawn.keys() <= set(range(devices))
    assert set(drawn.values()) <= ATTACKS.keys()
    assert draw_hostile(config, devices) == drawn


def test_a_higher_share_adds_hostile_devices_and_takes_none_away() -> None:
    few, many = (draw_hostile(HostileConfig(share=share, attack="mixed"), 100) for share in (0.1, 0.3))
    assert few.items() <= many.items()
    assert set(many.values()) == ATTACKS.keys()


def test_another_seed_has_other_devices() -> None:
    assert len({tuple(draw_hostile(HostileConfig(seed=seed), DEVICES)) for seed in range(10)}) > 5


class Script:
    """A transport whose devices answer what they are told to."""

    def __init__(self, answers: Mapping[int, Answer]) -> None:
        self.answers, self.sent = answers, list[Request]()

    def devices(self) -> Mapping[int, int]:
        return dict.fromkeys(self.answers, 3)

    def wait(self) -> None:
        return None

    def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
        yield from self.answers.values()

    def send(self, requests: Iterable[Request]) -> None:
        self.sent.extend(requests)

    def poll(self, seconds: float | None) -> Iterator[Answer]:
        yield from self.answers.values()


@pytest.mark.parametrize("polls", [False, True])
@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        ("sign_flip", lambda tensor: -3.0 * tensor),
        ("scaled", lambda tensor: 3.0 * tensor),
        ("nan", lambda tensor: tensor * float("nan")),
        ("wrong_shape", lambda tensor: tensor.reshape(1, *tensor.shape)),
        ("huge", lambda tensor: torch.full_like(tensor, 1e30)),
    ],
)
def test_an_attack_replaces_what_hostile_devices_answer_and_nothing_else(
    attack: str, expected: Callable[[Tensor], Tensor], polls: bool
) -> None:
    payload = {"w": torch.arange(6.0).reshape(2, 3), "w/step": torch.tensor(0.5), "whole": torch.arange(3).char()}
    nodes = range(1_000, 1_000 + DEVICES)
    answers = {node: Answer(device=node, tensors=payload, metrics={"rows": 4.0}, round=7) for node in nodes}
    config = HostileConfig(attack=attack, factor=3.0)
    made = Hostile(Script(answers), config, devices=DEVICES, index_of=lambda node: node - 1_000)
    for answer in made.poll(None) if polls else made.ask([], seconds=None):
        sent = dict(payload)
        if answer.device - 1_000 in HOSTILE:
            sent |= {key: expected(payload[key]) for key in ("w", "w/step")}
        assert answer.tensors.keys() == sent.keys()
        for key, tensor in sent.items():
            torch.testing.assert_close(answer.tensors[key], tensor, rtol=0, atol=0, equal_nan=True)
        assert (answer.metrics, answer.round) == ({"rows": 4.0}, 7)


def test_who_cannot_answer_says_so() -> None:
    answers = {device: Answer(device=device, error=ErrorCode.NO_DATA) for device in range(DEVICES)}
    made = Hostile(Script(answers), HostileConfig(attack="nan"), devices=DEVICES)
    assert list(made.ask([], seconds=None)) == list(answers.values())


# With the server: what is refused.


def coordinator(folder: Path, config: HostileConfig | None, *, asked: Iterable[int], **settings: object) -> Coordinator:
    ranks = dict.fromkeys(asked, 3)
    run = CoordinationConfig.parse({"cohort": len(ranks), "rounds": 3, "minimum_replies": 5} | settings)
    post = Post(run.make_plan(), ranks)
    transport = post if config is None else Hostile(post, config, devices=DEVICES)
    return Coordinator(run, adapter(3), rank=3, scale=ALPHA_PER_RANK, transport=transport, directory=folder)


@pytest.mark.parametrize("robust", ["none", *ROBUST_RULES])
@pytest.mark.parametrize(
    ("attack", "factor", "reason"),
    [
        ("nan", 1.0, "not-finite"),
        ("wrong_shape", 1.0, "wrong-shape"),
        ("scaled", 1e300, "not-finite"),
        ("huge", 1.0, "huge"),
    ],
)
def test_what_is_no_update_is_refused_by_name_and_the_round_goes_on(
    robust: str, attack: str, factor: float, reason: str, tmp_path: Path
) -> None:
    plan = {"rule": "fedit", "robust": robust}
    config = HostileConfig(attack=attack, factor=factor)
    logs, found = play(coordinator(tmp_path / "hostile", config, asked=range(DEVICES), plan=plan))
    assert [dict(log.refused) for log in logs] == [dict.fromkeys(HOSTILE, reason)] * 3
    assert [log.taken for log in logs] == [DEVICES - len(HOSTILE)] * 3
    honest = set(range(DEVICES)).difference(HOSTILE)
    _, expected = play(coordinator(tmp_path / "honest", None, asked=honest, plan=plan))
    for key, tensor in expected.shared.state.items():
        torch.testing.assert_close(found.shared.state[key], tensor)


@pytest.mark.parametrize(("attack", "reason"), [("nan", "not-finite"), ("wrong_shape", "wrong-shape")])
def test_buffered_rounds_refuse_them_as_well(attack: str, reason: str, tmp_path: Path) -> None:
    made = coordinator(
        tmp_path,
        HostileConfig(attack=attack),
        asked=range(DEVICES),
        cohort=8,
        rounds=6,
        asynchronous={"concurrency": DEVICES},
    )
    logs, _ = play(made)
    refused = [dict(log.refused) for log in logs]
    assert all(each.items() <= dict.fromkeys(HOSTILE, reason).items() for each in refused)
    assert any(refused)
    assert [log.taken for log in logs] == [8] * 6


@pytest.mark.parametrize("attack", [*ATTACKS, "mixed"])
def test_a_run_that_was_stopped_meets_the_same_devices(attack: str, tmp_path: Path) -> None:
    config = HostileConfig(attack=attack, factor=2.0)
    plan = {"rule": "fedit", "robust": "median"}
    _, whole = play(coordinator(tmp_path / "whole", config, asked=range(DEVICES), plan=plan))
    for _ in coordinator(tmp_path / "cut", config, asked=range(DEVICES), plan=plan).rounds():
        break
    _, cut = play(coordinator(tmp_path / "cut", config, asked=range(DEVICES), plan=plan))
    assert_same(cut, whole)


# With something to learn: how much is lost, in points of accuracy.

CLASSES, FEATURES, RANK, ROWS, ROUNDS = 6, 10, 3, 100, 10


class Classroom(Script):
    """Devices that learn to tell classes apart: labels are a teacher's of low rank, a little different on each device.

    A device takes five steps of softmax regression on W = B A. The score is taken on the teacher's own labels.
    """

    def __init__(self) -> None:
        super().__init__({device: Answer(device=device) for device in range(DEVICES)})
        draw = torch.Generator().manual_seed(0)
        teacher = torch.randn(CLASSES, RANK, generator=draw) @ torch.randn(RANK, FEATURES, generator=draw)
        teachers = teacher + 0.2 * torch.randn(DEVICES, CLASSES, FEATURES, generator=draw)
        centres = 0.5 * torch.randn(DEVICES, 1, FEATURES, generator=draw)
        self.rows = torch.randn(DEVICES, ROWS, FEATURES, generator=draw) + centres
        labels = (self.rows @ teachers.mT).argmax(dim=2)
        self.targets = torch.nn.functional.one_hot(labels, CLASSES).float()
        self.heldout = torch.randn(2_000, FEATURES, generator=draw)
        self.heldout_labels = (self.heldout @ teacher.T).argmax(dim=1)
        first = torch.randn(RANK, FEATURES, generator=draw) / FEATURES**0.5
        self.start = join({"classes": Factors(first, torch.zeros(CLASSES, RANK))})

    def ask(self, requests: Iterable[Request], *, seconds: float | None) -> Iterator[Answer]:
        asked = list(requests)
        learned = self._learn(asked[0].down)  # all are told the same
        for request in asked:
            yield Answer(device=request.device, tensors=learned[request.device])

    def points(self, state: Tensors) -> float:
        pair = layers(state)["classes"]
        found = (self.heldout @ pair.a.T @ pair.b.T).argmax(dim=1)
        return 100 * float((found == self.heldout_labels).float().mean())

    def _learn(self, down: Tensors) -> list[Tensors]:
        pair = layers(down)["classes"]
        a, b = pair.a.expand(DEVICES, -1, -1), pair.b.expand(DEVICES, -1, -1)
        for _ in range(5):
            error = (self.rows @ a.mT @ b.mT).softmax(dim=2) - self.targets
            slope = error.mT @ self.rows / ROWS
            a, b = a - b.mT @ slope, b - slope @ a.mT
        return [join({"classes": Factors(*moved)}) for moved in zip(a - pair.a, b - pair.b, strict=True)]


Points = Callable[[str, HostileConfig | None], float]
EVERY_ATTACK = [HostileConfig(attack=attack) for attack in ATTACKS]
MIXED = HostileConfig(attack="mixed", seed=8)


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Points:
    """Return how many held-out rows of a hundred a fleet tells apart, by robust rule and hostile devices."""
    classroom = Classroom()

    @cache
    def score(robust: str, hostile: HostileConfig | None) -> float:
        options = {"robust_options": {"byzantine": len(HOSTILE)}} if robust == "multi_krum" else {}
        config = CoordinationConfig.parse(
            {
                "cohort": DEVICES,
                "rounds": ROUNDS,
                "minimum_replies": 10,
                "attempts": 2,
                "plan": {"rule": "fedit", "robust": robust, **options},
            }
        )
        made = Coordinator(
            config,
            classroom.start,
            rank=RANK,
            scale=1.0,
            transport=classroom if hostile is None else Hostile(classroom, hostile, devices=DEVICES),
            directory=tmp_path_factory.mktemp("run"),
        )
        with suppress(TooFewRepliesError):  # devices that cannot learn any more answer nothing that is finite
            play(made)
        return classroom.points(made.progress().shared.state)

    return score


@pytest.mark.parametrize("attack", ["sign_flip", "scaled"])
def test_averaging_fails(attack: str, points: Points) -> None:
    assert points("none", None) > 85
    assert points("none", HostileConfig(attack=attack)) < 50


def test_the_mixture_is_one() -> None:
    assert draw_hostile(MIXED, DEVICES) == {12: "sign_flip", 18: "huge"}


@pytest.mark.parametrize("hostile", [*EVERY_ATTACK, MIXED], ids=lambda config: config.attack)
@pytest.mark.parametrize("robust", ROBUST_RULES)
def test_a_robust_rule_stays_within_two_points_of_the_clean_run(
    robust: str, hostile: HostileConfig, points: Points
) -> None:
    clean = max(points(robust, None), points("none", None))
    assert points(robust, hostile) > clean - 2


# In a comparison.


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"fleet": {"devices": 4, "availability": False}}], ids=["bare", "clock"])
def test_a_comparison_meets_them_and_goes_on_to_the_same_end(
    changes: dict[str, object], tmp_path: Path, tiny_model_folder: Path
) -> None:
    def config(attack: str | None) -> SharingConfig:
        hostile = None if attack is None else {"share": 0.25, "attack": attack}
        return make_config(tiny_model_folder, arms=("fedit",), unseen=0, rounds=2, hostile=hostile, **changes)

    class StoppedError(Exception):
        """Ctrl-C, as far as a run can tell."""

    def stop(progress: SharingProgress) -> None:
        if progress.doing == "fedit, seed 0, round 1":
            raise StoppedError

    users = {0: [make_user(f"user{number}", turns=14) for number in range(4)]}
    run_sharing(users, config(None), tmp_path / "clean")
    run_sharing(users, config("sign_flip"), tmp_path / "whole")
    with pytest.raises(StoppedError):
        run_sharing(users, config("sign_flip"), tmp_path / "cut", progress=stop)
    run_sharing(users, config("sign_flip"), tmp_path / "cut")
    assert without_seconds(tmp_path / "cut") == without_seconds(tmp_path / "whole")
    worst = [max(r.candidate["nll"] for r in read_records(tmp_path / name) if r.round) for name in ("clean", "whole")]
    assert worst[1] > worst[0] + 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 0.0}, "hostile.share = 0.0"),
        ({"attack": "sing_flip"}, "must be one of .*sign_flip"),
        ({"factor": float("inf")}, "hostile.factor = inf"),
        ({"shares": 0.1}, "unknown key 'hostile.shares'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], message: str, tiny_model_folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(tiny_model_folder, hostile=changes)


def test_processes_of_flower_have_no_such_way(tiny_model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="leave out hostile"):
        make_config(tiny_model_folder, runtime="ray", hostile={})
