"""The same for all."""

from __future__ import annotations

import pytest

from florilegium.errors import ConfigError
from server.hyperparameters.fixed import Fixed


def test_every_device_is_asked_for_the_same_in_every_round() -> None:
    fixed = Fixed(values={"steps": 4, "dropout": 0.1})
    drawn = [
        fixed.draw({}, server_round=server_round, device=device, seed=seed)
        for server_round in (1, 50)
        for device in (0, 7)
        for seed in (0, 1)
    ]
    assert drawn == [{"steps": 4, "dropout": 0.1}] * 8


def test_with_no_values_the_runs_settings_stand() -> None:
    assert Fixed().draw({}, server_round=1, device=0, seed=0) == {}


def test_what_cannot_be_asked_is_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match="did you mean 'dropout'"):
        Fixed(values={"drpout": 0.1})
    with pytest.raises(ConfigError, match="batch_size must be a whole number"):
        Fixed(values={"batch_size": 1.5})
