"""Measure fine-tuning against `transformers.Trainer` with PEFT: rows a second, peak memory, and the loss reached.

    python -m benchmarks.finetuning trainer --rounds 3
    python -m benchmarks.finetuning trunk --json
    python -m benchmarks.finetuning large --steps 3

Both sides train the same LoRA (rank 8, all linear layers, dropout 0.05) on the same rows for the same number of steps,
with AdamW at a constant 3e-4 and the mean over a batch's tokens as the loss. Each measurement is a fresh process; the
sides alternate (A B A B …), so that whatever slows the machine slows both; ratios are taken within a round and their
median is given. Peak memory is the high-water mark of resident memory while
training, above what was resident with the model loaded and the adapter attached.

Rows are dialogue-like: 10 to 80 tokens, uniform, the last 60 % of them the response that is learned; tokens come from a
Markov chain over 400 tokens, so that there is something to learn.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console

from benchmarks.models import HALF_BILLION, half_billion
from benchmarks.report import markdown, spread
from client.loading import SEEDLING, locate

Side = Literal["ours", "ours fp32", "ours uncached", "Trainer", "Trainer best"]


Adapted = Callable[[], AbstractContextManager[object]]
Prepared = tuple[Callable[[], int], Adapted, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One measurement.

    Attributes:
        side: who trains.
        model: as `load_model` takes it, or "random-0.5b" for random weights of Qwen2.5-0.5B's shape.
        rows: how many.
        shortest: tokens of the shortest row.
        longest: tokens of the longest row.
        batch: rows a step.
        epochs: passes over the rows.
        top_layers: adapt the top k layers alone; 0 adapts all.
        recompute: gradient checkpointing.
        threads: of the arithmetic.
        dtype: of the random model's weights.
    """

    side: Side
    model: str
    rows: int = 256
    shortest: int = 10
    longest: int = 80
    batch: int = 16
    epochs: int = 1
    top_layers: int = 0
    recompute: bool = False
    threads: int = 1
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one measurement gave: seconds of the training call, MiB, nats a token."""

    wall: float
    cpu: float
    peak: float
    loss_before: float
    loss_after: float
    trained: int
    steps: int
    choices: dict[str, Any] = field(default_factory=dict)


def make_rows(job: Job, vocabulary: int) -> list[tuple[list[int], int]]:
    """Return token rows with the number of leading tokens that are not learned."""
    draw = random.Random(7)
    known = draw.sample(range(10, vocabulary), 400)
    follow = {token: draw.choices(known, k=4) for token in known}
    rows = []
    for _ in range(job.rows):
        ids = [draw.choice(known)]
        for _ in range(draw.randint(job.shortest, job.longest) - 1):
            ids.append(draw.choice(follow[ids[-1]]))
        rows.append((ids, max(1, round(0.4 * len(ids)))))
    return rows


def load(job: Job) -> Any:
    """Load or make the frozen model."""
    import torch
    from transformers import AutoModelForCausalLM

    if job.model == HALF_BILLION:
        return half_billion(job.dtype).requires_grad_(False)
    models: Any = AutoModelForCausalLM
    return models.from_pretrained(locate(job.model), dtype=torch.float32).eval().requires_grad_(False)


def measure(job: Job) -> Outcome:
    """Do the job in this process."""
    import torch

    from client.finetuning.memory import PeakMeter, resident_bytes

    torch.set_num_threads(job.threads)
    module = load(job)
    rows = make_rows(job, int(module.config.vocab_size))
    prepare = _ours if job.side.startswith("ours") else _trainer
    train, adapted, choices = prepare(job, module, rows)
    before = _loss(module, rows, adapted)
    device = torch.device("cpu")
    held, cpu, wall = resident_bytes(device), _cpu_seconds(), time.perf_counter()
    with PeakMeter(device) as meter:
        steps = train()
    cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - wall
    after = _loss(module, rows, adapted)
    return Outcome(
        wall=wall,
        cpu=cpu,
        peak=(meter.peak_bytes - held) / 2**20,
        loss_before=before,
        loss_after=after,
        trained=job.rows * job.epochs,
        steps=steps,
        choices=choices,
    )


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _loss(module: Any, rows: Sequence[tuple[list[int], int]], adapted: Adapted) -> float:
    """Return the mean loss of the learned tokens, by plain transformers, one row at a time."""
    import torch

    total, count = 0.0, 0
    with adapted(), torch.no_grad():
        for ids, start in rows[:128]:
            labels = torch.tensor([[-100] * start + ids[start:]])
            total += float(module(torch.tensor([ids]), labels=labels).loss) * (len(ids) - start)
            count += len(ids) - start
    return total / count


class _Rows:
    """Stands in for a base model whose tokenizer is not needed."""

    def __init__(self, module: Any, rows: Sequence[tuple[list[int], int]]) -> None:
        self.module, self.name, self._rows = module, "benchmark", rows

    def example_ids(self, question: str, response: str) -> tuple[list[int], int]:
        return self._rows[int(question)]


def _ours(job: Job, module: Any, rows: Sequence[tuple[list[int], int]]) -> Prepared:
    from client.adapters import PERSONAL, AdaptedModel, AdapterConfig
    from client.dialogue import Example
    from client.finetuning import FineTuneConfig, finetune

    shape = AdapterConfig(top_layers=job.top_layers or None)
    model = AdaptedModel(cast(Any, _Rows(module, rows)), shape, slots=(PERSONAL,))
    examples = [
        Example(question=str(number), response="learned", source_id=f"{number:06d}", example_id=f"{number:06d}")
        for number in range(len(rows))
    ]
    config = FineTuneConfig(
        epochs=job.epochs,
        batch_size=job.batch,
        normalization="token",
        dtype="float32" if job.side == "ours fp32" else "auto",
        gradient_checkpointing=job.recompute,
        trunk_cache_mb=0 if job.side == "ours uncached" else 512,
    )
    choices: dict[str, Any] = {}

    def train() -> int:
        report = finetune(model, examples, config=config)
        choices.update(report.choices)
        return report.steps

    return train, lambda: model.active(PERSONAL), choices


def _trainer(job: Job, module: Any, rows: Sequence[tuple[list[int], int]]) -> Prepared:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    from client.finetuning.precision import resolve_precision

    layers = int(module.config.num_hidden_layers)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    shape = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=targets,
        layers_to_transform=list(range(layers - job.top_layers, layers)) if job.top_layers else None,
    )
    peft: Any = get_peft_model(module, shape)
    best = job.side == "Trainer best"
    native = resolve_precision("auto", torch.float32, torch.device("cpu"))
    data = [{"input_ids": ids, "labels": [-100] * start + ids[start:]} for ids, start in rows]

    def collate(batch: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in batch)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in batch])

        mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch]
        return {
            "input_ids": padded("input_ids", 0),
            "labels": padded("labels", -100),
            "attention_mask": torch.tensor(mask),
        }

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=job.batch,
        num_train_epochs=job.epochs,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        bf16=best and native == torch.bfloat16,
        train_sampling_strategy="group_by_length" if best else "random",
        gradient_checkpointing=job.recompute,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(model=peft, args=arguments, train_dataset=cast(Any, data), data_collator=collate)

    return lambda: int(trainer.train().global_step), lambda: nullcontext(peft.eval()), {}


def in_fresh_process(job: Job) -> Outcome:
    """Do the job in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.finetuning", "worker", json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise typer.Exit(_complain(done.stderr))
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def _complain(message: str) -> int:
    Console(stderr=True).print(message)
    return 1


