"""Hashes of masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from convad_fx.engine.mask_hash import mask_hashes


@pytest.mark.parametrize("cells", [1, 8, 63, 64, 65, 200])
def test_one_cell_changes_the_hash(cells: int) -> None:
    masks = torch.zeros(cells + 1, 1, cells, dtype=torch.bool)
    masks[torch.arange(cells), 0, torch.arange(cells)] = True
    assert len(set(mask_hashes(masks))) == cells + 1
    assert len(set(mask_hashes(~masks))) == cells + 1


def test_equal_masks_have_equal_hashes() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(140, 1, 30, 31, generator=generator) < 0.5
    order = torch.randint(140, (200,), generator=generator)
    found = mask_hashes(masks[order])
    assert found == [mask_hashes(masks)[i] for i in order]
    assert len(set(found)) == len(order.unique())


def test_any_byte_but_zero_is_true() -> None:
    numbers = torch.tensor([[0, 255, 2, 0], [0, 1, 1, 0], [0, 1, 2, 255]], dtype=torch.uint8)
    a, b, c = mask_hashes(numbers.view(torch.bool))
    assert a == b != c


def test_views_are_hashed_by_their_values() -> None:
    masks = torch.rand(3, 1, 16, 20) < 0.5
    assert mask_hashes(masks.mT) == mask_hashes(masks.mT.contiguous())
    assert len(set(mask_hashes(masks[:1].expand(4, 1, 16, 20)))) == 1
    assert mask_hashes(masks[:, :, :, ::2]) == mask_hashes(masks[:, :, :, ::2].contiguous())


@pytest.mark.parametrize(
    "view",
    [
        lambda line: line[1:129].view(2, 1, 8, 8),  # not aligned to eight bytes
        lambda line: line[1:257:2].view(2, 1, 1, 64),  # every other byte
        lambda line: line[:128].view(1, 8, 8, 2).permute(3, 0, 1, 2),  # batch innermost
        lambda line: line[:64].view(1, 1, 8, 8).expand(2, 1, 8, 8),  # the same memory twice
    ],
)
def test_any_memory_layout_is_hashed(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    masks = view(torch.rand(300, generator=torch.Generator().manual_seed(0)) < 0.5)
    assert masks.shape[0] == 2
    fresh = torch.stack([mask.clone(memory_format=torch.contiguous_format) for mask in masks])
    assert mask_hashes(masks) == mask_hashes(fresh)
