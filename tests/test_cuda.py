"""A CUDA device computes what the processor does: the built-in model and tiny random ones, to the rounding of sums."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import client.recorded
from client import app as client_app
from client.adapters import PERSONAL, SHARED, AdaptedModel, AdapterConfig
from client.annotation import Oracle
from client.device import Device, DeviceSettings
from client.dialogue import Dialogue, Example
from client.evaluation import evaluate, forgetting_probe, nll
from client.finetuning import Anchor, FineTuneConfig, Progress, Target, finetune, mean_gradient
from client.finetuning.memory import PeakMeter, resident_bytes
from client.finetuning.zeroth_order import zeroth_order
from client.model import BaseModel, load_model
from client.participant import Assignment
from client.recorded import FleetSettings, Lesson, RecordedFleet
from florilegium.errors import InputError, MemoryBudgetError
from server import app as server_app
from server.checkpoint import Progress as Coordinated
from server.config import CoordinationConfig
from simulation.runtimes.inprocess import InProcessGrid, node_of
from strategies.directions import Directions
from strategies.settings import PlanSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.device("cuda", 0)
WORDS = ("rain", "tea", "garden", "letter", "window", "bread", "seven", "uncle", "north", "candle", "bicycle", "soup")
QUESTIONS = (
    "What should I cook for dinner tonight?",
    "Where did I leave my keys?",
    "Please remind me to water the plants in the morning.",
    "My sister comes on Friday.",
    "How long does the train take?",
)
CONFIG = FineTuneConfig(
    learning_rate=1e-3, epochs=2, batch_size=4, micro_tokens=256, dtype="float32", checkpoint_steps=1, seed=3
)


def example(number: int, *, longer: int = 1) -> Example:
    """One row whose lengths and words depend on its number alone."""
    question = " ".join(WORDS[(number * 5 + k) % 12] for k in range(longer * (2 + number % 7))) + "?"
    response = " ".join(WORDS[(number * 7 + k * k) % 12] for k in range(longer * (2 + number % 4))) + "."
    return Example(question=question, response=response, source_id=f"{number:04d}", example_id=f"{number:04d}")


EXAMPLES = [example(number) for number in range(11)]
LONG = [example(number, longer=24) for number in range(5)]  # more tokens than a block of fused attention


@pytest.fixture(params=["seedling", "tiny"])
def name(request: pytest.FixtureRequest, tiny_model_folder: Path) -> str:
    return "seedling" if request.param == "seedling" else str(tiny_model_folder)


@pytest.fixture
def bases(name: str) -> tuple[BaseModel, BaseModel]:
    """The same float32 model on the processor and on the card."""
    return load_model(name, dtype="float32", device="cpu"), load_model(name, dtype="float32", device="cuda")


@pytest.fixture
def wrap() -> Iterator[Callable[..., AdaptedModel]]:
    """Adapters whose shared slot takes part, taken off at the end."""
    made: list[AdaptedModel] = []

    def make(base: BaseModel, *, top_layers: int | None = None) -> AdaptedModel:
        model = AdaptedModel(base, AdapterConfig(rank=4, dropout=0.1, top_layers=top_layers))
        made.append(model)
        generator = torch.Generator().manual_seed(5)
        drawn = {key: torch.randn(each.shape, generator=generator) for key, each in model.state(SHARED).items()}
        model.load_state(SHARED, {key: 0.02 * each for key, each in drawn.items()})
        model.reset(PERSONAL, 1)
        return model

    yield make
    for model in made:
        model.detach()


def assert_near(found: Tensor, expected: Tensor, start: Tensor, tolerance: float = 0.02) -> None:
    """Hold where two trainings went to each other, by how far they went; rounding turns small gradients' signs."""
    found, expected, start = (tensor.detach().cpu().double() for tensor in (found, expected, start))
    moved = float((expected - start).norm())
    assert moved > 0
    assert float((found - expected).norm()) <= tolerance * moved


# -- inference --------------------------------------------------------------------------------------------------------