def alternate(jobs: Sequence[Job], rounds: int) -> dict[str, list[Outcome]]:
    """Measure each job once a round, the order of the sides kept."""
    results: dict[str, list[Outcome]] = {job.side: [] for job in jobs}
    for number in range(rounds):
        for job in jobs:
            outcome = in_fresh_process(job)
            results[job.side].append(outcome)
            note = f"round {number + 1}: {job.side}: {outcome.cpu:.1f} s of processor, {outcome.peak:.0f} MiB"
            Console(stderr=True).print(note, highlight=False)
    return results


def table(results: dict[str, list[Outcome]], baselines: Sequence[str]) -> str:
    """Return medians of each side, and for each baseline the ratios to it."""
    header = ["", "rows/s", "s/step", "peak, MiB", "loss"]
    for baseline in baselines:
        header += [f"speed / {baseline}", f"peak / {baseline}", f"loss / {baseline}"]
    return markdown(header, [_row(side, results, baselines) for side in results])


def _row(side: str, results: dict[str, list[Outcome]], baselines: Sequence[str]) -> list[str]:
    own = results[side]
    cells = [
        side,
        spread([one.trained / one.wall for one in own], 1),
        spread([one.wall / one.steps for one in own], 3),
        spread([one.peak for one in own], 0),
        spread([one.loss_after for one in own], 3),
    ]
    for baseline in baselines:
        pairs = list(zip(own, results[baseline], strict=True))
        cells += [
            spread([other.wall / one.wall for one, other in pairs]),
            spread([one.peak / other.peak for one, other in pairs]),
            spread([one.loss_after / other.loss_after for one, other in pairs], 3),
        ]
    return cells


