import math
from pathlib import Path

import pytest
from pydantic import Field

from florilegium.errors import ConfigError
from florilegium.settings import Settings
from strategies.settings import PlanSettings, PrivacySettings


class Inner(Settings):
    rank: int = Field(8, ge=1)


class Outer(Settings):
    bins: int = Field(128, ge=1)
    policy: str = "improved"
    adapter: Inner = Inner()
    second: Inner | None = None
    others: dict[str, Inner] = Field(default_factory=dict)


def test_values_are_parsed_with_nested_tables(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text("bins = 64\n[adapter]\nrank = 4\n", encoding="utf-8")
    assert Outer.load(path) == Outer(bins=64, adapter=Inner(rank=4))


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^settings: unknown key 'polcy'; did you mean 'policy'\?$"):
        Outer.parse({"polcy": "paper"})
    with pytest.raises(ConfigError, match=r"unknown key 'adapter\.rnk'; did you mean 'rank'"):
        Outer.parse({"adapter": {"rnk": 2}})


@pytest.mark.parametrize("values", [{"second": {"rnk": 1}}, {"others": {"a": {"rnk": 1}}}])
def test_unknown_key_of_an_optional_table_names_the_nearest(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"\.rnk'; did you mean 'rank'"):
        Outer.parse(values)


def test_unknown_key_with_no_neighbour_lists_what_is_known() -> None:
    with pytest.raises(ConfigError, match="known keys: adapter, bins, others, policy, second"):
        Outer.parse({"zzzzzz": 1})


def test_value_out_of_range_names_value_and_rule() -> None:
    with pytest.raises(ConfigError, match=r"bins = 0 is refused: input should be greater than or equal to 1"):
        Outer.parse({"bins": 0})


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"bins.*; .*adapter\.rank"):
        Outer.parse({"bins": 0, "adapter": {"rank": 0}})


@pytest.mark.parametrize("content", [b"bins = = 3", b"\xff\xfe", b"[adapter"])
def test_broken_toml_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Outer.load(path)
    assert "\n" not in str(caught.value)
    assert "broken.toml" in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml cannot be read"):
        Outer.load(tmp_path / "absent.toml")


def test_an_infinity_that_is_accepted_can_be_read_where_it_is_sent_to() -> None:
    sent = PlanSettings(privacy=PrivacySettings(clip_norm=math.inf, noise_multiplier=0.0, max_rounds=3))
    assert PlanSettings.from_json(sent.model_dump_json()) == sent