def test_answers_and_embeddings_are_the_processor_s(bases: tuple[BaseModel, BaseModel]) -> None:
    cpu, cuda = (base.respond(QUESTIONS, max_new_tokens=24) for base in bases)
    assert [answer.text for answer in cuda] == [answer.text for answer in cpu]
    for one, other in zip(cpu, cuda, strict=True):
        assert one.embedding is not None
        assert other.embedding is not None
        np.testing.assert_allclose(other.embedding.vector, one.embedding.vector, atol=1e-4)
        assert other.embedding.eoe_energy == pytest.approx(one.embedding.eoe_energy, abs=1e-4)
    dialogues = [Dialogue(question=row.question, response=row.response) for row in EXAMPLES]
    for alone, beside in zip(bases[0].embed(dialogues), bases[1].embed(dialogues), strict=True):
        np.testing.assert_allclose(beside.vector, alone.vector, atol=1e-4)


def test_drawn_answers_are_the_processor_s(bases: tuple[BaseModel, BaseModel]) -> None:
    limits = [3, 20, 1, 9, 20]  # rows leave the batch between two looks
    found = [
        base.generate(
            [base.prompt_ids(question) for question in QUESTIONS],
            max_new_tokens=limits,
            temperature=0.8,
            seeds=range(5),
            embed=True,
        )
        for base in bases
    ]
    assert [answer.text for answer in found[1]] == [answer.text for answer in found[0]]
    assert all(answer.token_count <= limit for answer, limit in zip(found[1], limits, strict=True))


def test_likelihoods_are_the_processor_s(bases: tuple[BaseModel, BaseModel]) -> None:
    (cpu, tokens), (cuda, same) = (nll(base, EXAMPLES) for base in bases)
    assert same == tokens
    assert cuda == pytest.approx(cpu, rel=1e-5)
    probe = ["The seats by the window are the best.", "It takes about two hours."]
    assert forgetting_probe(bases[1], probe) == pytest.approx(forgetting_probe(bases[0], probe), rel=1e-5)
    for one, other in zip(*(evaluate(base, EXAMPLES[:4], max_new_tokens=8) for base in bases), strict=True):
        assert (other.rouge1, other.rouge_l) == (one.rouge1, one.rouge_l)
        assert other.nats == pytest.approx(one.nats, rel=1e-4)


def test_auto_is_cuda_in_bfloat16() -> None:
    whole, half = load_model(dtype="float32", device="cuda"), load_model()
    assert (half.device, half.module.dtype) == (CUDA, torch.bfloat16)
    (exact, tokens), (rounded, _) = nll(whole, EXAMPLES), nll(half, EXAMPLES)
    assert rounded / tokens == pytest.approx(exact / tokens, rel=0.02)
    assert all(answer.embedding is not None for answer in half.respond(QUESTIONS, max_new_tokens=8))


