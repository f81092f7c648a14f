"""How a user likes to be answered: tone, form of address, habitual first and last words, units, length.

A style is drawn once per user from `style.toml` and drifts slowly. Like facts, whole styles have two sides: a
combination of tone, address, opening and closing is either one of the training text or one of evaluated users.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from typing import Final

from client.dialogue import derive_id
from simulation.world.bank import BLANK, Kind, lines, pool
from simulation.world.facts import Fact
from simulation.world.values import TIMES, draw

__all__ = ["PLAIN", "TONES", "Style", "draw_style", "drift_style", "render"]

TONES: Final = ("short", "warm", "formal", "playful")
_KM_PER_MILE: Final = 1.609
_NOON: Final = 12
_ATTEMPTS: Final = 100
_NICKNAME_SHARE: Final = 0.6
_TWELVE_HOURS_SHARE: Final = 0.5
_MILES_SHARE: Final = 0.4
_BRIEF_SHARE: Final = {"short": 0.9, "warm": 0.3, "formal": 0.2, "playful": 0.5}
_CONTRACTIONS: Final = {
    "it is": "it's", "that is": "that's", "you are": "you're", "i will": "i'll", "do not": "don't",
    "is not": "isn't", "i am": "i'm", "we are": "we're", "does not": "doesn't", "you will": "you'll",
}  # fmt: skip
_CONTRACTIBLE: Final = re.compile(rf"\b({'|'.join(_CONTRACTIONS)})(?= \w)", re.I)
_AN: Final = re.compile(r"(?!uni|use|usu|uti|eu|one\b|once\b|ut)[aeiou]|hour|hon(est|our)|heir|8|11\b|18\b", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A user's preferred way of being answered.

    Attributes:
        tone: one of `TONES`, or "plain".
        address: what the assistant calls the user.
        opener: the first words of an answer; may be empty.
        closer: the last words of an answer; may be empty.
        twelve_hours: times as "6:30 pm" instead of "18:30".
        miles: distances in miles instead of kilometres.
        brief: answers in few words.
    """

    tone: str
    address: str = ""
    opener: str = ""
    closer: str = ""
    twelve_hours: bool = False
    miles: bool = False
    brief: bool = True

    @property
    def for_training(self) -> bool:
        """Whether the style may occur in the base model's training text; else evaluated users may have it."""
        return derive_id("style", self.tone, self.address, self.opener, self.closer)[0] in "01234567"

    def bodies(self, kind: Kind) -> tuple[str, ...]:
        """Return the answers of a kind in this style's length."""
        return kind.brief if self.brief else kind.full

    def dress(self, body: str) -> str:
        """Put an answer between the style's first and last words, contracted unless the tone is formal."""
        if self.tone not in ("formal", "plain"):
            body = _CONTRACTIBLE.sub(_contract, body)
        return " ".join(part for part in (self.opener, body, self.closer) if part)


PLAIN: Final = Style(tone="plain")


def _contract(match: re.Match[str]) -> str:
    short = _CONTRACTIONS[match[0].lower()]
    return short[0].upper() + short[1:] if match[0][0].isupper() else short


def _address(tone: str, rng: random.Random) -> str:
    if tone == "formal":
        return f"{rng.choice(('Mr', 'Ms', 'Dr'))} {draw('@family', rng)}"
    return rng.choice(pool("nickname")) if rng.random() < _NICKNAME_SHARE else draw("@person", rng)


def _part(part: str, tone: str, address: str, rng: random.Random) -> str:
    return rng.choice(lines("style", part, tone)).replace("{address}", address)


def draw_style(rng: random.Random, *, training: bool) -> Style:
    """Draw a style of the wanted side."""
    tone = rng.choice(TONES)
    while True:
        address = _address(tone, rng)
        style = Style(
            tone=tone,
            address=address,
            opener=_part("openers", tone, address, rng),
            closer=_part("closers", tone, address, rng),
            twelve_hours=rng.random() < _TWELVE_HOURS_SHARE,
            miles=rng.random() < _MILES_SHARE,
            brief=rng.random() < _BRIEF_SHARE[tone],
        )
        if style.for_training == training:
            return style


def drift_style(style: Style, rng: random.Random) -> Style:
    """Change the first or the last words of a style, if its side has other ones."""
    for _ in range(_ATTEMPTS):
        part = rng.choice(("openers", "closers"))
        words = _part(part, style.tone, style.address, rng)
        changed = replace(style, opener=words) if part == "openers" else replace(style, closer=words)
        if changed != style and changed.for_training == style.for_training:
            return changed
    return style


def _shown(source: str, value: str, style: Style) -> str:
    if source.startswith("@km "):
        return f"{round(int(value) / _KM_PER_MILE, 1):g} miles" if style.miles else f"{value} km"
    if source in TIMES and style.twelve_hours:
        hour, minute = value.split(":")
        return f"{(int(hour) + 11) % 12 + 1}:{minute} {'pm' if int(hour) >= _NOON else 'am'}"
    return value


def render(template: str, fact: Fact, style: Style = PLAIN) -> str:
    """Fill a template's blanks with a fact's values, in the units of a style."""

    def fill(match: re.Match[str]) -> str:
        name = match[2]
        shown = _shown(fact.kind.slots[name], fact.values[name], style)
        return f"{'an' if _AN.match(shown) else 'a'} {shown}" if match[1] else shown

    return BLANK.sub(fill, template)
