import pytest

from training.splits import bucket, is_held_out, persona_user_split


def test_the_splits_never_move() -> None:
    # Literal values on purpose: a changed hash would train on what was held out.
    assert bucket("dolly", "what is a fjord?") == 46
    assert bucket("tinystories", "what is a fjord?") == 11
    assert persona_user_split(["I bake.", "I have a boat."]) == "train"
    assert persona_user_split(["I swim."]) == "evaluate"


def test_a_tenth_is_held_out_and_half_of_the_users_train() -> None:
    held_out = sum(is_held_out("dolly", str(row)) for row in range(4000)) / 4000
    train = sum(persona_user_split([f"I am {row}."]) == "train" for row in range(4000)) / 4000
    # Four standard deviations of a binomial share over 4,000 draws.
    assert held_out == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 4000) ** 0.5)
    assert train == pytest.approx(0.5, abs=4 * (0.25 / 4000) ** 0.5)


def test_a_user_is_the_set_of_their_sentences() -> None:
    assert persona_user_split(["b", "a", "b"]) == persona_user_split(["a", "b"])
