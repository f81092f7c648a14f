from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from client.generation import Generated, Request, _batches, generate

END = frozenset({5})
PROMPTS = ([1, 20, 21, 22, 23, 3], [1, 40, 3], [1, *range(60, 84), 3], [7], [1, 40, 3], [1, 90, 91, 92, 93, 94, 95, 3])


def requests(
    prompts: Sequence[list[int]] = PROMPTS, limit: int = 12, seeds: Sequence[int] | None = None
) -> list[Request]:
    given_seeds = seeds or range(len(prompts))
    return [Request(ids, limit + at % 3, seed) for at, (ids, seed) in enumerate(zip(prompts, given_seeds, strict=True))]


def naive(module: PreTrainedModel, request: Request, stops: frozenset[int], temperature: float = 0.0) -> list[int]:
    """Read the whole text again for every token: no cache, no batch, no padding."""
    ids = list(request.ids)
    draws = torch.rand(request.limit, generator=torch.Generator().manual_seed(request.seed))
    for draw in draws.tolist():
        with torch.inference_mode():
            logits = module(torch.tensor([ids])).logits[0, -1]
        if temperature == 0.0:
            token = int(logits.argmax())
        else:
            shares = torch.softmax(logits.double() / temperature, dim=0)
            token = next(at for at, below in enumerate(shares.cumsum(dim=0).tolist()) if below > draw)
        if token in stops:
            break
        ids.append(token)
    return ids[len(request.ids) :]


def texts(generated: Sequence[Generated]) -> list[list[int]]:
    return [one.ids for one in generated]


def common_tokens(module: PreTrainedModel) -> frozenset[int]:
    """Return tokens that some rows generate, at different steps, so that rows end one after the other."""
    whole = [naive(module, request, END) for request in requests()]
    return END | {row[min(3 * at, len(row) - 1)] for at, row in enumerate(whole) if row and at % 2}


def test_greedy_batches_equal_a_cache_free_loop(any_module: PreTrainedModel) -> None:
    expected = [naive(any_module, request, END) for request in requests()]
    assert texts(generate(any_module, requests(), stop_ids=END)) == expected
    assert max(map(len, expected)) > 8


def test_rows_that_end_early_leave_the_others_alone(any_module: PreTrainedModel) -> None:
    stops = common_tokens(any_module)
    expected = [naive(any_module, request, stops) for request in requests()]
    assert texts(generate(any_module, requests(), stop_ids=stops)) == expected
    assert texts(generate(any_module, requests(), stop_ids=stops, with_states=True)) == expected
    assert len({len(row) for row in expected}) > 2


def test_sampling_follows_the_seed_alone_or_in_a_batch(any_module: PreTrainedModel) -> None:
    together = texts(generate(any_module, requests(), stop_ids=END, temperature=0.7))
    assert texts(generate(any_module, requests(), stop_ids=END, temperature=0.7)) == together
    for request, row in zip(requests(), together, strict=True):
        assert texts(generate(any_module, [request], stop_ids=END, temperature=0.7)) == [row]
        assert naive(any_module, request, END, 0.7) == row


