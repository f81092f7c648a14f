import dataclasses
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from client.adapters import PERSONAL, AdaptedModel
from client.dialogue import Example
from client.finetuning import FineTuneConfig, finetune, memory
from client.finetuning.batching import Row, make_rows
from client.finetuning.memory import PeakMeter, make_plan, resident_bytes
from client.finetuning.network import Network, training_network
from client.finetuning.plan import Plan
from florilegium.errors import MemoryBudgetError

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


@pytest.fixture
def network(wrap: Callable[..., AdaptedModel], monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.setattr(memory, "resident_bytes", lambda _: 0)
    monkeypatch.setattr(memory, "_SLACK_BYTES", 0)  # the tiny model needs less than a megabyte
    with training_network(wrap(top_layers=1), PERSONAL, torch.float32) as prepared:
        yield prepared


def row(number: int, length: int) -> Row:
    return Row(f"{number:03d}", tuple(range(length + 1)), 1)


ROWS = [row(number, 100) for number in range(64)]
BASE = FineTuneConfig(batch_size=64, micro_tokens=6400, memory_mb=1 << 20)


def plan_within(network: Network, memory_mb: int | None) -> Plan:
    config = dataclasses.replace(BASE, memory_mb=memory_mb)
    return make_plan(network, ROWS, config, parameters=1000, saves=True)


def test_without_a_bound_the_fastest_is_taken(network: Network) -> None:
    plan = plan_within(network, None)
    assert (plan.micro_tokens, plan.recompute, plan.head_rows) == (6400, False, 256)
    assert plan.cache_bytes == 64 * 100 * 32 * 4  # all rows, float32, width 32


def test_less_memory_cuts_more_and_the_bound_is_respected(network: Network) -> None:
    peaks = [plan_within(network, megabytes).peak_bytes for megabytes in (1024, 24, 12, 6, 4)]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 5
    for megabytes, peak in zip((1024, 24, 12, 6, 4), peaks, strict=True):
        assert 0 < peak <= megabytes << 20


def test_too_little_is_refused_with_what_would_do(network: Network) -> None:
    with pytest.raises(MemoryBudgetError, match=r"rows of up to 100 tokens needs \d+ MiB.*memory_mb is 1;") as refusal:
        plan_within(network, 1)
    enough = int(str(refusal.value).split(" needs ")[1].split()[0])
    assert plan_within(network, enough).peak_bytes <= enough << 20


def test_the_plan_of_a_checkpoint_is_kept_while_it_fits(network: Network) -> None:
    old = Plan(micro_tokens=777, head_rows=64, recompute=True, cache_bytes=0)
    for budget, kept in ((None, True), (1024, True), (4, False)):
        config = dataclasses.replace(BASE, memory_mb=budget)
        plan = make_plan(network, ROWS, config, parameters=1000, saves=True, preferred=old)
        assert (plan.micro_tokens == 777) == kept


def test_wishes_are_followed(network: Network) -> None:
    for wish in (True, False):
        config = dataclasses.replace(BASE, gradient_checkpointing=wish, trunk_cache_mb=0)
        plan = make_plan(network, ROWS, config, parameters=1000, saves=False)
        assert (plan.recompute, plan.cache_bytes) == (wish, 0)
    assert make_plan(network, ROWS, dataclasses.replace(BASE, epochs=1), parameters=1, saves=False).cache_bytes == 0


def test_activations_are_counted_as_autograd_keeps_them(network: Network) -> None:
    counts = [memory._saved_bytes(network, row(0, length)) for length in (8, 16, 32)]
    assert counts[2] - counts[1] == pytest.approx(2 * (counts[1] - counts[0]), rel=0.05)  # linear in the tokens
    kept = 4 * 32 * (32 + 32 + 64)  # at least the inputs of the query, of the gate and of down_proj, float32
    assert kept < counts[2] < 20 * kept


def test_what_was_counted_is_freed(network: Network) -> None:
    def held() -> int:
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    memory._saved_bytes(network, row(0, 8))
    before = held()
    memory._saved_bytes(network, row(0, 8))
    assert held() == before


def test_the_meter_sees_what_was_freed() -> None:
    with PeakMeter(CPU) as meter:
        held = resident_bytes(CPU)
        block = torch.ones(16 << 20)  # 64 MiB
        del block
    assert meter.peak_bytes >= held + (60 << 20)
    with PeakMeter(CPU) as later:
        pass
    assert later.peak_bytes < meter.peak_bytes  # the mark was reset


def test_a_budget_shapes_the_training_and_is_reported(
    adapted: AdaptedModel, examples: list[Example], config: FineTuneConfig
) -> None:
    roomy = resident_bytes(CPU) // (1 << 20) + 500
    report = finetune(adapted, examples, config=dataclasses.replace(config, memory_mb=roomy))
    assert 0 < report.planned_bytes <= roomy << 20
    assert 0 < report.peak_bytes <= roomy << 20
    before = adapted.flat(PERSONAL).clone()
    with pytest.raises(MemoryBudgetError, match="memory_mb is 1;"):
        finetune(adapted, examples, config=dataclasses.replace(config, memory_mb=1))
    assert torch.equal(adapted.flat(PERSONAL), before)
    assert not any(parameter.requires_grad for parameter in adapted.module.parameters())
    assert len(make_rows(adapted, examples)) == 11


MEASURE = """
import json, sys
import torch
from types import SimpleNamespace
from transformers import LlamaConfig, LlamaForCausalLM
from client.adapters import PERSONAL, AdaptedModel, AdapterConfig
from client.dialogue import Example
from client.finetuning import FineTuneConfig, finetune
from client.finetuning.memory import resident_bytes

room, settings = json.loads(sys.argv[1])
torch.set_num_threads(1)
shape = dict(vocab_size=6144, hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=4)
module = LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2, tie_word_embeddings=True)).eval()

def example_ids(question, response):
    number = int(question)
    return [(number * k * k) % 6144 for k in range(10 + number * 37 % 71)], 4

base = SimpleNamespace(module=module, name="random", example_ids=example_ids)
model = AdaptedModel(base, AdapterConfig(), slots=(PERSONAL,))
rows = [Example(question=str(n), response="r", source_id=str(n), example_id=str(n)) for n in range(48)]
budget = resident_bytes(torch.device("cpu")) // (1 << 20) + room
report = finetune(model, rows, config=FineTuneConfig(epochs=2, batch_size=24, memory_mb=budget, **settings))
print(json.dumps([budget, report.peak_bytes / (1 << 20), dict(report.choices)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("room", "dtype"),
    [(400, "float32"), (150, "float32"), (110, "float32"), (400, "auto"), (250, "auto"), (150, "auto")],
)
def test_the_measured_peak_stays_within_the_budget(room: int, dtype: str) -> None:
    arguments = json.dumps([room, {"dtype": dtype}])
    command = [sys.executable, "-c", MEASURE, arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    budget, peak, choices = json.loads(done.stdout)
    assert peak <= budget, choices
