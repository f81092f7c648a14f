"""`florilegium device`: the on-device loop, for one user, in one directory."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer
from rich.table import Table
from rich.text import Text

from florilegium.commands.output import AsJson, console, print_error, print_json, progress_bar
from florilegium.errors import ConfigError, FlorilegiumError, InputError

if TYPE_CHECKING:
    from client.annotation import QueueAnnotator
    from client.buffer import BufferedDialogue
    from client.device import Device, RoundReport
    from client.dialogue import Annotation, Dialogue

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Personalize one device's model; no server is involved.\n\nExample: florilegium device init my-device",
)

Directory: TypeAlias = Annotated[Path, typer.Argument(help="The device's directory.")]

_CHAT_HELP: Final = (
    "/edit TEXT gives the answer you would have wanted in place of the last one, /again asks for another one, /learn "
    "starts a learning round, an empty line ends"
)
_ADVICE: Final = {
    "nothing-annotated": "nothing is answered yet: answer what is asked with `florilegium device annotate`, or correct "
    "replies in a chat with /edit",
    "no-holdout": "no held-out dialogue is answered yet, so no adapter could be judged: answer more of what is asked, "
    "or raise holdout_share in device.toml",
    "not-finite": "the numbers ran away: lower finetuning.learning_rate in device.toml",
}


def _open(directory: Path, *, read_only: bool = False) -> Device:
    from client.device import Device

    return Device.open(directory, read_only=read_only)


@app.command()
def init(
    directory: Directory,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting in TOML, such as bins=64.")
    ] = None,
    with_lexicons: Annotated[
        bool, typer.Option("--with-lexicons", help="Copy the lexicons that ship into the directory, for editing.")
    ] = False,
) -> None:
    """Make a device's directory with its settings.

    Example: florilegium device init my-device --set bins=64 --set 'model="Qwen/Qwen2.5-0.5B-Instruct"'
    """
    from client.device import Device, DeviceSettings
    from client.selection.lexicons import copy_lexicons

    try:
        values = tomllib.loads("\n".join(set_ or ()))
    except tomllib.TOMLDecodeError as error:
        remedy = "write text in quotes: policy='\"paper\"'; give each setting once"
        raise ConfigError(f"--set is not valid TOML: {error}", remedy) from None
    Device.create(directory, DeviceSettings.parse(values, source="--set"))
    if with_lexicons:
        copy_lexicons(directory / "lexicons")
    console.print(f"{directory} is ready; its settings are in {directory / 'device.toml'}")


@app.command()
def chat(directory: Directory) -> None:
    """Talk with the device's model; it learns from what is said.

    In the chat: `/edit TEXT` gives the answer you would have wanted, `/again` asks for another one, `/learn` starts a
    learning round, an empty line ends.

    Example: florilegium device chat my-device
    """
    with _open(directory) as device:
        device.load()
        console.print(f"it answers with {_worn(device)}", style="dim")
        _print_due(device)
        last: Dialogue | None = None
        while line := _ask("you "):
            try:
                last = _turn(device, line, last)
            except FlorilegiumError as error:
                print_error(str(error))


def _turn(device: Device, line: str, last: Dialogue | None) -> Dialogue | None:
    """Do what one line of a chat says; return the dialogue that /edit and /again are about then."""
    command, _, text = line.partition(" ")
    if command == "/learn":
        _print_round(_learn(device, quiet=False))
    elif command == "/again" and last is not None:
        last = device.regenerate(last).dialogue
        _print_reply(last)
    elif command == "/edit" and last is not None and text.strip():
        kept = device.edit(last, text)
        console.print("noted" if kept else "not noted: it is too long for a bin of the buffer", style="dim")
    elif command.startswith("/"):
        console.print(_CHAT_HELP, style="dim")
    else:
        was_due = device.due
        seen = device.observe(line)
        last = seen.dialogue
        _print_reply(last)
        console.print(f"{seen.decision.action}: {seen.decision.reason}", style="dim")
        if not was_due:
            _print_due(device)
    return last


def _ask(prompt: str) -> str:
    """Return a line that the user types; empty at the end of the input."""
    try:
        return console.input(Text(prompt, style="bold")).strip()
    except EOFError:
        return ""


def _print_reply(dialogue: Dialogue) -> None:
    console.print(Text("device", style="bold"), dialogue.response)


def _worn(device: Device) -> str:
    """Say which adapters are in use."""
    slots = device.worn
    if not slots:
        return "the bare base model"
    return f"its {' and '.join(reversed(slots))} adapter{'s' * (len(slots) > 1)}, version {device.adapters.current}"


def _print_due(device: Device) -> None:
    if device.due:
        console.print("a learning round is due: /learn starts it", style="dim")


def _rows(path: Path) -> Iterator[tuple[Mapping[str, object], int, str]]:
    """Read JSON lines; each object comes with its line's number and its place, for messages."""
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
        yield row, number, place


