"""Generate the users of a world."""

from __future__ import annotations

import random

from client.dialogue import derive_seed
from florilegium.errors import ConfigError
from simulation.users import UserData
from simulation.world.config import WorldConfig
from simulation.world.facts import FIRST_TRAINING_SEED, is_training_seed
from simulation.world.heldout import hold_out
from simulation.world.profile import draw_profile
from simulation.world.stream import Talk

__all__ = ["generate_users"]


def _generate_user(seed: int, index: int, config: WorldConfig) -> UserData:
    key = f"{seed}/u{index:04d}"
    talk = Talk.begin(draw_profile(seed, index, config), config, random.Random(derive_seed("talk", seed, index)))
    stream = talk.turns(key)
    heldout, kinds = hold_out(talk, key)
    return UserData(user_id=f"u{index:04d}", stream=stream, heldout=heldout, heldout_kinds=kinds)


def generate_users(seed: int, count: int, config: WorldConfig | None = None) -> list[UserData]:
    """Generate users 0 to `count` - 1 of a seed's world; a user does not depend on `count`.

    Args:
        seed: below 1,000,000; the others are reserved for the base model's training text.
        count: number of users.
        config: the world's knobs; the defaults when None.

    Raises:
        ConfigError: the seed is reserved, or `count` is negative.
    """
    if is_training_seed(seed):
        raise ConfigError(f"seed must be below {FIRST_TRAINING_SEED}, got {seed}", "larger ones train the base model")
    if count < 0:
        raise ConfigError(f"count must be at least 0, got {count}")
    return [_generate_user(seed, index, config or WorldConfig()) for index in range(count)]
