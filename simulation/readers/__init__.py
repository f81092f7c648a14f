"""Read users from files: own logs, public question-answer files, dialogues, Hub datasets.

`read_users` tells from the fields of each record how to read it. Of `persona_chat` it reads by default the users who
never trained the built-in model. Of the other public corpora named in that model's card nine tenths of the rows did
train it, and the readers do not know which: compare on them with another model.
"""

from simulation.readers.assembly import Assembly
from simulation.readers.dialogues import Split, persona_split
from simulation.readers.files import read_users
from simulation.readers.hub import read_hub
from simulation.readers.rows import Columns

__all__ = ["Assembly", "Columns", "Split", "persona_split", "read_hub", "read_users"]
