"""Read users from files: own logs, public question-answer files, dialogues, Hub datasets.

`read_users` looks at the fields of a file's first record and picks the reader.
"""

from simulation.readers.assembly import Assembly
from simulation.readers.dialogues import Split, persona_split
from simulation.readers.files import read_dialogues, read_users
from simulation.readers.hub import read_hub
from simulation.readers.records import MAX_TEXT_CHARACTERS
from simulation.readers.rows import Columns, read_jsonl

__all__ = [
    "MAX_TEXT_CHARACTERS",
    "Assembly",
    "Columns",
    "Split",
    "persona_split",
    "read_dialogues",
    "read_hub",
    "read_jsonl",
    "read_users",
]
