"""The arms of a comparison of fleets: by name, or by plans of one's own.

    none, retrieval, local, central        without a server
    RULE                                   fedit, ffa, …: the shared adapter as it is
    WAY+RULE                               dual+fedit, ditto+ffa, …: a personal adapter on top

All arms have the same devices, the same annotations and rows, and the same local steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

from florilegium.errors import ConfigError
from privacy.device_level import DeviceLevel, promise
from simulation.arms import Contrast, pick
from strategies.personal import PERSONAL_WAYS
from strategies.rules import RULES
from strategies.settings import PlanSettings

__all__ = [
    "DEFAULT_SHARING_ARMS",
    "EVERY_SHARING_ARM",
    "SHARING_ARMS",
    "SHARING_CONTRASTS",
    "SharingArm",
    "find_sharing_arms",
]

Kind = Literal["none", "retrieval", "central", "plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingArm:
    """One way for a fleet to learn.

    Attributes:
        name: its name on the command line and in every file.
        title: what it does, in a few words.
        kind: "plan" for what a plan describes; the others share nothing.
        plan: of a "plan".
    """

    name: str
    title: str
    kind: Kind = "plan"
    plan: PlanSettings | None = None
    policy: str | None = None  # selection is the same for all arms

    @property
    def shares(self) -> bool:
        """Whether anything leaves a device."""
        return self.plan is not None and self.plan.rule != "none"

    @property
    def promise(self) -> str | None:
        """What device-level privacy its plan promises; None where it asks for none."""
        privacy = None if self.plan is None else self.plan.privacy
        return None if privacy is None else promise(DeviceLevel(**privacy.model_dump(), cohort=1))

    @property
    def trains(self) -> bool:
        """Whether adapters are trained."""
        return self.kind in ("plan", "central")

    @property
    def learns(self) -> bool:
        """Whether annotations are used at all."""
        return self.kind != "none"

    @property
    def within_budget(self) -> bool:
        """Whether the arm learns within the budget and the promise of all others: no rows leave their device."""
        return self.learns and self.kind != "central"


_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")
_WAYS: Final = tuple(name for name in PERSONAL_WAYS if name != "local")
_TITLES: Final = {
    "dual": "a personal adapter beside the shared one",
    "ditto": "a personal adapter held near the shared one",
    "finetune": "a copy of the shared adapter, tuned locally",
}


def _arms() -> Iterable[SharingArm]:
    yield SharingArm(name="none", title="the base model as it is", kind="none")
    yield SharingArm(name="retrieval", title="annotated dialogues as examples in the prompt", kind="retrieval")
    yield SharingArm(name="local", title="every device for itself", plan=PlanSettings(rule="none", personal="local"))
    for rule in RULES:
        yield SharingArm(name=rule, title=f"shared adapter by {rule}", plan=PlanSettings(rule=rule))
    for way, rule in product(_WAYS, RULES):
        plan = PlanSettings(rule=rule, personal=way)
        yield SharingArm(name=f"{way}+{rule}", title=f"{_TITLES[way]}, shared by {rule}", plan=plan)
    yield SharingArm(name="central", title="one adapter on everybody's rows, in one place", kind="central")


SHARING_ARMS: Final = {arm.name: arm for arm in _arms()}
DEFAULT_SHARING_ARMS: Final = ("none", "retrieval", "local", "fedit", "dual+fedit")
EVERY_SHARING_ARM: Final = (
    "none",
    "retrieval",
    "local",
    *RULES,
    *(f"{way}+fedit" for way in _WAYS),
    "central",
)
"""Every rule once, and every personal way on the first of them."""

SHARING_CONTRASTS: Final = (
    Contrast(name="personalization", question="Does learning alone help?", arm="local", reference="none"),
    Contrast(
        name="coordination", question="Is a shared adapter better than learning alone?", arm="fedit", reference="local"
    ),
    Contrast(
        name="both",
        question="Is a shared and a personal adapter better than learning alone?",
        arm="dual+fedit",
        reference="local",
    ),
    Contrast(
        name="personal",
        question="Does a personal adapter add to the shared one?",
        arm="dual+fedit",
        reference="fedit",
    ),
    Contrast(
        name="tuned-copy",
        question="Is a personal adapter better than a tuned copy?",
        arm="dual+fedit",
        reference="finetune+fedit",
    ),
    Contrast(
        name="headroom",
        question="Would training on everybody's rows in one place add more?",
        arm="central",
        reference="fedit",
    ),
)


def find_sharing_arms(names: Iterable[str], own: Mapping[str, PlanSettings] | None = None) -> tuple[SharingArm, ...]:
    """Return the arms of these names, each once, in this order.

    Args:
        names: of arms.
        own: plans by names of one's own.

    Raises:
        ConfigError: no arm has such a name, or a plan of one's own has the name of another arm or one that no folder
            may have.
    """
    plans = own or {}
    for name in plans:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"the plan's name {name!r} is no name of a folder", "use letters, digits and any of +-_.")
    for name in plans.keys() & SHARING_ARMS.keys():
        raise ConfigError(f"the plan {name!r} has the name of an arm that there is", "give it another name")
    known = SHARING_ARMS | {name: SharingArm(name=name, title=name, plan=plan) for name, plan in plans.items()}
    return pick(names, known, known=f"{', '.join(EVERY_SHARING_ARM)}, WAY+RULE")
