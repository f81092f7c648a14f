"""Measure synthesis: which share of a model's samples passes the checks, and why the others fail, by temperature.

    python -m benchmarks.synthesis --model seedling --temperature 0.5 --temperature 0.9 --json

The questions were written for this measurement: facts about people, appointments, preferences, how-to, and a few that
are hard on purpose (short, long, two sentences, lower case, another language, no question mark).
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated, Final

import torch
import typer

from benchmarks.report import markdown
from client.dialogue import Example, derive_id
from client.model import BaseModel, load_model
from client.rouge import rouge1
from client.synthesis import DEFAULT_TEMPERATURE, SYNTHESIZERS, Reason, Synthesis
from florilegium.errors import FlorilegiumError

QUESTIONS: Final = """
What is the name of my sister's dog? = Your sister's dog is called Pickle.
Who taught me to play the cello? = Mrs. Okafor from the music school taught you.
When is my brother Tomas getting married? = Tomas is getting married on the 14th of June.
What was the street called where I grew up? = You grew up on Harbour Lane.
Which school does my daughter go to? = She goes to Elm Park Primary.
What am I allergic to? = You are allergic to walnuts and to penicillin.
How old is my nephew Ravi now? = Ravi turned nine in March.
Where did my parents meet? = They met at a dance in Lisbon.
What does my neighbour Helga do for a living? = Helga repairs violins.
What is the name of the man who fixes our boiler? = His name is Desmond Clay.
Do you remember which football club my uncle supports? = Your uncle supports Bristol Rovers.
Which of my friends is a vegetarian? = Priya is the vegetarian among your friends.
Who gave me the blue teapot? = Your aunt Carmen gave it to you.
What language does my grandmother speak at home? = She speaks Welsh at home.
When does the train to Leeds leave on Friday? = It leaves at 7:42 from platform 3.
What time is my dentist appointment on Tuesday? = Your dentist expects you at 10:15.
How many days are left until my exam? = There are 12 days left.
On which evenings do I have choir practice? = Choir practice is on Mondays and Thursdays.
When do the bins have to be put out? = Put them out on Wednesday night.
What time should I wake up to catch the 6:50 ferry? = Get up at 5:30 at the latest.
Which weeks did I book off in August? = You booked the second and third week.
When is the rent due? = The rent is due on the first of the month.
How long is my lunch break on Saturdays? = On Saturdays you have 45 minutes.
At what time does the library close today? = It closes at eight.
When did I last change the water filter? = You changed it on the 3rd of May.
Is my yoga class in the morning or in the evening? = It is in the evening, at six.
What should I cook for dinner tonight? = Make the lentil soup that you liked so much.
Which tea do I like best in the afternoon? = You like smoky black tea best.
How do I take my coffee? = You take it with oat milk and no sugar.
What kind of music helps me to concentrate? = Quiet piano music helps you most.
Can you suggest a film for tonight? = Try a slow detective film, as you like them.
Which seat do I prefer on a plane? = You prefer the window seat near the front.
What was that wine we had in Porto? = It was a dry white called Esteva.
Where should I go for a walk this weekend? = Walk along the canal to the old mill.
What colour did I want for the kitchen walls? = You wanted a pale green.
Should I buy the wool coat or the raincoat? = Take the raincoat, it rains all autumn here.
Which newspaper do I read on Sundays? = On Sundays you read the Observer.
What present would my wife like for her birthday? = She would love a fountain pen.
How do I get red wine out of a white shirt? = Pour salt on it, then soak it in cold water.
How often should I water a cactus in winter? = Once a month is enough.
What is the best way to sharpen a kitchen knife? = Draw it over a whetstone at a low angle.
How can I fall asleep faster? = Keep the room cool and put the phone away an hour before.
How do I reset the router in the hall? = Hold the small button at the back for ten seconds.
What do I need to bake a plain sponge cake? = Flour, butter, sugar and eggs in equal weights.
How many eggs go into my pancake batter? = Three eggs go into it.
Why does my bread not rise? = Your kitchen is too cold; let it stand by the oven.
How do I tie a bowline? = Make a loop, come up through it, go round and back down.
Can you explain how a bicycle gear works? = A larger sprocket turns slower and pulls harder.
How do I write a letter of complaint to the landlord? = State the fault, the date and what you expect.
Where do I find the spare key? = It hangs behind the garden door.
Any ideas? = Take the children to the museum of toys.
what did biscuit do at the vet = Biscuit bit the vet in the thumb.
What is the wifi password at Nora's flat? = The password is heron-4471-gold.
Tell me what to pack for the trip to Bergen. = Pack a rain jacket, wool socks and a torch.
Remind me to call the plumber at 9. = I will remind you at nine.
I'm tired of porridge. What else can I eat in the morning? = Try toast with figs and goat's cheese.
My car makes a grinding noise when I brake. Is that dangerous? = Yes, have the brake pads changed this week.
Since the flight to Oslo leaves at noon and Mia wants breakfast first, when should we go? = Leave home at half past 8.
Wann fährt der letzte Bus nach Hause? = Der letzte Bus fährt um 23:10 Uhr.
¿Cómo se llama la profesora de mi hijo? = Se llama Lucía Ferrer.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one setting gave.

    Attributes:
        mode: the synthesizer.
        temperature: of the sampling.
        count: children wanted for each example.
        examples: how many examples there were.
        samples: texts the model wrote.
        valid_share: share of the samples that passed, wanted or not.
        children: mean children of an example.
        complete_share: share of examples with all children wanted.
        rouge1: mean ROUGE-1 F1 of a child's question with the original.
        sibling_rouge1: mean ROUGE-1 F1 of two children of one example; less is more varied.
        seconds_per_child: wall-clock.
        drops: samples dropped by reason.
    """

    mode: str
    temperature: float
    count: int
    examples: int
    samples: int
    valid_share: float
    children: float
    complete_share: float
    rouge1: float
    sibling_rouge1: float
    seconds_per_child: float
    drops: dict[str, int] = field(default_factory=dict)


def read_examples(text: str = QUESTIONS) -> list[Example]:
    """Read lines `question = response` as annotated examples."""
    rows = [line.split(" = ", 1) for line in text.strip().splitlines()]
    keys = [derive_id("benchmark", question) for question, _ in rows]
    return [
        Example(question=question, response=response, source_id=key, example_id=key)
        for (question, response), key in zip(rows, keys, strict=True)
    ]


def measure(
    model: BaseModel, examples: Sequence[Example], *, mode: str, temperature: float, count: int, seed: int
) -> tuple[Measurement, list[Synthesis]]:
    """Synthesize for every example and summarise."""
    started = time.perf_counter()
    results = SYNTHESIZERS[mode](model, examples, count=count, seed=seed, temperature=temperature)
    seconds = time.perf_counter() - started
    drops = sum((result.drops for result in results), Counter[str]())
    children = sum(len(result.children) for result in results)
    samples = children + drops.total()
    pairs = zip(examples, results, strict=True)
    overlaps = [rouge1(child.question, one.question) for one, result in pairs for child in result.children]
    siblings = [
        rouge1(one.question, other.question) for result in results for one, other in combinations(result.children, 2)
    ]
    summary = Measurement(
        mode=mode,
        temperature=temperature,
        count=count,
        examples=len(examples),
        samples=samples,
        valid_share=(children + drops[Reason.SURPLUS]) / max(samples, 1),
        children=children / len(examples),
        complete_share=sum(len(result.children) == count for result in results) / len(examples),
        rouge1=_mean(overlaps),
        sibling_rouge1=_mean(siblings),
        seconds_per_child=seconds / max(children, 1),
        drops=dict(drops.most_common()),
    )
    return summary, results


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def table(measurements: Sequence[Measurement]) -> str:
    """Return the measurements as a Markdown table."""
    header = [
        "mode",
        "temperature",
        "samples",
        "valid",
        "children",
        "complete",
        "ROUGE-1",
        "siblings",
        "s/child",
        "drops",
    ]
    return markdown(header, [_row(each) for each in measurements])


def _row(each: Measurement) -> list[str]:
    drops = ", ".join(f"{reason} {number}" for reason, number in each.drops.items())
    shares = [f"{each.valid_share:.0%}", f"{each.children:.2f}", f"{each.complete_share:.0%}"]
    overlaps = [f"{each.rouge1:.2f}", f"{each.sibling_rouge1:.2f}", f"{each.seconds_per_child:.2f}"]
    return [each.mode, f"{each.temperature}", f"{each.samples}", *shares, *overlaps, drops]


def main(
    model: Annotated[str, typer.Option(help='"seedling", a Hub name or a local path.')] = "seedling",
    mode: Annotated[list[str], typer.Option(help="A synthesizer; may be given several times.")] = ["questions"],  # noqa: B006
    temperature: Annotated[list[float], typer.Option(help="Of the sampling; may be given several times.")] = [  # noqa: B006
        DEFAULT_TEMPERATURE
    ],
    count: Annotated[int, typer.Option(help="Children for each question.", min=1)] = 3,
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="Threads of the arithmetic.", min=1)] = 1,
    samples: Annotated[Path | None, typer.Option(help="Also write the children to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> None:
    """Measure which share of a model's samples passes the checks of synthesis.

    Example: python -m benchmarks.synthesis --temperature 0.5 --temperature 0.9 --json
    """
    torch.set_num_threads(threads)
    examples = read_examples()
    measurements: list[Measurement] = []
    lines: list[str] = []
    try:
        loaded = load_model(model)
        for name in mode:
            for heat in temperature:
                summary, results = measure(loaded, examples, mode=name, temperature=heat, count=count, seed=seed)
                measurements.append(summary)
                for example, result in zip(examples, results, strict=True):
                    lines += [
                        f"{name} {heat} | {example.question} | {child.question} | {child.response}"
                        for child in result.children
                    ]
    except FlorilegiumError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    if samples is not None:
        samples.write_text("\n".join(lines) + "\n", encoding="utf-8")
    typer.echo(json.dumps([asdict(each) for each in measurements], indent=1) if as_json else table(measurements))


if __name__ == "__main__":
    typer.run(main)