def report(results: dict[str, list[Outcome]], baselines: Sequence[str], *, as_json: bool) -> None:
    """Print a table, or every measurement as JSON."""
    runs = {side: [asdict(outcome) for outcome in outcomes] for side, outcomes in results.items()}
    typer.echo(json.dumps(runs, indent=1) if as_json else table(results, baselines))


app = typer.Typer(help=__doc__, no_args_is_help=True, rich_markup_mode=None, add_completion=False)
Rounds = Annotated[int, typer.Option(help="Measurements of each side.")]
Threads = Annotated[int, typer.Option(help="Threads, for both sides.")]
Json = Annotated[bool, typer.Option("--json", help="Print every measurement as JSON.")]
Model = Annotated[str, typer.Option(help='"seedling", a local path or a Hub name.')]


@app.command()
def trainer(
    rounds: Rounds = 3,
    rows: Annotated[int, typer.Option(help="Rows an epoch.")] = 256,
    batch: Annotated[int, typer.Option(help="Rows a step.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes over the rows.")] = 2,
    threads: Threads = 1,
    model: Model = SEEDLING,
    as_json: Json = False,
) -> None:
    """Against Trainer with its defaults and at its best (lengths grouped, bf16 where the processor has it)."""
    base = Job(side="Trainer", model=model, rows=rows, batch=batch, epochs=epochs, threads=threads)
    sides: tuple[Side, ...] = ("Trainer", "ours", "Trainer best", "ours fp32")
    results = alternate([replace(base, side=side) for side in sides], rounds)
    report(results, ["Trainer", "Trainer best"], as_json=as_json)


@app.command()
def trunk(
    rounds: Rounds = 3,
    epochs: Annotated[int, typer.Option(help="Passes over the rows.")] = 20,
    top_layers: Annotated[int, typer.Option(help="Layers adapted.")] = 1,
    threads: Threads = 1,
    model: Model = SEEDLING,
    as_json: Json = False,
) -> None:
    """Adapters on the top layers alone: the cache of the frozen trunk, against Trainer and against no cache."""
    base = Job(side="ours", model=model, rows=128, epochs=epochs, top_layers=top_layers, threads=threads)
    sides: tuple[Side, ...] = ("Trainer", "ours uncached", "ours")
    results = alternate([replace(base, side=side) for side in sides], rounds)
    report(results, ["Trainer", "ours uncached"], as_json=as_json)


@app.command()
def large(
    rounds: Rounds = 1,
    steps: Annotated[int, typer.Option(help="Steps of one row of 256 tokens.")] = 3,
    threads: Threads = 1,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights; by default bfloat16 where the processor multiplies it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Peak memory above the weights of a random model of Qwen2.5-0.5B's shape, recomputing activations."""
    import torch

    from client.finetuning.precision import resolve_precision

    native = str(resolve_precision("auto", torch.float32, torch.device("cpu"))).removeprefix("torch.")
    sides: tuple[Side, ...] = ("Trainer", "ours")
    base = Job(
        side="ours",
        model=HALF_BILLION,
        rows=steps,
        shortest=256,
        longest=256,
        batch=1,
        recompute=True,
        threads=threads,
        dtype=dtype or native,
    )
    report(alternate([replace(base, side=side) for side in sides], rounds), ["Trainer"], as_json=as_json)


@app.command(hidden=True)
def worker(job: str) -> None:
    """Do one job and print its outcome."""
    import os

    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    typer.echo(json.dumps(asdict(measure(Job(**json.loads(job))))))


if __name__ == "__main__":
    app()
