"""Build seedling from the command line; `python -m training --help` lists the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM

from training.corpora import (
    READERS,
    held_out_documents,
    held_out_train_user_dialogues,
    training_documents,
)
from training.data import Rows, plan_stage, write_stage
from training.evaluate import bits_per_byte
from training.export import export as export_model
from training.model import model_config, new_model
from training.probes import answering, rewrite_sources, rewriting
from training.sources import sources
from training.tokenizer import as_pretrained, load_tokenizer, train_tokenizer
from training.train import CHECKPOINT, Reporter, TrainConfig, load_weights, sample_held_out
from training.train import train as run_stage

app = typer.Typer(no_args_is_help=True, add_completion=False)
console = Console()

DEFAULT_WORK = Path.home() / ".cache" / "florilegium" / "seedling"
Corpora = Annotated[Path, typer.Option(help="The folder of the corpora's JSON lines files.")]
Work = Annotated[Path, typer.Option(help="The folder for everything heavy.")]
TOKENIZER_FOLDER = "tokenizer"
QUICK_BYTES = 60_000


@app.command()
def tokenizer(corpora: Corpora, work: Work = DEFAULT_WORK) -> None:
    """Learn the tokenizer from the training documents of all sources."""
    texts: list[str] = []
    for name in READERS:
        documents = list(training_documents(corpora, name))
        # The largest corpus repeats a few hundred services' phrases; a quarter of it says as much.
        kept = documents[::4] if name == "schema_guided" else documents
        texts.extend(turn.text for document in kept for turn in document.turns)
    learned = train_tokenizer(texts)
    folder = work / TOKENIZER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    as_pretrained(learned).save_pretrained(folder)
    console.print(f"{learned.get_vocab_size()} pieces in {folder}")


@app.command()
def prepare(
    corpora: Corpora,
    stage: str,
    mix: Annotated[Path, typer.Option(help="A JSON file: source to share of the tokens.")],
    tokens: Annotated[int, typer.Option(help="Tokens of the stage.")],
    seed: int = 1,
    work: Work = DEFAULT_WORK,
) -> None:
    """Write the token array of a stage."""
    shares: dict[str, float] = json.loads(mix.read_text(encoding="utf-8"))
    learned = load_tokenizer(work / TOKENIZER_FOLDER)
    array, summaries = plan_stage(sources(corpora, seed), shares, tokens, learned, seed)
    write_stage(work / f"{stage}.bin", array, summaries)
    table = Table("source", "share", "documents", "unique tokens", "used tokens", "epochs")
    for name, summary in summaries.items():
        table.add_row(
            name,
            f"{summary.share:.1%}",
            f"{summary.documents:,}",
            f"{summary.unique_tokens:,}",
            f"{summary.used_tokens:,}",
            f"{summary.epochs:.2f}",
        )
    console.print(table)


@app.command()
def train(
    corpora: Corpora,
    stage: str,
    steps: int,
    row_tokens: int = 256,
    micro_rows: int = 16,
    accumulation: int = 2,
    warmup_steps: int = 100,
    decay_steps: int = 0,
    muon_lr: float = 0.02,
    adamw_lr: float = 4e-3,
    weight_decay: float = 0.05,
    report_seconds: float = 600.0,
    stop_at: Annotated[int | None, typer.Option(help="End the stage at this step of its schedule.")] = None,
    threads: int = 2,
    work: Work = DEFAULT_WORK,
) -> None:
    """Run a stage, or resume it from its last checkpoint."""
    torch.set_num_threads(threads)
    config = TrainConfig(
        stage=stage,
        steps=steps,
        row_tokens=row_tokens,
        micro_rows=micro_rows,
        accumulation=accumulation,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        muon_lr=muon_lr,
        adamw_lr=adamw_lr,
        weight_decay=weight_decay,
        report_seconds=report_seconds,
    )
    learned = load_tokenizer(work / TOKENIZER_FOLDER)
    held_out = {name: list(held_out_documents(corpora, name)) for name in READERS}
    reporter = Reporter(console, learned, sample_held_out(held_out, QUICK_BYTES), work / "snapshot", row_tokens)
    model = new_model(model_config(), config.seed)
    rows = Rows(work / f"{stage}.bin", row_tokens)
    run_stage(model, rows, config, work, report=reporter, console=console, stop_at=stop_at)


@app.command()
def export(folder: Path, work: Work = DEFAULT_WORK, checkpoint: str = CHECKPOINT) -> None:
    """Write a checkpoint as a Hugging Face folder."""
    model = new_model(model_config(), seed=0)
    trained = load_weights(work / checkpoint, model)
    # The model card lives in the folder too and outlives a new export.
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else None
    export_model(model, load_tokenizer(work / TOKENIZER_FOLDER), folder)
    if text is not None:
        card.write_text(text, encoding="utf-8")
    console.print(
        f"{folder}: stages {', '.join(trained.stages)}; {trained.tokens:,} tokens; {trained.seconds / 60:.0f} minutes"
    )


@app.command()
def evaluate(
    corpora: Corpora,
    model: Annotated[Path, typer.Option(help="An exported folder.")],
    window: Annotated[int, typer.Option(help="Tokens that a prediction may look back to.")] = 512,
    largest_bytes: Annotated[int, typer.Option(help="Held-out bytes per corpus; 0 is all.")] = 0,
    rewrites: Annotated[int, typer.Option(help="Questions to rewrite per source.")] = 100,
    chats: Annotated[int, typer.Option(help="Chats to answer per kind.")] = 100,
    threads: int = 2,
) -> None:
    """Measure an exported model: bits per byte, rewriting and answering."""
    torch.set_num_threads(threads)
    # from_pretrained leaves the model ready to evaluate.
    loaded = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    learned = load_tokenizer(model)
    held_out = {name: list(held_out_documents(corpora, name)) for name in READERS}
    held_out["persona_chat, train users"] = list(held_out_train_user_dialogues(corpora))
    table = Table("corpus", "documents", "bytes", "bits per byte")
    for name, listed in held_out.items():
        documents = sample_held_out({name: listed}, largest_bytes)[name] if largest_bytes else listed
        bits = bits_per_byte(loaded, learned, documents, window=window)
        size = sum(document.text_bytes for document in documents)
        table.add_row(name, f"{len(documents):,}", f"{size:,}", f"{bits:.3f}")
    console.print(table)
    if rewrites:
        table = Table("rewriting", "temperature", "sources", "brackets", "changed", "overlap", "kept", "valid")
        for name, texts in rewrite_sources(corpora, rewrites).items():
            for temperature in (0.0, 0.7):
                shares, pairs = rewriting(loaded, learned, texts, temperature)
                parts = (shares.bracketed, shares.changed, shares.overlapping, shares.kept)
                table.add_row(
                    name,
                    f"{temperature}",
                    str(shares.count),
                    *(f"{part:.0%}" for part in (*parts, shares.valid)),
                )
            for source, output in pairs[:4]:
                console.print(f"{source} [cyan]->[/cyan]", output, markup=True, soft_wrap=True)
        console.print(table)
    if chats:
        table = Table("answering", "chats", "word for word")
        for name, (share, rows) in answering(loaded, learned, chats).items():
            table.add_row(name, str(chats), f"{share:.0%}")
            for question, wanted, output in rows[:4]:
                console.print(f"{question} | {wanted} | {output}", markup=False, soft_wrap=True)
        console.print(table)


if __name__ == "__main__":
    app()
