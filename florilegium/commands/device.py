"""`florilegium device`: the on-device loop, for one user, in one directory."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.table import Table

from florilegium.commands.output import AsJson, console, print_json, progress_bar
from florilegium.errors import ConfigError, InputError

if TYPE_CHECKING:
    from client.device import Device, RoundReport

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Personalize one device's model; no server is involved.")

Directory: TypeAlias = Annotated[Path, typer.Argument(help="The device's directory.")]


def _open(directory: Path) -> Device:
    from client.device import Device

    return Device.open(directory)


@app.command()
def init(
    directory: Directory,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting in TOML, such as bins=64.")
    ] = None,
) -> None:
    """Make a device's directory with its settings.

    Example: florilegium device init my-device --set bins=64 --set 'model="Qwen/Qwen2.5-0.5B-Instruct"'
    """
    from client.device import Device, DeviceSettings

    try:
        values = tomllib.loads("\n".join(set_ or ()))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--set is not valid TOML: {error}", "write text in quotes: policy='\"paper\"'") from None
    Device.create(directory, DeviceSettings.parse(values, source="--set"))
    console.print(f"{directory} is ready; its settings are in {directory / 'device.toml'}")


@app.command()
def chat(directory: Directory) -> None:
    """Talk with the device's model; it learns from what is said.

    In the chat: `/edit TEXT` gives the answer you would have wanted, `/again` asks for another one, `/learn` starts a
    learning round, an empty line ends.

    Example: florilegium device chat my-device
    """
    with _open(directory) as device:
        last = None
        while line := console.input("[bold]you[/] ").strip():
            if line == "/learn":
                _print_round(_learn(device, quiet=False))
            elif line == "/again" and last is not None:
                last = device.regenerate(last.dialogue)
                console.print("[bold]device[/]", last.dialogue.response, markup=False)
            elif line.startswith("/edit ") and last is not None:
                kept = device.edit(last.dialogue, line.removeprefix("/edit "))
                console.print("noted" if kept else "not noted: it is too long for a bin of the buffer", style="dim")
            else:
                last = device.observe(line)
                console.print("[bold]device[/]", end=" ")
                console.print(last.dialogue.response, markup=False)
                console.print(f"{last.decision.action}: {last.decision.reason}", style="dim")


def _rows(path: Path) -> Iterator[tuple[Mapping[str, object], str]]:
    """Read JSON lines; each object comes with its place, for messages."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {type(error).__name__}", "name a UTF-8 file of JSON lines") from None
    for number, line in enumerate(lines, start=1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise InputError(f"{place} is no JSON", "write one object a line") from None
        if not isinstance(row, dict):
            raise InputError(f"{place} is no JSON object", "write one object a line")
        yield row, place


def _dialogue(row: Mapping[str, object], place: str) -> tuple[str, str | None, str | None]:
    question, response, dialogue_id = row.get("question"), row.get("response"), row.get("dialogue_id")
    if not (isinstance(question, str) and question.strip()):
        raise InputError(f"{place} lacks a text 'question'", 'write {"question": "…"}')
    if not (isinstance(response, str | None) and isinstance(dialogue_id, str | None)):
        raise InputError(f"{place}: 'response' and 'dialogue_id' must be texts", "leave them out, or quote them")
    return question, response, dialogue_id


@app.command()
def observe(
    directory: Directory,
    file: Annotated[Path, typer.Argument(help="JSON lines: question, and optionally response and dialogue_id.")],
    as_json: AsJson = False,
) -> None:
    """Let the device see dialogues from a file; learning rounds run when they are due.

    Example: florilegium device observe my-device dialogues.jsonl
    """
    rows = [_dialogue(row, place) for row, place in _rows(file)]
    with _open(directory) as device, progress_bar(hidden=as_json) as bar:
        task = bar.add_task("observing", total=len(rows))
        for question, response, dialogue_id in rows:
            seen = device.observe(question, response, dialogue_id=dialogue_id)
            if as_json:
                print_json(
                    {
                        "dialogue_id": seen.dialogue.dialogue_id,
                        "action": seen.decision.action,
                        "reason": seen.decision.reason,
                    }
                )
            if device.due:
                report = device.learn()
                if not as_json:
                    _print_round(report)
            bar.advance(task)
    if not as_json:
        console.print(f"{len(rows)} dialogues seen")


@app.command()
def annotate(
    directory: Directory,
    file: Annotated[
        Path | None, typer.Argument(help="JSON lines: dialogue_id, verdict (ideal, accept, skip), ideal.")
    ] = None,
) -> None:
    """Answer what the device asks: one by one in the terminal, or from a file.

    Example: florilegium device annotate my-device
    """
    from client.annotation import QueueAnnotator

    with _open(directory) as device:
        user = QueueAnnotator(device.buffer)
        if file is not None:
            rows = [_answer(row, place) for row, place in _rows(file)]
            held = {each.dialogue.dialogue_id for each in (*device.buffer.dialogues(), *device.buffer.heldout())}
            for dialogue_id, verdict, ideal in (row for row in rows if row[0] in held):
                user.answer(dialogue_id, verdict, ideal)
            gone = sum(row[0] not in held for row in rows)
            console.print(f"{len(rows) - gone} answers stored, {gone} to dialogues that are no longer in the buffer")
            return
        pending = device.buffer.pending()
        if not pending:
            console.print("nothing is asked; questions come with a learning round")
        for position, item in enumerate(pending, start=1):
            console.rule(f"{position} of {len(pending)}")
            console.print("You asked:", item.dialogue.question, markup=False)
            console.print("It answered:", item.dialogue.response, markup=False)
            text = console.input("Ideal answer (empty: fine as it is, '-': skip) ").strip()
            verdict = "skip" if text == "-" else "ideal" if text else "accept"
            user.answer(item.dialogue.dialogue_id, verdict, text if verdict == "ideal" else None)


def _answer(row: Mapping[str, object], place: str) -> tuple[str, str, str | None]:
    dialogue_id, verdict, ideal = row.get("dialogue_id"), row.get("verdict"), row.get("ideal")
    if not (isinstance(dialogue_id, str) and isinstance(verdict, str) and isinstance(ideal, str | None)):
        raise InputError(f"{place} is no answer", 'write {"dialogue_id": "…", "verdict": "ideal", "ideal": "…"}')
    return dialogue_id, verdict, ideal


def _learn(device: Device, *, quiet: bool, memory_mb: int | None = None) -> RoundReport:
    with progress_bar(hidden=quiet) as bar:
        task = bar.add_task("learning", total=None)
        return device.learn(
            memory_mb=memory_mb, progress=lambda step: bar.update(task, completed=step.step, total=step.steps)
        )


@app.command()
def learn(
    directory: Directory,
    memory_mb: Annotated[
        int | None, typer.Option(min=1, help="Memory that fine-tuning may take, MiB; it adapts to it or refuses.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run one learning round: ask, synthesize, fine-tune, and keep the result only if it does no harm.

    Example: florilegium device learn my-device --memory-mb 600
    """
    with _open(directory) as device:
        report = _learn(device, quiet=as_json, memory_mb=memory_mb)
    if as_json:
        print_json(asdict(report))
    else:
        _print_round(report)


def _print_round(report: RoundReport) -> None:
    table = Table(title=f"learning round {report.number}", show_header=False)
    for name, value in asdict(report).items():
        if name != "number" and value not in (None, {}):
            table.add_row(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(table)


@app.command()
def status(directory: Directory, as_json: AsJson = False) -> None:
    """Show what the device has seen, holds, asks and learned; numbers only.

    Example: florilegium device status my-device --json
    """
    with _open(directory) as device:
        values = device.status()
    if as_json:
        print_json(values)
        return
    table = Table(show_header=False)
    for name, value in values.items():
        table.add_row(name.replace("_", " "), str(value))
    console.print(table)


@app.command()
def why(
    directory: Directory,
    dialogue_id: Annotated[str | None, typer.Argument(help="One dialogue; all of the latest when left out.")] = None,
    limit: Annotated[int, typer.Option(help="How many decisions.", min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """Explain what was kept, replaced and dropped, and why.

    Example: florilegium device why my-device --limit 5
    """
    with _open(directory) as device:
        decisions = device.buffer.decisions(dialogue_id, limit=limit)
    table = Table("dialogue", "day", "part", "action", "reason", "replaced", "evidence")
    for logged in decisions:
        made = logged.decision
        if as_json:
            print_json(
                {
                    "dialogue_id": logged.dialogue_id,
                    "day": logged.day.isoformat(),
                    "part": logged.part,
                    "action": made.action,
                    "reason": made.reason,
                    "replaced": made.victim_id,
                    "evidence": dict(made.evidence),
                }
            )
        evidence = ", ".join(f"{name} {value:.3f}" for name, value in made.evidence.items())
        table.add_row(
            logged.dialogue_id[:8],
            str(logged.day),
            logged.part,
            made.action,
            made.reason,
            (made.victim_id or "")[:8],
            evidence,
        )
    if not as_json:
        console.print(table)


@app.command()
def forget(
    directory: Directory, dialogue_id: Annotated[str, typer.Argument(help="As `why` and `observe --json` name it.")]
) -> None:
    """Delete a dialogue with all that came of it, and retrain the adapter without it.

    Example: florilegium device forget my-device 3f2a…
    """
    with _open(directory) as device:
        if not device.forget(dialogue_id):
            raise InputError(f"nothing is known of dialogue {dialogue_id!r}", "see `florilegium device why`")
    console.print("forgotten")


@app.command("rollback")
def roll_back(directory: Directory) -> None:
    """Put the adapter that was in use before the present one in use again.

    Example: florilegium device rollback my-device
    """
    with _open(directory) as device:
        version = device.roll_back()
    console.print("the bare base model is in use" if version is None else f"adapter version {version} is in use")
