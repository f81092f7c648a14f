"""The registry of arms and the questions that pairs of them answer."""

import pytest

from client.selection.policies import POLICIES
from client.synthesis import SYNTHESIZERS
from florilegium.errors import ConfigError
from simulation.arms import ARMS, CONTRASTS, DEFAULT_ARMS, Arm, find_arms


def test_every_policy_has_an_arm_with_and_one_without_synthesis() -> None:
    for policy in POLICIES:
        with_synthesis, without = ARMS[f"local-{policy}"], ARMS[f"local-{policy}-nosynth"]
        assert (with_synthesis.policy, without.policy) == (policy, policy)
        assert (with_synthesis.synthesizer, without.synthesizer) == ("questions", "none")


@pytest.mark.parametrize("arm", ARMS.values(), ids=list(ARMS))
def test_every_arm_names_parts_that_exist(arm: Arm) -> None:
    assert ARMS[arm.name] is arm
    assert arm.policy in POLICIES
    assert arm.synthesizer in SYNTHESIZERS


def test_only_the_upper_bound_is_outside_the_budget() -> None:
    assert [arm.name for arm in ARMS.values() if arm.learns and not arm.within_budget] == ["full-stream"]
    assert not ARMS["none"].learns


@pytest.mark.parametrize("contrast", CONTRASTS, ids=lambda contrast: contrast.name)
def test_every_question_is_answered_by_default(contrast: object) -> None:
    assert {contrast.arm, contrast.reference} <= set(DEFAULT_ARMS)  # type: ignore[attr-defined]


def test_questions_have_names_of_their_own() -> None:
    assert len({contrast.name for contrast in CONTRASTS}) == len(CONTRASTS)


def test_arms_are_found_in_the_order_asked_for_and_once() -> None:
    assert [arm.name for arm in find_arms(["retrieval", "none", "retrieval"])] == ["retrieval", "none"]


@pytest.mark.parametrize(("name", "hint"), [("local-improve", "'local-improved'"), ("xyz", "known arms: none")])
def test_an_unknown_arm_is_refused_by_name(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"arm '{name}' is unknown; .*{hint}"):
        find_arms(["none", name])