# -- fine-tuning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_layers", [None, 1])
def test_fine_tuning_ends_where_the_processor_s_does(
    bases: tuple[BaseModel, BaseModel], wrap: Callable[..., AdaptedModel], top_layers: int | None
) -> None:
    cpu, cuda = (wrap(base, top_layers=top_layers) for base in bases)
    start = cpu.flat(PERSONAL).clone()
    reports = [finetune(model, EXAMPLES, config=CONFIG) for model in (cpu, cuda)]
    assert cuda.flat(PERSONAL).device == CUDA
    assert_near(cuda.flat(PERSONAL), cpu.flat(PERSONAL), start)
    assert reports[1].loss_first == pytest.approx(reports[0].loss_first, rel=1e-4)
    assert reports[1].loss_last == pytest.approx(reports[0].loss_last, rel=1e-3)
    assert (reports[1].steps, reports[1].tokens) == (reports[0].steps, reports[0].tokens)
    assert reports[1].choices["packed"] is True
    assert reports[1].choices["cached_rows"] == (0 if top_layers is None else len(EXAMPLES))


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "llama", "mistral", "qwen2"])
def test_every_architecture_answers_and_learns_alike(
    architecture: str,
    random_module: Callable[[str], PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
    wrap: Callable[..., AdaptedModel],
) -> None:
    modules = [random_module(architecture), random_module(architecture).to(CUDA)]  # type: ignore[arg-type]
    models = [wrap(BaseModel(architecture, module, tiny_tokenizer)) for module in modules]
    cpu, cuda = ([answer.text for answer in model.respond(QUESTIONS, max_new_tokens=20)] for model in models)
    assert cuda == cpu
    start = models[0].flat(PERSONAL).clone()
    for model in models:
        finetune(model, EXAMPLES, config=CONFIG)
    assert_near(models[1].flat(PERSONAL), models[0].flat(PERSONAL), start)


@pytest.mark.parametrize("change", [{"micro_tokens": 7}, {"trunk_cache_mb": 0}, {"gradient_checkpointing": True}])
def test_how_the_work_is_cut_changes_rounding_alone(
    bases: tuple[BaseModel, BaseModel], wrap: Callable[..., AdaptedModel], change: dict[str, Any]
) -> None:
    model = wrap(bases[1], top_layers=1)
    start, ends = model.flat(PERSONAL).clone(), []
    for config in (CONFIG, dataclasses.replace(CONFIG, **change)):
        model.flat(PERSONAL).copy_(start)
        report = finetune(model, EXAMPLES, config=config)
        ends.append(model.flat(PERSONAL).clone())
    assert report.choices["gradient_checkpointing"] == ("gradient_checkpointing" in change)
    assert_near(ends[1], ends[0], start)


@pytest.mark.parametrize("part", ["A", "B", "core"])
def test_parts_and_anchors_end_where_the_processor_s_do(
    bases: tuple[BaseModel, BaseModel], wrap: Callable[..., AdaptedModel], part: Any
) -> None:
    models = [wrap(base) for base in bases]
    point = {key: 0.5 * tensor.cpu() for key, tensor in models[0].state(SHARED).items()}
    layers = [key.split(".lora_B.")[0] for key in point if ".lora_B." in key]
    core = {layer: torch.eye(4) for layer in layers} if part == "core" else None
    anchor = Anchor(weight=0.1, point=None if part == "core" else point)
    start = models[0].flat(SHARED).clone()
    for model in models:
        finetune(model, EXAMPLES, target=Target(slot=SHARED, part=part, core=core, anchor=anchor), config=CONFIG)
    assert_near(models[1].flat(SHARED), models[0].flat(SHARED), start)


def test_a_gradient_is_the_processor_s(bases: tuple[BaseModel, BaseModel], wrap: Callable[..., AdaptedModel]) -> None:
    cpu, cuda = (mean_gradient(wrap(base), LONG, target=Target(slot=SHARED), config=CONFIG) for base in bases)
    for key, expected in cpu.items():
        torch.testing.assert_close(cuda[key].cpu(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_bfloat16_learns_and_leaves_the_weights(
    bases: tuple[BaseModel, BaseModel], wrap: Callable[..., AdaptedModel]
) -> None:
    model = wrap(bases[1])
    before = {name: tensor.clone() for name, tensor in model.module.named_parameters() if "lora" not in name}
    exact = finetune(model, EXAMPLES, config=dataclasses.replace(CONFIG, max_steps=1))
    model.reset(PERSONAL, 1)
    report = finetune(model, EXAMPLES, config=dataclasses.replace(CONFIG, dtype="auto", epochs=6))
    assert report.choices["dtype"] == "bfloat16"
    assert report.loss_first == pytest.approx(exact.loss_first, rel=0.03)
    assert report.loss_last < report.loss_first
    for name, tensor in model.module.named_parameters():
        assert "lora" in name or torch.equal(tensor, before[name]), name


@pytest.fixture
def reproducible(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fused attention's backward pass adds in any order unless torch is told not to."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True)
    yield
    torch.use_deterministic_algorithms(mode=False)


def interrupted_and_whole(
    model: AdaptedModel, rows: Sequence[Example], config: FineTuneConfig, checkpoint: Path
) -> tuple[Tensor, Tensor]:
    """Return where an interrupted training ends once it is resumed, and where one ends that was not interrupted."""

    def stop(now: Progress) -> None:
        if now.step == 3:
            raise KeyboardInterrupt

    ends = []
    for interrupt in (True, False):
        model.reset(PERSONAL, 1)
        if interrupt:
            with pytest.raises(KeyboardInterrupt):
                finetune(model, rows, config=config, checkpoint=checkpoint, progress=stop)
        report = finetune(model, rows, config=config, checkpoint=checkpoint)
        assert report.resumed_step == (3 if interrupt else 0)
        ends.append(model.flat(PERSONAL).clone())
    return ends[0], ends[1]


@pytest.mark.parametrize("top_layers", [None, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    bases: tuple[BaseModel, BaseModel],
    wrap: Callable[..., AdaptedModel],
    tmp_path: Path,
    dtype: Any,
    top_layers: int | None,
) -> None:
    config = dataclasses.replace(CONFIG, dtype=dtype, schedule="cosine", warmup_steps=2)
    resumed, whole = interrupted_and_whole(
        wrap(bases[1], top_layers=top_layers), EXAMPLES, config, tmp_path / "checkpoint"
    )
    assert torch.equal(resumed, whole)


@pytest.mark.usefixtures("reproducible")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_rows_resume_to_the_bit_where_torch_is_told_to(
    bases: tuple[BaseModel, BaseModel], wrap: Callable[..., AdaptedModel], tmp_path: Path, dtype: Any
) -> None:
    config = dataclasses.replace(CONFIG, dtype=dtype, epochs=3)
    resumed, whole = interrupted_and_whole(wrap(bases[1]), LONG, config, tmp_path / "checkpoint")
    assert torch.equal(resumed, whole)


def test_what_is_not_finite_stops_and_leaves_the_adapter(
    bases: tuple[BaseModel, BaseModel], wrap: Callable[..., AdaptedModel]
) -> None:
    model = wrap(bases[1])
    before = model.flat(PERSONAL).clone()
    report = finetune(model, EXAMPLES, config=dataclasses.replace(CONFIG, learning_rate=1e30))
    assert "was not finite at step 2 of 6; lower the learning rate" in report.stopped
    assert torch.equal(model.flat(PERSONAL), before)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_the_meter_sees_what_was_freed() -> None:
    with PeakMeter(CUDA) as meter:
        held = resident_bytes(CUDA)
        block = torch.ones(16 << 20, device=CUDA)  # 64 MiB
        assert resident_bytes(CUDA) >= held + (64 << 20)
        del block
    assert held + (64 << 20) <= meter.peak_bytes < held + (96 << 20)
    with PeakMeter(CUDA) as later:
        pass
    assert later.peak_bytes < meter.peak_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_measured_peak_stays_within_the_budget(wrap: Callable[..., AdaptedModel], dtype: Any) -> None:
    model = wrap(load_model(dtype="float32", device="cuda"))
    rows = [example(number, longer=8) for number in range(48)]
    config = dataclasses.replace(CONFIG, dtype=dtype, batch_size=48, epochs=2, micro_tokens=1 << 14)
    free = finetune(model, rows, config=config)
    before = model.flat(PERSONAL).clone()
    with pytest.raises(MemoryBudgetError, match="memory_mb is 1;") as refusal:
        finetune(model, rows, config=dataclasses.replace(config, memory_mb=1))
    assert torch.equal(model.flat(PERSONAL), before)
    least = int(str(refusal.value).split(" needs ")[1].split()[0])
    peaks = []
    for memory_mb in (least + 2, free.peak_bytes // (1 << 20) // 2 + least // 2):
        report = finetune(model, rows, config=dataclasses.replace(config, memory_mb=memory_mb))
        assert report.peak_bytes <= report.planned_bytes <= memory_mb << 20, report.choices
        peaks.append(report.peak_bytes)
    assert peaks[0] < free.peak_bytes


# -- zeroth order, quantized weights ----------------------------------------------------------------------------------


def test_steps_by_losses_alone_are_the_processor_s(
    bases: tuple[BaseModel, BaseModel], wrap: Callable[..., AdaptedModel]
) -> None:
    along = Directions(seed=4, scalars=torch.zeros(8), epsilon=1e-2)
    config = dataclasses.replace(CONFIG, learning_rate=1e-3, clip_norm=math.inf)
    target = Target(slot=SHARED, part="B", beside=())
    moved = []
    for base in bases:
        model = wrap(base)
        moved.append(zeroth_order(model, EXAMPLES, target=target, directions=along, steps=6, config=config))
    assert moved[1].device.type == "cpu"
    assert float(moved[0].norm()) > 0
    torch.testing.assert_close(moved[1], moved[0], rtol=0.05, atol=0.02 * float(moved[0].abs().max()))
    huge = dataclasses.replace(config, learning_rate=1e38)
    with pytest.raises(InputError, match="the loss was not finite at step 2 of 6"):
        zeroth_order(model, EXAMPLES, target=target, directions=along, steps=6, config=huge)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantized_weights_learn(bits: Any, wrap: Callable[..., AdaptedModel]) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    base = load_model(quantization=bits, device="cuda")
    exact, tokens = nll(load_model(dtype="float32", device="cpu"), EXAMPLES)
    assert nll(base, EXAMPLES)[0] / tokens == pytest.approx(exact / tokens, rel=0.1)
    report = finetune(wrap(base), EXAMPLES, config=dataclasses.replace(CONFIG, dtype="auto", epochs=6))
    assert report.loss_last < report.loss_first


# -- devices and fleets -----------------------------------------------------------------------------------------------

DEVICES, ROUNDS = 3, 2
SHAPE = AdapterConfig(rank=2, alpha=4.0, top_layers=1, dropout=0.0)
PLANS: dict[str, dict[str, Any]] = {
    **{rule: {"rule": rule, "personal": "dual"} for rule in ("fedit", "ffa", "fedsa", "fedsb", "sketch", "fedex")},
    **{rule: {"rule": rule} for rule in ("flora", "flexlora", "hetlora", "trust")},
    "fedkseed": {"rule": "fedkseed", "rule_options": {"seeds": 16}},
    "rolora-int8": {"rule": "rolora", "codec": "int8", "personal": "ditto"},
    "fedit-topk": {"rule": "fedit", "codec": "topk"},
    "ffa-sketch": {"rule": "ffa", "codec": "sketch", "proximal": 0.1},
}
BOUNDED = {"clip_norm": 1.0, "noise_multiplier": 1e-6, "delta": 1e-3, "max_rounds": ROUNDS}
PLANS |= {
    f"private-{place}": {"rule": "ffa", "privacy": {**BOUNDED, "placement": place}} for place in ("local", "central")
}


@pytest.fixture
def record(tmp_path: Path, tiny_model_folder: Path) -> Iterator[Callable[[str], RecordedFleet]]:
    def make(place: str) -> RecordedFleet:
        settings = FleetSettings(
            model=str(tiny_model_folder),
            dtype="float32",
            device=place,
            adapter=SHAPE,
            finetuning=FineTuneConfig(dtype="float32"),
        )
        fleet = RecordedFleet.create(tmp_path / place / "fleet", settings)
        for device in range(DEVICES):
            fleet.record(device, [Lesson(example=example(DEVICES * number + device)) for number in range(6)])
        return fleet

    yield make
    client.recorded.release()
    client.recorded.open_fleet.cache_clear()


def coordinate(fleet: RecordedFleet, plan: dict[str, Any]) -> Coordinated:
    """Return what a server holds after a few rounds of the real apps."""
    path = fleet.folder.parent / "coordination.toml"
    values = {"model": fleet.settings.model, "adapter": asdict(SHAPE), "plan": plan, "rounds": ROUNDS}
    values |= {"cohort": DEVICES, "minimum_replies": DEVICES, "local_steps": 4, "batch_size": 4, "learning_rate": 1e-3}
    path.write_text(tomli_w.dumps(values))
    config = CoordinationConfig.load(path)
    grid = InProcessGrid(client_app.app, DEVICES, node_config={"fleet": str(fleet.folder)})
    made = server_app.coordinator(config, server_app.GridTransport(grid, config), fleet.folder.parent / "run")
    for log, _ in made.rounds():
        assert (dict(log.failed), dict(log.refused)) == ({}, {})
    return made.progress()


@pytest.mark.parametrize("name", PLANS)
def test_a_fleet_on_the_card_comes_to_what_one_on_the_processor_does(
    name: str, record: Callable[[str], RecordedFleet]
) -> None:
    fleets = {place: record(place) for place in ("cpu", "cuda")}
    states = {place: coordinate(fleet, PLANS[name]).shared.state for place, fleet in fleets.items()}
    assert all(tensor.device.type == "cpu" for tensor in states["cuda"].values())
    # Directions of singular vectors are free where their values are alike, so it is what devices do that is compared.
    plan = dataclasses.replace(PlanSettings.parse(PLANS[name]).plan(seed=0, cohort=DEVICES), personal=None)
    assert plan.rule is not None
    turn = plan.turn(ROUNDS + 1, 0, rank=SHAPE.rank, scale=SHAPE.alpha / SHAPE.rank, device=node_of(0))
    rows, losses = fleets["cpu"].examples(0, ROUNDS), {}
    for place, fleet in fleets.items():
        participant = fleet.participant(0)
        loaded = participant.load_shared(plan, plan.rule.down(states[place], turn), turn)
        with participant.serving(plan, loaded) as base:
            losses[place] = nll(base, rows)[0]
        with participant.bare() as base:
            bare = nll(base, rows)[0]
    assert losses["cpu"] != bare
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3, abs=0.05 * abs(losses["cpu"] - bare))


@pytest.mark.parametrize("rule", ["fedit", "fedsb"])
def test_what_leaves_a_device_is_in_main_memory(rule: str, record: Callable[[str], RecordedFleet]) -> None:
    fleet = record("cuda")
    plan = PlanSettings(rule=rule).plan(seed=0, cohort=DEVICES)
    assert plan.rule is not None
    participant = fleet.participant(0)
    adapted = participant._model
    assert adapted.flat(SHARED).device == CUDA
    turn = plan.turn(1, 0, rank=SHAPE.rank, scale=SHAPE.alpha / SHAPE.rank)
    down = plan.rule.start({key: tensor.cpu() for key, tensor in adapted.state(SHARED).items()}, turn)
    task = Assignment(plan=plan, turn=turn, down=down, steps=2, finetuning=dataclasses.replace(CONFIG, max_steps=2))
    payload, _ = participant.answer(task, fleet.examples(0, 1))
    assert payload
    assert all(tensor.device.type == "cpu" for tensor in payload.values())


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_a_device_on_the_card_learns_a_round(dtype: str, tmp_path: Path, tiny_model_folder: Path) -> None:
    values = {
        "model": str(tiny_model_folder),
        "device": "cuda",
        "dtype": dtype,
        "bins": 8,
        "round_every": 10,
        "holdout_share": 0.3,
        "synthesizer": "questions",
        "synthesis_count": 1,
        "max_new_tokens": 8,
        "finetuning": {"epochs": 10, "batch_size": 4, "learning_rate": 0.01},
    }
    Device.create(tmp_path / "d", DeviceSettings.parse(values))
    answers = Oracle({f"d{number}": "It is the red box by the door." for number in range(30)})
    with Device.open(tmp_path / "d", annotator=answers) as device:
        for number in range(20):
            device.observe(f"Where is box {number}?", "I do not know.", dialogue_id=f"d{number}")
        before = device.observe("Where is box 99?", dialogue_id="d20").dialogue.response
        report = device.learn()
        assert report.outcome == "promoted"
        assert report.training is not None
        assert report.training.choices["dtype"] == ("bfloat16" if torch.cuda.is_bf16_supported() else "float32")
        assert device._model.adapted.base.device == CUDA
        after = device.observe("Where is box 99?", dialogue_id="d21").dialogue.response
    with Device.open(tmp_path / "d") as device:
        assert device.observe("Where is box 99?", dialogue_id="d22").dialogue.response == after != before


ALONE = """
import json
from client.adapters import AdaptedModel, AdapterConfig
from client.dialogue import Example
from client.finetuning import FineTuneConfig, finetune
from client.model import load_model

texts = [(str(n), f"Where is {n}?", f"At {n * n}.") for n in range(9)]
rows = [Example(question=q, response=r, source_id=name, example_id=name) for name, q, r in texts]
model = AdaptedModel(load_model(dtype="float32", device="cuda"), AdapterConfig(dropout=0.0))
report = finetune(model, rows, config=FineTuneConfig(epochs=20, batch_size=3, dtype="float32"))
print(json.dumps([report.steps, report.loss_first, report.loss_last]))
"""


def test_processes_share_the_card() -> None:
    command = [sys.executable, "-c", ALONE]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], [errors[-400:] for _, errors in said]
    (steps, first, last), (other_steps, other_first, other_last) = (json.loads(output) for output, _ in said)
    assert steps == other_steps == 60
    assert last < first
    assert (other_first, other_last) == pytest.approx((first, last), rel=1e-4)
