from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from client.reading import Row, _batches, read

ROWS = (
    Row([1, 20, 21, 22, 23, 3, 50, 51, 5], 6, 9),
    Row([1, 40, 3, 41], 3, 4),
    Row([1, *range(60, 100), 3, 44, 45, 46, 5], 1, 46),
    Row([9, 8], 1, 2),
)


def test_surprisal_is_the_loss_that_transformers_computes(any_module: PreTrainedModel) -> None:
    for row, reading in zip(ROWS, read(any_module, ROWS), strict=True):
        labels = torch.tensor([row.ids])
        labels[0, : row.start] = -100
        labels[0, row.stop :] = -100
        with torch.inference_mode():
            loss = any_module(torch.tensor([row.ids]), labels=labels).loss
        assert len(reading.nats) == row.stop - row.start
        assert float(reading.nats.mean()) == pytest.approx(float(loss), rel=1e-4)
        assert reading.states is None


def test_states_do_not_depend_on_the_batch(any_module: PreTrainedModel) -> None:
    for row, reading in zip(ROWS, read(any_module, ROWS, with_states=True), strict=True):
        with torch.inference_mode():
            alone = any_module(torch.tensor([row.ids]), output_hidden_states=True).hidden_states[-1][0]
        assert reading.states is not None
        torch.testing.assert_close(reading.states, alone, atol=2e-4, rtol=1e-3)


def test_no_row_is_no_work(any_module: PreTrainedModel) -> None:
    assert read(any_module, []) == []


@given(st.lists(st.integers(2, 5000), max_size=80))
def test_batches_are_a_bounded_partition(lengths: list[int]) -> None:
    rows = [Row([0] * length, 1, length) for length in lengths]
    chosen = list(_batches(rows))
    assert sorted(at for part in chosen for at in part) == list(range(len(rows)))
    for part in chosen:
        assert len(part) == 1 or len(part) * max(lengths[at] for at in part) <= 4096


def test_few_logits_at_a_time_change_nothing(any_module: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(any_module, ROWS)
    monkeypatch.setattr("client.reading._LOGITS", 1)
    for one, other in zip(whole, read(any_module, ROWS), strict=True):
        torch.testing.assert_close(one.nats, other.nats, atol=1e-4, rtol=1e-4)
