"""Tuners as TOML files describe them."""

from __future__ import annotations

from pathlib import Path

import pytest

from florilegium.errors import ConfigError
from server.hyperparameters.fedex_hpo import FedExHPO
from server.hyperparameters.fixed import Fixed
from server.hyperparameters.schedule import Schedule
from server.hyperparameters.settings import TunerSettings

FEDEX = """
way = "fedex_hpo"
[options]
candidates = [{ learning_rate = 1e-3, steps = 8 }, { learning_rate = 4e-3, steps = 4 }]
schedule = "adaptive"
"""
SCHEDULE = """
way = "schedule"
[options]
curve = "step"
rounds = 12
every = 4
first = { learning_rate = 1e-2, steps = 4 }
last = { learning_rate = 1e-4 }
"""
PAIR = [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}]


def load(folder: Path, text: str) -> TunerSettings:
    path = folder / "tuner.toml"
    path.write_text(text, encoding="utf-8")
    return TunerSettings.load(path)


def test_a_file_describes_a_tuner(tmp_path: Path) -> None:
    pair = ({"learning_rate": 1e-3, "steps": 8.0}, {"learning_rate": 4e-3, "steps": 4.0})
    assert load(tmp_path, FEDEX).tuner() == FedExHPO(candidates=pair, schedule="adaptive")
    assert load(tmp_path, SCHEDULE).tuner() == Schedule(
        first={"learning_rate": 1e-2, "steps": 4}, last={"learning_rate": 1e-4}, curve="step", rounds=12, every=4
    )
    assert TunerSettings().tuner() == Fixed()


def test_settings_are_told_apart_by_what_they_write(tmp_path: Path) -> None:
    """A run's identity is made from this."""
    one = load(tmp_path, FEDEX)
    assert TunerSettings.model_validate_json(one.model_dump_json()) == one
    assert load(tmp_path, FEDEX.replace("4e-3", "5e-3")).model_dump_json() != one.model_dump_json()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"wya": "fixed"}, "unknown key 'wya'; did you mean 'way'"),
        ({"way": "fedex"}, "must be one of fedex_hpo, fixed, schedule"),
        ({"way": "fedex_hpo"}, "tuner fedex_hpo: options.candidates is missing; add it"),
        (
            {"way": "fedex_hpo", "options": {"candidates": PAIR, "exploraton": 0.2}},
            "unknown key 'options.exploraton'; did you mean 'exploration'",
        ),
        (
            {"way": "fedex_hpo", "options": {"candidates": [*PAIR, {"learning_rat": 0.1}]}},
            "no hyperparameter 'learning_rat'; did you mean 'learning_rate'",
        ),
        (
            {"way": "fedex_hpo", "options": {"candidates": [{"learning_rate": "much"}, *PAIR]}},
            "options.candidates.0.learning_rate = 'much' is refused",
        ),
        ({"way": "schedule", "options": {"first": {"steps": 8}, "curv": "step"}}, "did you mean 'curve'"),
        ({"way": "fixed", "options": {"values": {"stepz": 8}}}, "did you mean 'steps'"),
        ({"way": "fixed", "options": {"values": {"steps": 0}}}, "steps must be a whole number from 1 to 10000, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TunerSettings.parse(values)
