"""The errors a user can meet, each with the value, the rule it broke and a remedy.

    FlorilegiumError
    ├── ConfigError        a setting is out of its range or unknown        exit code 2
    ├── InputError         a file or a record cannot be used               exit code 3
    ├── ModelError         a base model cannot be loaded or used           exit code 4
    ├── StorageError       a device directory cannot be read or written    exit code 5
    │   └── BusyError      another process has it open
    ├── MemoryBudgetError  the work does not fit the memory it was given   exit code 6
    └── PrivacyError       a release breaks a privacy rule or a budget     exit code 7

Messages never quote a dialogue: they name files, line numbers, fields, lengths and identifiers.
"""

from typing import ClassVar

__all__ = [
    "BusyError",
    "ConfigError",
    "FlorilegiumError",
    "InputError",
    "MemoryBudgetError",
    "ModelError",
    "PrivacyError",
    "StorageError",
]


class FlorilegiumError(Exception):
    """Report a problem that the caller can mend; the command line prints it as one line."""

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)


class ConfigError(FlorilegiumError):
    """Report a setting that is unknown or out of its range."""

    exit_code = 2


class InputError(FlorilegiumError):
    """Report a file or a record that cannot be used."""

    exit_code = 3


class ModelError(FlorilegiumError):
    """Report a base model that cannot be loaded or used."""

    exit_code = 4


class StorageError(FlorilegiumError):
    """Report a device directory that cannot be read or written."""

    exit_code = 5


class BusyError(StorageError):
    """Report a device's or a run's directory that another process has open; it can be used when that one is done."""


class MemoryBudgetError(FlorilegiumError):
    """Report work that does not fit the memory budget it was given."""

    exit_code = 6


class PrivacyError(FlorilegiumError):
    """Report a release that breaks a privacy rule or a budget; nothing was released."""

    exit_code = 7
