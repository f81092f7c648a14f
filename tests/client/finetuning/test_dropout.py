import pytest
import torch

from client.finetuning.dropout import DropoutSource


def mask(source: DropoutSource, seeds: list[int], lengths: list[int], layer: int = 0, width: int = 12) -> torch.Tensor:
    source.begin(seeds, lengths)
    return source.mask(width, layer)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_the_share_dropped_is_the_rate(rate: float) -> None:
    source = DropoutSource(rate)
    kept = mask(source, [1, 2], [300, 200], width=800).float()  # 400 000 draws: 6 σ < 0.005
    assert kept.mean().item() == pytest.approx(1 - rate, abs=0.005)
    assert source.keep == pytest.approx(1 - rate, abs=1e-5)
    for part in (kept[:, ::4], kept[:, 3::4], kept[:300], kept[300:]):  # each 16-bit lane, each row
        assert part.mean().item() == pytest.approx(1 - rate, abs=0.01)


def test_a_row_keeps_its_mask_in_any_company() -> None:
    source = DropoutSource(0.3)
    alone = mask(source, [7], [5])
    together = mask(source, [3, 7, 9], [4, 5, 6])
    assert torch.equal(together[4:9], alone)


def test_masks_differ_between_seeds_and_layers() -> None:
    source = DropoutSource(0.5)
    masks = [mask(source, [seed], [20], layer) for seed in (1, 2, 2**62) for layer in (0, 1)]
    assert len({tuple(item.flatten().tolist()) for item in masks}) == 6


def test_layers_that_read_one_tensor_share_a_mask() -> None:
    source = DropoutSource(0.5)
    source.begin([1], [20])
    x = torch.ones(20, 12)
    first, kept = source.drop(x.detach(), 0)
    assert source.drop(x.detach(), 1)[0] is first
    assert torch.equal(first, x * kept)
    assert not torch.equal(source.drop(x.clone(), 1)[0], first)


def test_without_seeds_or_without_a_rate_nothing_is_dropped() -> None:
    source = DropoutSource(0.5)
    assert not source.is_active
    source.begin([1], [4])
    assert source.is_active
    source.begin((), ())
    assert not source.is_active
    never = DropoutSource(0.0)
    never.begin([1], [4])
    assert not never.is_active
    assert never.keep == 1.0


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    mask(DropoutSource(0.5), [1], [4])
    assert torch.equal(torch.get_rng_state(), before)
