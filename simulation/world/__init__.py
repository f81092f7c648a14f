"""The built-in world: users with habits, facts, tone and topics, in a town of their own, all from one seed.

`generate_users` makes the users of an experiment. `training_text` writes the text from which the base model learns
the language of such worlds, and none of their facts.
"""

from simulation.world.chats import Chat, Role, training_paraphrases, training_text
from simulation.world.config import WorldConfig
from simulation.world.facts import FIRST_TRAINING_SEED
from simulation.world.generate import generate_users

__all__ = [
    "FIRST_TRAINING_SEED",
    "Chat",
    "Role",
    "WorldConfig",
    "generate_users",
    "training_paraphrases",
    "training_text",
]