def _dialogue(row: Mapping[str, object], number: int, place: str) -> tuple[str, str | None, str]:
    """Read a dialogue; where it has no identifier its line gives it one, the same whenever the file is read."""
    from client.dialogue import Dialogue, derive_id

    question, response, dialogue_id = row.get("question"), row.get("response"), row.get("dialogue_id")
    if not (isinstance(question, str) and question.strip()):
        raise InputError(f"{place} lacks a text 'question'", 'write {"question": "…"}')
    if not (isinstance(response, str | None) and isinstance(dialogue_id, str | None)):
        raise InputError(f"{place}: 'response' and 'dialogue_id' must be texts", "leave them out, or quote them")
    try:
        Dialogue(question=question, response=response or "", dialogue_id=dialogue_id or "none")
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    said = (question,) if response is None else (question, response)
    return question, response, dialogue_id or derive_id("line", number, *said)


@app.command()
def observe(
    directory: Directory,
    file: Annotated[Path, typer.Argument(help="JSON lines: question, and optionally response and dialogue_id.")],
    as_json: AsJson = False,
) -> None:
    """Let the device see dialogues from a file; learning rounds run when they are due.

    What it has seen already is passed over, so the same command goes on after an interruption.

    Example: florilegium device observe my-device dialogues.jsonl
    """
    rows = [_dialogue(*row) for row in _rows(file)]
    with _open(directory) as device, progress_bar(hidden=as_json) as bar:
        task = bar.add_task("observing", total=len(rows))
        for question, response, dialogue_id in rows:
            decision = device.buffer.decision(dialogue_id)
            if decision is None:
                decision = device.observe(question, response, dialogue_id=dialogue_id).decision
            if as_json:
                print_json({"dialogue_id": dialogue_id, "action": decision.action, "reason": decision.reason})
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
        Path | None,
        typer.Argument(help="JSON lines: dialogue_id or its beginning, verdict (ideal, accept, skip), ideal."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Only list what is asked, with identifiers.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer what the device asks: one by one in the terminal, or from a file.

    Example: florilegium device annotate my-device
    """
    if list_:
        with _open(directory, read_only=True) as device:
            _print_held([("asked", item) for item in device.buffer.pending()], as_json=as_json)
        return
    if file is None and as_json:
        raise ConfigError("--json is of answers from a file, and none is named", "name one, or list with --list --json")
    with _open(directory) as device:
        if file is None:
            _annotate_by_hand(device)
        else:
            _annotate_from(device, list(_rows(file)), as_json=as_json)


def _annotate_from(device: Device, rows: Sequence[tuple[Mapping[str, object], int, str]], *, as_json: bool) -> None:
    """Store answers, all or, where a line is wrong, none."""
    from client.annotation import QueueAnnotator

    held = {each.dialogue.dialogue_id: each.dialogue for each in (*device.buffer.dialogues(), *device.buffer.heldout())}
    answers = [_answer(row, place, held) for row, _, place in rows]
    known, user = [answer for answer in answers if answer is not None], QueueAnnotator(device.buffer)
    for answer in known:
        user.answer(answer.dialogue_id, answer.verdict, answer.ideal)
    gone = len(answers) - len(known)
    if as_json:
        print_json({"stored": len(known), "gone": gone})
    else:
        console.print(f"{len(known)} answers stored, {gone} to dialogues that are unknown or no longer in the buffer")


def _annotate_by_hand(device: Device) -> None:
    from client.annotation import QueueAnnotator

    user = QueueAnnotator(device.buffer)
    pending = device.buffer.pending()
    if not pending:
        console.print("nothing is asked; questions come with a learning round")
    with suppress(EOFError):
        for position, item in enumerate(pending, start=1):
            console.rule(f"{position} of {len(pending)}")
            console.print(f"You asked: {item.dialogue.question}")
            console.print(f"It answered: {item.dialogue.response}")
            while not _answer_by_hand(user, item.dialogue):
                pass


def _answer_by_hand(user: QueueAnnotator, dialogue: Dialogue) -> bool:
    """Ask about one dialogue; return False if the answer is none, and say why."""
    text = console.input("Ideal answer (empty: fine as it is, '-': skip) ").strip()
    verdict = "skip" if text == "-" else "ideal" if text else "accept"
    try:
        user.answer(dialogue.dialogue_id, verdict, text if verdict == "ideal" else None)
    except InputError as error:
        print_error(str(error))
        return False
    return True


def _answer(row: Mapping[str, object], place: str, held: Mapping[str, Dialogue]) -> Annotation | None:
    """Read an answer to one of the dialogues that are held; None if it is to another."""
    from client.annotation import judge
    from client.dialogue import Verdict

    given, verdict, ideal = row.get("dialogue_id"), row.get("verdict"), row.get("ideal")
    if not (isinstance(given, str) and given and verdict in list(Verdict) and isinstance(ideal, str | None)):
        remedy = 'write {"dialogue_id": "…", "verdict": "ideal", "ideal": "…"}; the verdict is ideal, accept or skip'
        raise InputError(f"{place} is no answer", remedy)
    found = [given] if given in held else [whole for whole in held if whole.startswith(given)]
    if len(found) > 1:
        raise InputError(f"{place}: {len(found)} dialogues match its identifier", "give more of its characters")
    try:
        return judge(held[found[0]], str(verdict), ideal) if found else None
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


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
    if report.outcome in _ADVICE:
        console.print(_ADVICE[report.outcome])


@app.command()
def status(directory: Directory, as_json: AsJson = False) -> None:
    """Show what the device has seen, holds, asks and learned; numbers only.

    Example: florilegium device status my-device --json
    """
    with _open(directory, read_only=True) as device:
        values = device.status()
    if as_json:
        print_json(values)
        return
    table = Table(show_header=False)
    for name, value in values.items():
        table.add_row(name.replace("_", " "), str(value))
    console.print(table)


@app.command()
def show(directory: Directory, as_json: AsJson = False) -> None:
    """List the dialogues that the device holds, with their identifiers.

    Example: florilegium device show my-device
    """
    with _open(directory, read_only=True) as device:
        train = [("train", item) for item in device.buffer.dialogues()]
        heldout = [("heldout", item) for item in device.buffer.heldout()]
    _print_held([*train, *heldout], as_json=as_json)


def _print_held(items: Sequence[tuple[str, BufferedDialogue]], *, as_json: bool) -> None:
    table = Table("dialogue", "part", "domain", "answered", "question")
    for part, item in items:
        dialogue, scored = item.dialogue, item.scored
        if as_json:
            print_json(
                {
                    "dialogue_id": dialogue.dialogue_id,
                    "part": part,
                    "domain": scored.domain,
                    "answered": scored.answered,
                    "question": dialogue.question,
                    "response": dialogue.response,
                }
            )
        answered = "yes" if scored.answered else "no"
        table.add_row(_short(dialogue.dialogue_id), part, scored.domain, answered, dialogue.question)
    if not as_json:
        console.print(table)


def _short(dialogue_id: str | None) -> str:
    """Return as much of an identifier as tells it from others; commands take it in place of the whole."""
    digits = 32  # of an identifier that no one chose
    return (dialogue_id or "")[:8] if len(dialogue_id or "") == digits else dialogue_id or ""


@app.command()
def why(
    directory: Directory,
    dialogue_id: Annotated[
        str | None, typer.Argument(help="One dialogue, or the beginning of its name; all of the latest when left out.")
    ] = None,
    limit: Annotated[int, typer.Option(help="How many decisions.", min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """Explain what was kept, replaced and dropped, and why.

    Example: florilegium device why my-device --limit 5
    """
    with _open(directory, read_only=True) as device:
        whole = None if dialogue_id is None else device.buffer.identify(dialogue_id)
        decisions = device.buffer.decisions(whole, limit=limit)
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
        replaced = _short(made.victim_id)
        table.add_row(
            _short(logged.dialogue_id), str(logged.day), logged.part, made.action, made.reason, replaced, evidence
        )
    if not as_json:
        console.print(table)


@app.command()
def forget(
    directory: Directory,
    dialogue_id: Annotated[str, typer.Argument(help="As `show` and `why` name it, or the beginning of its name.")],
) -> None:
    """Delete a dialogue with all that came of it, adapters included; a learning round is due then, without it.

    Example: florilegium device forget my-device 3f2a
    """
    with _open(directory) as device:
        device.forget(device.buffer.identify(dialogue_id))
    console.print(
        f"forgotten, and with it every adapter; a learning round makes a new one: florilegium device learn {directory}"
    )


@app.command("rollback")
def roll_back(directory: Directory) -> None:
    """Put the adapter that was in use before the present one in use again.

    Example: florilegium device rollback my-device
    """
    with _open(directory) as device:
        version = device.roll_back()
    console.print("the bare base model is in use" if version is None else f"adapter version {version} is in use")
