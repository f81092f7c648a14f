"""Inflect English words by rule and table: enough for paraphrases, not a grammar."""

from __future__ import annotations

from typing import Final, NamedTuple


class VerbForms(NamedTuple):
    """The five forms of a verb."""

    base: str
    third: str
    past: str
    participle: str
    gerund: str


_IRREGULAR_TEXT: Final = """
be was been, become became become, begin began begun, break broke broken, bring brought brought, build built built,
buy bought bought, catch caught caught, choose chose chosen, come came come, cost cost cost, cut cut cut, do did done,
draw drew drawn, drink drank drunk, drive drove driven, eat ate eaten, fall fell fallen, feel felt felt,
fight fought fought, find found found, fly flew flown, forget forgot forgotten, get got got, give gave given,
go went gone, grow grew grown, have had had, hear heard heard, hide hid hidden, hit hit hit, hold held held,
hurt hurt hurt, keep kept kept, know knew known, lead led led, learn learned learned, leave left left, lend lent lent,
let let let, lie lay lain, lose lost lost, make made made, mean meant meant, meet met met, pay paid paid, put put put,
read read read, ride rode ridden, ring rang rung, rise rose risen, run ran run, say said said, see saw seen,
sell sold sold, send sent sent, set set set, show showed shown, shut shut shut, sing sang sung, sit sat sat,
sleep slept slept, speak spoke spoken, spend spent spent, stand stood stood, steal stole stolen, swim swam swum,
take took taken, teach taught taught, tell told told, think thought thought, throw threw thrown,
understand understood understood, wake woke woken, wear wore worn, win won won, write wrote written
"""
_IRREGULAR: Final = {
    base: (past, participle)
    for base, past, participle in (entry.split() for entry in _IRREGULAR_TEXT.replace("\n", " ").split(","))
}
_DOUBLING: Final = frozenset(
    [
        "stop",
        "plan",
        "drop",
        "chat",
        "shop",
        "jog",
        "swim",
        "run",
        "sit",
        "get",
        "put",
        "cut",
        "let",
        "set",
        "begin",
        "forget",
        "win",
        "hit",
        "shut",
        "bet",
        "dig",
        "hug",
        "knit",
    ]
)
_VOWELS: Final = "aeiou"


def _third(base: str) -> str:
    special = {"have": "has", "do": "does", "go": "goes", "be": "is"}
    if base in special:
        return special[base]
    return plural(base)


def _past(base: str) -> str:
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in _VOWELS:
        return base[:-1] + "ied"
    return (base + base[-1] if base in _DOUBLING else base) + "ed"


def gerund(base: str) -> str:
    """Return the -ing form of a verb.

    >>> [gerund(verb) for verb in ("make", "run", "see", "lie", "play")]
    ['making', 'running', 'seeing', 'lying', 'playing']
    """
    if base.endswith("ie"):
        return base[:-2] + "ying"
    if base.endswith("e") and not base.endswith(("ee", "oe", "ye")) and base != "be":
        return base[:-1] + "ing"
    return (base + base[-1] if base in _DOUBLING else base) + "ing"


def verb_forms(base: str) -> VerbForms:
    """Return all forms of a verb; of a phrase ("look for") the first word is inflected.

    >>> verb_forms("look for").gerund
    'looking for'
    """
    head, _, rest = base.partition(" ")
    tail = f" {rest}" if rest else ""
    past, participle = _IRREGULAR.get(head, (_past(head), _past(head)))
    forms = (head, _third(head), past, participle, gerund(head))
    return VerbForms(*(form + tail for form in forms))


def plural(noun: str) -> str:
    """Return the regular plural of a noun, which is a verb's third person too.

    >>> [plural(noun) for noun in ("box", "city", "day", "dog")]
    ['boxes', 'cities', 'days', 'dogs']
    """
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in _VOWELS:
        return noun[:-1] + "ies"
    return noun + "s"


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun phrase."""
    return f"{article(noun)} {noun}"


def article(word: str) -> str:
    """Return "a" or "an", by the sound that a word begins with."""
    lower = word.lower()
    if lower.startswith(("hour", "honest", "honour", "honor", "heir")):
        return "an"
    if lower.startswith(("uni", "use", "usu", "euro", "one", "once", "uk", "ufo")) and not (
        lower.startswith(("unin", "unim"))
    ):
        return "a"
    return "an" if lower[:1] in _VOWELS else "a"
