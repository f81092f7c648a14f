"""Settings: parsed once, at the edge, into frozen typed values.

Unknown keys are refused by name, with the nearest known one; values are checked where they are declared.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Self, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError, with_config

from florilegium.errors import ConfigError

__all__ = ["Settings", "build", "one_of", "read_toml"]

Built = TypeVar("Built")

# What pydantic says of Python's types, in the words of TOML.
_FORMS: Final = {
    "tuple_type": "must be a list; write it in [ ]",
    "list_type": "must be a list; write it in [ ]",
} | dict.fromkeys(("model_type", "dataclass_type", "dict_type"), "must be a table; write it in { } or under [name]")


def one_of(names: Iterable[str]) -> AfterValidator:
    """Let a field of type `Annotated[str, …]` hold only the names of a registry."""
    known = sorted(names)

    def check(name: str) -> str:
        if name not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return name

    return AfterValidator(check)


class Settings(BaseModel):
    """The base of every settings class: frozen, no unknown keys, errors of one line."""

    # An infinity that was accepted must be readable where it is sent to.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, ser_json_inf_nan="constants")

    @classmethod
    def parse(cls, values: Mapping[str, object], *, source: str = "settings") -> Self:
        """Check `values` and return them as settings.

        Args:
            values: as read from TOML, JSON or the command line; nested tables become nested settings.
            source: where they come from, for the message (a file's name, say).

        Raises:
            ConfigError: an unknown key or a value out of its range; the message names key, value, rule and remedy.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise _refusal(cls, error, source) from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a TOML file.

        Raises:
            ConfigError: it cannot be read, is no TOML, or `parse` refuses it.
        """
        return cls.parse(read_toml(path), source=str(path))


def read_toml(path: Path) -> dict[str, object]:
    """Return what a TOML file holds.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "name a readable TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", "mend that line") from None


def build(kind: type[Built], options: Mapping[str, object], *, source: str) -> Built:
    """Make a dataclass of options, checked by name and by type as settings are.

    Args:
        kind: the dataclass.
        options: as read from TOML or JSON.
        source: where they come from, for the message.

    Raises:
        ConfigError: an option is unknown, of another type or out of its range.
    """
    try:
        built: Built = _adapter(kind).validate_python(dict(options))  # type: ignore[arg-type]  # classes are hashable
    except ValidationError as error:
        raise _refusal(kind, error, source) from None
    return built


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(with_config(extra="forbid")(kind))


def _refusal(kind: type, error: ValidationError, source: str) -> ConfigError:
    return ConfigError("; ".join(_explain(kind, problem, source) for problem in _problems(error)))


def _problems(error: ValidationError) -> list[tuple[tuple[str, ...], str, str, object]]:
    return [
        (tuple(str(part) for part in item["loc"]), item["type"], item["msg"], item["input"])
        for item in error.errors(include_url=False, include_context=False)
    ]


def _explain(cls: type, problem: tuple[tuple[str, ...], str, str, object], source: str) -> str:
    location, kind, message, value = problem
    name = ".".join(location) or "settings"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _keys(cls, location[:-1])
        nearest = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(sorted(known))}"
        return f"{source}: unknown key {name!r}; {hint}"
    if kind == "missing":
        return f"{source}: {name} is missing; add it"
    rule = _FORMS.get(kind, message.removeprefix("Value error, "))
    return f"{source}: {name} = {value!r} is refused: {rule[:1].lower() + rule[1:]}"


def _keys(kind: Any, path: tuple[str, ...]) -> list[str]:
    """Return the keys of the settings or dataclass at `path` below a type; optional ones and tables of them, too."""
    if path and get_origin(kind) is dict:
        return _keys(get_args(kind)[1], path[1:])
    if not isinstance(kind, type):
        return [key for inner in get_args(kind) for key in _keys(inner, path)]
    known = kind.model_fields if issubclass(kind, BaseModel) else {}
    if path:
        return _keys(known[path[0]].annotation, path[1:]) if path[0] in known else []
    return list(known) or ([each.name for each in fields(kind)] if is_dataclass(kind) else [])
