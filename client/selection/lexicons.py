"""Word lists that say what a dialogue is about: one text file per domain, one word or phrase per line.

The lists that ship are in `florilegium/texts/lexicons/`, in the package that every node has installed, because a bundle
of Flower's carries no text files. A device may have a folder of its own, which then stands for all of them: its files
are the domains, so that lists for another language or another field are never mixed with ours.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from client.selection.words import split_words
from florilegium.errors import InputError

__all__ = ["Lexicons", "copy_lexicons", "load_lexicons", "parse_lexicon", "possessives"]

LONGEST_FILE_BYTES: Final = 1 << 20
LONGEST_ENTRY_CHARACTERS: Final = 64
LONGEST_ENTRY_WORDS: Final = 8
_DOMAIN: Final = re.compile(r"[^\W_][\w-]{0,31}\Z")
_RESERVED: Final = frozenset({"unknown"})
_FORBIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexicons:
    """The word lists of all domains, ready for lookup.

    Attributes:
        domains: names in alphabetical order.
        phrases: for each phrase, as its words, a bit mask of the domains that list it.
        reach: for each word that begins a phrase, the length in words of the longest such phrase.
    """

    domains: tuple[str, ...]
    phrases: Mapping[tuple[str, ...], int]
    reach: Mapping[str, int]

    @classmethod
    def of(cls, entries: Mapping[str, Iterable[str]]) -> Lexicons:
        """Build from the entries of each domain; an entry also stands for its English plural."""
        domains = tuple(sorted(entries))
        phrases: dict[tuple[str, ...], int] = {}
        reach: dict[str, int] = {}
        for bit, domain in enumerate(domains):
            for phrase in (form for entry in entries[domain] for form in _forms(split_words(entry))):
                phrases[phrase] = phrases.get(phrase, 0) | 1 << bit
                reach[phrase[0]] = max(reach.get(phrase[0], 0), len(phrase))
        return cls(domains=domains, phrases=phrases, reach=reach)

    @property
    def fingerprint(self) -> str:
        """Name the content: two sets of lexicons with the same fingerprint say the same of every text."""
        return hashlib.blake2b(repr((self.domains, sorted(self.phrases.items()))).encode(), digest_size=16).hexdigest()

    def coverage(self, words: Sequence[str]) -> tuple[int, ...]:
        """Count, for each domain, the words that lie in a phrase of its list: the printed |T ∩ l_i|.

        T is a multiset of positions: a word said twice counts twice, a phrase counts all its words, and a position
        counts once per domain however many phrases cover it. One dictionary lookup per word that begins no phrase.
        """
        masks = [0] * len(words)
        for start, word in enumerate(words):
            for end in range(start + 1, min(start + self.reach.get(word, 0), len(words)) + 1):
                if mask := self.phrases.get(tuple(words[start:end]), 0):
                    masks[start:end] = [old | mask for old in masks[start:end]]
        hits = [mask for mask in masks if mask]
        return tuple(sum(mask >> bit & 1 for mask in hits) for bit in range(len(self.domains)))


def _forms(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Give a phrase and the regular English plural of its last word."""
    yield tuple(words)
    last = words[-1]
    if len(last) < 3 or not last.isascii() or last.endswith("ss"):
        return
    if last.endswith(("ch", "sh", "x", "z")):
        yield (*words[:-1], last + "es")
    elif last.endswith("y") and last[-2] not in "aeiou":
        yield (*words[:-1], last[:-1] + "ies")
    elif not last.endswith("s"):
        yield (*words[:-1], last + "s")


