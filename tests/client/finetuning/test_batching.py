import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.dialogue import Example
from client.finetuning.batching import (
    Batch,
    Row,
    epoch_batches,
    make_rows,
    micro_batches,
    pack,
    rounded,
    steps_per_epoch,
)
from florilegium.errors import InputError

ROWS = st.lists(st.tuples(st.integers(2, 9), st.integers(1, 8)), min_size=1, max_size=12).map(
    lambda shapes: [
        Row(f"{number:02d}", tuple(range(100 * number, 100 * number + length)), min(start, length - 1))
        for number, (length, start) in enumerate(shapes)
    ]
)


class Letters:
    """A tokenizer of one token a letter, then an end."""

    def example_ids(self, question: str, response: str) -> tuple[list[int], int]:
        return [ord(letter) for letter in question + response] + ([0] if response != "-" else []), len(question)


def letters(example_id: str, question: str = "ab", response: str = "cd") -> Example:
    return Example(question=question, response=response, source_id="s", example_id=example_id)


def test_rows_are_sorted_and_know_their_lengths() -> None:
    second, first = make_rows(Letters(), [letters("x"), letters("a", "abc", "d")])[::-1]
    assert (first.example_id, first.ids, first.start) == ("a", (97, 98, 99, 100, 0), 3)
    assert (first.length, first.scored) == (4, 2)
    assert second.example_id == "x"


def test_an_unsupervised_first_token_is_never_a_target() -> None:
    (row,) = make_rows(Letters(), [letters("a", question="", response="xy")])
    assert (row.start, row.scored) == (1, 2)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no example to train on"),
        ([letters("a"), letters("b"), letters("a")], "two examples share the identifier a"),
    ],
)
def test_useless_examples_are_refused(examples: list[Example], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_rows(Letters(), examples)


def test_an_example_without_supervision_is_refused_by_its_identifier_alone() -> None:
    class NoResponse:
        def example_ids(self, question: str, response: str) -> tuple[list[int], int]:
            return [1, 2], 2

    with pytest.raises(InputError, match=r"^example a has no supervised token; give it a response$"):
        make_rows(NoResponse(), [letters("a")])


@given(rows=ROWS, batch_size=st.integers(1, 5), epoch=st.integers(0, 3), data=st.data())
def test_an_epoch_visits_each_row_once_in_an_order_of_the_set_alone(
    rows: list[Row], batch_size: int, epoch: int, data: st.DataObject
) -> None:
    batches = epoch_batches(rows, seed=1, epoch=epoch, batch_size=batch_size)
    assert sorted(row.example_id for batch in batches for row in batch.rows) == [row.example_id for row in rows]
    sizes = [len(batch.rows) for batch in batches]
    assert len(batches) == steps_per_epoch(len(rows), batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    shuffled = data.draw(st.permutations(rows))
    assert epoch_batches(shuffled, seed=1, epoch=epoch, batch_size=batch_size) == batches


def test_orders_differ_between_epochs_and_seeds() -> None:
    rows = [Row(f"{number}", (1, 2), 1) for number in range(20)]
    orders = {
        tuple(row.example_id for row in epoch_batches(rows, seed=seed, epoch=epoch, batch_size=20)[0].rows)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_the_order_without_a_row_is_the_order_with_it_passed_over() -> None:
    rows = [Row(f"{number}", (1, 2), 1) for number in range(20)]
    (whole,) = epoch_batches(rows, seed=0, epoch=0, batch_size=20)
    (less,) = epoch_batches(rows[:7] + rows[8:], seed=0, epoch=0, batch_size=20)
    assert less.rows == tuple(row for row in whole.rows if row.example_id != "7")


@given(rows=ROWS, max_tokens=st.integers(1, 20), packing=st.booleans())
def test_micro_batches_keep_the_order_and_the_bound(rows: list[Row], max_tokens: int, packing: bool) -> None:
    runs = micro_batches(rows, max_tokens=max_tokens, packing=packing)
    assert [row for run in runs for row in run] == rows
    for run in runs:
        assert len(run) == 1 or (packing and sum(row.length for row in run) <= max_tokens)
    sizes = [sum(row.length for row in run) for run in runs]
    longest = max(row.length for row in rows)
    if packing and longest <= max_tokens:  # a run is closed early only near its fair share
        assert len(runs) <= 2 * -(-sum(sizes) // max_tokens)


@given(rows=ROWS)
def test_a_pack_lays_rows_end_to_end(rows: list[Row]) -> None:
    packed = pack(rows, torch.device("cpu"))
    start = 0
    for number, row in enumerate(rows):
        end = start + row.length
        assert packed.input_ids[0, start:end].tolist() == list(row.ids[:-1])
        assert packed.position_ids[0, start:end].tolist() == list(range(row.length))
        own = packed.owners == number
        assert packed.scored[own].tolist() == [start + k - 1 for k in range(row.start, len(row.ids))]
        assert packed.targets[own].tolist() == list(row.ids[row.start :])
        start = end
    assert packed.input_ids.shape == packed.position_ids.shape == (1, start)


@given(rows=ROWS)
def test_a_rounded_pack_ends_in_tokens_that_count_for_nothing(rows: list[Row]) -> None:
    plain, filled = (pack(rows, torch.device("cpu"), rounding=rounding) for rounding in (False, True))
    size = plain.input_ids.shape[1]
    assert filled.input_ids.shape[1] == rounded(size)
    assert torch.equal(filled.input_ids[:, :size], plain.input_ids)
    assert torch.equal(filled.scored, plain.scored)
    assert sum(filled.lengths) == rounded(size)
    assert len(filled.seeds(0, 0)) == len(filled.lengths)
    assert filled.seeds(0, 0)[: len(rows)] == plain.seeds(0, 0)


@given(tokens=st.integers(1, 10_000))
def test_rounding_up_costs_little_and_gives_few_sizes(tokens: int) -> None:
    assert tokens <= rounded(tokens) < tokens + max(32, tokens / 8 + 1)
    assert rounded(rounded(tokens)) == rounded(tokens)


def test_there_are_eight_sizes_between_a_power_of_two_and_the_next() -> None:
    assert sorted({rounded(tokens) for tokens in range(1, 257)}) == [32, 64, 96, 128, 160, 192, 224, 256]
    assert len({rounded(tokens) for tokens in range(1025, 2049)}) == 8


@given(rows=ROWS)
def test_token_weights_sum_to_one_and_give_each_its_share(rows: list[Row]) -> None:
    batch = Batch(0, tuple(rows))
    packed = pack(rows, torch.device("cpu"))
    by_example = packed.token_weights(batch, "example")
    for number in range(len(rows)):
        share = by_example[packed.owners == number]
        assert torch.allclose(share.sum(), torch.tensor(1.0 / len(rows)))
        assert bool((share == share[0]).all())
    by_token = packed.token_weights(batch, "token")
    assert torch.allclose(by_token, torch.tensor(1.0 / len(packed.scored)))
