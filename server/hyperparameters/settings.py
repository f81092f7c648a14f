"""The settings of a tuner, as TOML files hold them: the name of a way, and a table of that way's options."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, create_model, model_validator

from florilegium.settings import Settings, one_of
from server.hyperparameters import TUNERS
from server.hyperparameters.tuner import Tuner

__all__ = ["TunerSettings"]


class TunerSettings(Settings):
    """How the hyperparameters of devices are chosen; see `server.hyperparameters`.

    Attributes:
        way: of choosing.
        options: of that way.
    """

    way: Annotated[str, one_of(TUNERS)] = "fixed"
    options: dict[str, object] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        self.tuner()
        return self

    def tuner(self) -> Tuner:
        """Return the tuner that these settings describe.

        Raises:
            ConfigError: an option is unknown or out of its range; the message names the nearest that is known.
        """
        form = create_model("TunerOptions", __base__=Settings, options=(TUNERS[self.way], ...))
        made: Tuner = dict(form.parse({"options": self.options}, source=f"tuner {self.way}"))["options"]
        return made