def _checked_entry(where: str, text: str) -> tuple[str, ...]:
    if any(unicodedata.category(character) in _FORBIDDEN_CATEGORIES for character in text):
        raise InputError(f"{where}: a control character", "keep to visible characters and spaces")
    if len(text) > LONGEST_ENTRY_CHARACTERS:
        raise InputError(
            f"{where}: {len(text)} characters, at most {LONGEST_ENTRY_CHARACTERS} allowed", "one word or phrase a line"
        )
    words = tuple(split_words(text))
    if not words:
        raise InputError(f"{where}: no word in it", "write a word, or begin the line with # for a comment")
    if len(words) > LONGEST_ENTRY_WORDS:
        raise InputError(
            f"{where}: {len(words)} words, at most {LONGEST_ENTRY_WORDS} allowed", "one word or phrase a line"
        )
    return words


def parse_lexicon(name: str, content: bytes) -> tuple[str, ...]:
    """Return the entries of one file; empty lines and lines that begin with `#` are skipped.

    Args:
        name: the file's name, for messages.
        content: what is in it; a byte order mark and Windows line ends are accepted.

    Raises:
        InputError: the file is too long, is not UTF-8, has no entry, or has a line that is too long, has a control
            character or no word, or repeats an earlier line; the message gives the line's number.
    """
    if len(content) > LONGEST_FILE_BYTES:
        raise InputError(f"{name}: {len(content)} bytes, at most {LONGEST_FILE_BYTES} allowed", "split the domain")
    first_lines: dict[tuple[str, ...], int] = {}
    entries: list[str] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        where = f"{name} line {number}"
        try:
            text = line.decode().strip(" \t\r")
        except UnicodeDecodeError:
            raise InputError(f"{where}: not UTF-8", "save the file as UTF-8 text") from None
        if not text or text.startswith("#"):
            continue
        words = _checked_entry(where, text)
        if words in first_lines:
            raise InputError(f"{where}: repeats line {first_lines[words]}", "delete one of the two")
        first_lines[words] = number
        entries.append(text)
    if not entries:
        raise InputError(f"{name}: no word in the file", "write one word or phrase a line, or delete the file")
    return tuple(entries)


def _domain_of(file_name: str) -> str:
    domain = unicodedata.normalize("NFC", file_name.removesuffix(".txt"))
    if not _DOMAIN.match(domain) or domain in _RESERVED:
        raise InputError(
            f"{file_name} cannot name a domain",
            "use 1 to 32 letters, digits, '-' or '_' beginning with a letter or digit, and not 'unknown'",
        )
    return domain


def _read_all(folder: Traversable) -> dict[str, tuple[str, ...]]:
    files = [item for item in folder.iterdir() if item.name.endswith(".txt") and not item.name.startswith(".")]
    return {
        _domain_of(item.name): parse_lexicon(item.name, item.read_bytes())
        for item in sorted(files, key=lambda item: item.name)
    }


def _shipped() -> Traversable:
    return resources.files("florilegium") / "texts" / "lexicons"


def load_lexicons(directory: Path | None = None) -> Lexicons:
    """Load the lexicons that ship, or those of `directory` in their place if it exists.

    Raises:
        InputError: a file cannot be used, or the directory holds none.
    """
    if directory is None or not directory.is_dir():
        return Lexicons.of(_read_all(_shipped()))
    try:
        entries = _read_all(directory)
    except OSError as error:
        raise InputError(f"{error.filename or directory} cannot be read: {error.strerror}", "mend its mode") from None
    if not entries:
        raise InputError(f"{directory} holds no *.txt file", "add one file per domain, or delete the folder")
    return Lexicons.of(entries)


@cache
def possessives() -> Lexicons:
    """Load the words, of many languages, with which users speak of what is theirs, as one domain."""
    file = resources.files("florilegium") / "texts" / "possessives.txt"
    return Lexicons.of({"own": parse_lexicon(file.name, file.read_bytes())})


def copy_lexicons(directory: Path) -> None:
    """Copy the lexicons that ship into `directory`, for editing; files that are there already stay as they are."""
    directory.mkdir(parents=True, exist_ok=True)
    for item in _shipped().iterdir():
        target = directory / item.name
        if item.name.endswith(".txt") and not target.exists():
            target.write_bytes(item.read_bytes())