def test_samples_of_one_prompt_share_its_reading(random_module: Callable[[str], PreTrainedModel]) -> None:
    module = random_module("llama")
    widths: list[tuple[int, ...]] = []
    module.register_forward_pre_hook(
        lambda _module, _args, named: widths.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    rows = texts(generate(module, requests([PROMPTS[2]] * 6), stop_ids=frozenset({399}), temperature=1.0))
    assert widths[0] == (1, len(PROMPTS[2]))
    assert widths[1] == (6, 1)
    assert len({tuple(row) for row in rows}) == 6


def test_finished_rows_leave_the_batch(random_module: Callable[[str], PreTrainedModel]) -> None:
    module = random_module("llama")
    widths: list[int] = []
    module.register_forward_pre_hook(
        lambda _module, _args, named: widths.append(len(named["input_ids"])), with_kwargs=True
    )
    batch = [Request(ids, limit) for ids, limit in zip(PROMPTS[:4], (2, 9, 4, 2), strict=True)]
    generate(module, batch, stop_ids=frozenset({10**6}))
    assert widths == [4, 4, 2, 2, 1, 1, 1, 1, 1]


def test_draws_follow_the_distribution(random_module: Callable[[str], PreTrainedModel]) -> None:
    """Shares of one drawn token lie within 4.5 standard deviations, sqrt(p(1-p)/n), of its softmax probability."""
    module, count, temperature = random_module("llama"), 4000, 1.5
    with torch.inference_mode():
        expected = torch.softmax(module(torch.tensor([PROMPTS[0]])).logits[0, -1] / temperature, dim=0)
    batch = [Request(PROMPTS[0], 1, seed) for seed in range(count)]
    drawn = [row[0] for row in texts(generate(module, batch, stop_ids=frozenset({10**6}), temperature=temperature))]
    shares = torch.bincount(torch.tensor(drawn), minlength=len(expected)) / count
    deviations = (shares - expected).abs() / (expected * (1 - expected) / count).sqrt()
    likely = expected > 20 / count
    assert likely.sum() > 5
    assert float(deviations[likely].max()) < 4.5


def full_states(module: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    with torch.inference_mode():
        states: Tensor = module(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    return states


@pytest.mark.parametrize("stops", [END, None])
def test_states_are_those_of_one_whole_pass(any_module: PreTrainedModel, stops: frozenset[int] | None) -> None:
    chosen = stops or common_tokens(any_module)
    for request, row in zip(
        requests(), generate(any_module, requests(), stop_ids=chosen, with_states=True), strict=True
    ):
        assert row.prompt_states is not None
        assert row.states is not None
        states = full_states(any_module, [*request.ids, *row.ids])
        size = len(request.ids)
        torch.testing.assert_close(row.prompt_states, states[:size], atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(row.states, states[size:], atol=2e-4, rtol=1e-3)


def test_an_answer_has_at_most_its_limit_of_tokens(random_module: Callable[[str], PreTrainedModel]) -> None:
    rows = texts(generate(random_module("llama"), requests(limit=1), stop_ids=frozenset({10**6})))
    assert [len(row) for row in rows] == [1, 2, 3, 1, 2, 3]


def test_no_request_is_no_work(random_module: Callable[[str], PreTrainedModel]) -> None:
    assert generate(random_module("llama"), [], stop_ids=END) == []


def test_absolute_positions_may_reach_the_end_of_the_context(random_module: Callable[[str], PreTrainedModel]) -> None:
    """The long row fills all 256 positions; the short one, padded to its length, must not run past them."""
    long, short = [30 + at % 50 for at in range(250)], [30, 31]
    batch = [Request(long, 6), Request(short, 6)]
    module = random_module("gpt2")
    rows = texts(generate(module, batch, stop_ids=frozenset({10**6}), with_states=True))
    assert rows == [naive(module, request, frozenset()) for request in batch]


def test_a_finished_row_does_not_run_past_the_last_position(random_module: Callable[[str], PreTrainedModel]) -> None:
    """The long row ends at position 256, while the short ones beside it go on for many more tokens."""
    batch = [Request([30 + at % 50 for at in range(250)], 6), Request([30, 31], 40), Request([32, 33], 40)]
    module = random_module("gpt2")
    rows = texts(generate(module, batch, stop_ids=frozenset({10**6})))
    assert rows == [naive(module, request, frozenset()) for request in batch]


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), max_size=150))
def test_batches_are_a_bounded_partition(sizes: list[tuple[int, int]]) -> None:
    batch = [Request([0] * length, limit) for length, limit in sizes]
    chosen = list(_batches(batch))
    assert sorted(at for part in chosen for at in part) == list(range(len(batch)))
    for part in chosen:
        longest = max(len(batch[at].ids) + batch[at].limit for at in part)
        assert len(part) == 1 or (len(part) <= 64 and len(part) * longest <= 16_384)


def test_a_number_at_either_end_draws_a_possible_token() -> None:
    from client.generation import _draw

    logits = torch.tensor([[-math.inf, 0.0, -math.inf], [-math.inf, 0.0, -math.inf]])
    assert _draw(logits, torch.tensor([0.0, 1.0 - 2**-24]), 1.0).tolist() == [1, 1]
