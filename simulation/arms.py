"""The arms of a comparison: ways to spend the same annotations and the same training rows.

An arm is a value. Adding one is adding a line to `ARMS`; adding a selection policy adds its two arms by itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, TypeVar

from client.selection.policies import POLICIES
from florilegium.errors import ConfigError

__all__ = ["ARMS", "CONTRASTS", "DEFAULT_ARMS", "Arm", "Contrast", "find_arms", "pick"]

AnyArm = TypeVar("AnyArm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to personalize.

    Attributes:
        name: its name on the command line and in every file.
        title: what it does, in a few words.
        policy: the selection policy that fills the buffer.
        synthesizer: the synthesizer, or "none": then originals are repeated up to the same number of rows.
        trains: whether a personal adapter is trained.
        retrieves: whether annotated dialogues are put before the question as examples.
        sees_everything: trains on the preferred answer of every turn: an upper bound, outside the budget.
    """

    name: str
    title: str
    policy: str = "improved"
    synthesizer: str = "none"
    trains: bool = False
    retrieves: bool = False
    sees_everything: bool = False
    promise: ClassVar[None] = None  # nothing leaves a device

    @property
    def learns(self) -> bool:
        """Whether the arm uses annotations at all."""
        return self.trains or self.retrieves

    @property
    def within_budget(self) -> bool:
        """Whether the arm's annotations are counted against the budget that arms share."""
        return self.learns and not self.sees_everything


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A question that the paired difference of two arms answers.

    Attributes:
        name: its key in the summary.
        question: in plain words.
        arm: the arm whose gain it is.
        reference: the arm it is compared with.
    """

    name: str
    question: str
    arm: str
    reference: str


def _local(policy: str) -> tuple[Arm, Arm]:
    title = f"local LoRA, {policy} selection"
    return (
        Arm(name=f"local-{policy}", title=title, policy=policy, synthesizer="questions", trains=True),
        Arm(name=f"local-{policy}-nosynth", title=f"{title}, no synthesis", policy=policy, trains=True),
    )


ARMS: Final[dict[str, Arm]] = {
    arm.name: arm
    for arm in (
        Arm(name="none", title="the base model as it is"),
        Arm(name="retrieval", title="annotated dialogues as examples in the prompt", retrieves=True),
        *(arm for policy in POLICIES for arm in _local(policy)),
        Arm(name="retrieval+local", title="both", synthesizer="questions", trains=True, retrieves=True),
        Arm(name="full-stream", title="every turn annotated: an upper bound", trains=True, sees_everything=True),
    )
}

DEFAULT_ARMS: Final = (
    "none",
    "retrieval",
    "local-random",
    "local-paper",
    "local-improved-nosynth",
    "local-improved",
    "retrieval+local",
    "full-stream",
)

CONTRASTS: Final = (
    Contrast(name="personalization", question="Does personalizing help?", arm="local-improved", reference="none"),
    Contrast(
        name="selection-random",
        question="Is choosing what to keep better than chance?",
        arm="local-improved",
        reference="local-random",
    ),
    Contrast(
        name="selection-paper",
        question="Is the default policy better than the published rule?",
        arm="local-improved",
        reference="local-paper",
    ),
    Contrast(
        name="synthesis",
        question="Do synthesized questions help more than repeating the originals?",
        arm="local-improved",
        reference="local-improved-nosynth",
    ),
    Contrast(
        name="training-or-retrieval",
        question="Is training better than putting the same dialogues into the prompt?",
        arm="local-improved",
        reference="retrieval",
    ),
    Contrast(
        name="both",
        question="Does retrieval add to training?",
        arm="retrieval+local",
        reference="local-improved",
    ),
    Contrast(
        name="headroom",
        question="Would annotating every turn add more?",
        arm="full-stream",
        reference="local-improved",
    ),
)


def find_arms(names: Iterable[str]) -> tuple[Arm, ...]:
    """Return the arms of these names, each once, in this order.

    Raises:
        ConfigError: no arm has such a name.
    """
    return pick(names, ARMS, known=", ".join(ARMS))


def pick(names: Iterable[str], arms: Mapping[str, AnyArm], *, known: str) -> tuple[AnyArm, ...]:
    """Return the arms of these names, each once, in this order.

    Args:
        names: of arms.
        arms: all there are, by name.
        known: what to name to a user who asks for another.

    Raises:
        ConfigError: no arm has such a name.
    """
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in arms:
            nearest = difflib.get_close_matches(name, arms, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known arms: {known}"
            raise ConfigError(f"arm {name!r} is unknown", hint)
    return tuple(arms[name] for name in wanted)
