"""Identical masks, and masks that keep nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convad_fx.engine.collect import Answers
from convad_fx.engine.dedup import EmptyMaskCache, UniqueMasks
from convad_fx.errors import MaskError


def numbered(*kept: int) -> Tensor:
    """Masks that keep the first so many of four pixels."""
    return torch.tensor([[[[i < n for i in range(4)]]] for n in kept])


def test_only_masks_that_are_new_are_evaluated() -> None:
    unique = UniqueMasks(torch.zeros(1, 3, 1, 4))
    first = unique.new(numbered(1, 2, 1))
    second = unique.new(numbered(2, 3, 3))
    assert (first.numbers, second.numbers) == ([0, 1], [2])
    assert torch.equal(second.masks, numbered(3))
    assert unique.rows == [0, 1, 0, 1, 2, 2]


def test_the_same_mask_on_other_images_is_another() -> None:
    x = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 1, 4)
    unique = UniqueMasks(x)
    assert unique.new(numbered(1, 1, 2)).numbers == [0, 1, 2]
    with pytest.raises(MaskError, match="3 masks for 3 images"):
        unique.new(numbered(1, 1, 2))  # a second chunk
    with pytest.raises(MaskError, match="2 masks for 3 images"):
        UniqueMasks(x).new(numbered(1, 1))


def test_one_empty_mask_is_evaluated_until_weights_change() -> None:
    network, cache = nn.Linear(2, 2), EmptyMaskCache()
    x = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 1, 4)
    chunk = UniqueMasks(x).new(numbered(0, 2, 0))
    rest, empty = cache.split(chunk, "key", network)
    assert (rest.numbers, empty) == ([0, 1], [0, 2])
    assert rest.x[:, 0, 0, 0].tolist() == [0, 1]
    cache.answers["key"] = torch.zeros(1, 2)
    assert cache.split(chunk, "key", network)[0].numbers == [1]
    assert cache.split(chunk, "other", network)[0].numbers == [0, 1]
    with torch.no_grad():
        network.weight.mul_(2)
    assert cache.split(chunk, "key", network)[0].numbers == [0, 1]
    full = UniqueMasks(x[:1]).new(numbered(1, 2))
    assert cache.split(full, "key", network) == (full, [])


def test_answers_are_put_back_in_order() -> None:
    answers = Answers()
    answers.add(torch.tensor([[3.0], [0.0]]), [3, 0])
    answers.add(torch.tensor([[2.0], [1.0]]), [2, 1])
    assert answers.rows([0, 1, 2, 3, 1]).flatten().tolist() == [0, 1, 2, 3, 1]
    assert [answers.of(number).item() for number in range(4)] == [0, 1, 2, 3]
