"""The settings of a plan, as TOML files and messages hold them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Literal, Self

from pydantic import Field

from florilegium.errors import ConfigError
from florilegium.settings import Settings, build, one_of
from privacy.device_level import DeviceLevel
from strategies.codecs import CODECS
from strategies.optimizers import SERVER_OPTIMIZERS
from strategies.personal import PERSONAL_WAYS, Personal
from strategies.plan import Plan
from strategies.robust import ROBUST_RULES
from strategies.rules import RULES

__all__ = ["PlanSettings", "PrivacySettings"]

Options = dict[str, float | int | str | bool | None]


class PrivacySettings(Settings):
    """Device-level differential privacy; see `privacy.device_level`.

    Attributes:
        clip_norm: C.
        noise_multiplier: z.
        delta: δ.
        placement: who adds the noise.
        max_rounds: k, the most releases of one device: a round is one, two where the rule asks twice, and one more
            where a tuner hears of an improvement.
    """

    clip_norm: float
    noise_multiplier: float
    delta: float = 1e-5
    placement: Literal["central", "local"] = "central"
    max_rounds: int = Field(ge=1)


class PlanSettings(Settings):
    """How the fleet shares; see `strategies.plan`.

    Attributes:
        rule: of sharing, or "none".
        rule_options: of the rule.
        personal: what a device does for itself, or "none".
        personal_options: of that.
        optimizer: of the server.
        optimizer_options: of the optimizer.
        robust: a robust rule, or "none".
        robust_options: of that.
        codec: of the way up.
        codec_options: of the codec.
        privacy: device-level privacy, if wanted.
        secure_aggregation: whether the server may see nothing but sums; not available yet, and refused by servers.
        proximal: μ of FedProx.
        weighting: of the devices.
    """

    rule: Annotated[str, one_of([*RULES, "none"])] = "fedit"
    rule_options: Options = Field(default_factory=dict)
    personal: Annotated[str, one_of([*PERSONAL_WAYS, "none"])] = "none"
    personal_options: Options = Field(default_factory=dict)
    optimizer: Annotated[str, one_of(SERVER_OPTIMIZERS)] = "average"
    optimizer_options: Options = Field(default_factory=dict)
    robust: Annotated[str, one_of([*ROBUST_RULES, "none"])] = "none"
    robust_options: Options = Field(default_factory=dict)
    codec: Annotated[str, one_of(CODECS)] = "identity"
    codec_options: Options = Field(default_factory=dict)
    privacy: PrivacySettings | None = None
    secure_aggregation: bool = False
    proximal: float = Field(0.0, ge=0.0)
    weighting: Literal["uniform", "rows"] = "uniform"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the settings that a message holds.

        Raises:
            ConfigError: it is no JSON object, or not of such settings.
        """
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ConfigError("the message's plan is no JSON object", "use a server of this version")
        return cls.parse(values, source="message")

    def plan(self, *, seed: int, cohort: int) -> Plan:
        """Return the plan that these settings describe.

        Raises:
            ConfigError: an option is unknown or out of its range, or the parts do not go together.
        """
        rule = personal = robust = privacy = None
        if self.rule != "none":
            rule = build(RULES[self.rule], self.rule_options, source=self.rule)
        if self.personal != "none":
            way = asdict(PERSONAL_WAYS[self.personal])
            personal = build(Personal, way | self.personal_options, source=self.personal)
        if self.robust != "none":
            robust = build(ROBUST_RULES[self.robust], self.robust_options, source=self.robust)
        if self.privacy is not None:
            privacy = DeviceLevel(**self.privacy.model_dump(), cohort=cohort)
        return Plan(
            rule=rule,
            personal=personal,
            optimizer=build(SERVER_OPTIMIZERS[self.optimizer], self.optimizer_options, source=self.optimizer),
            robust=robust,
            codec=build(CODECS[self.codec], self.codec_options, source=self.codec),
            privacy=privacy,
            secure_aggregation=self.secure_aggregation,
            proximal=self.proximal,
            weighting=self.weighting,
            seed=seed,
        )
