"""The evaluator: order, counting, duplicates, bounded batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maskers import Counting, share

from convad_fx.errors import ModelError
from convad_fx.explain import Evaluator
from convad_fx.explain.evaluator import images_per_call
from convad_fx.explain.responsibility import Box

IMAGE = torch.zeros(2, 6, 5)


def masks_of(numbers: list[int]) -> list[np.ndarray]:
    """Mask n keeps the first n pixels."""
    return [np.arange(30).reshape(6, 5) < n for n in numbers]


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 50))
def test_answers_come_in_order_and_duplicates_are_asked_once(
    numbers: list[int], batch_size: int
) -> None:
    masker = Counting(share(Box(0, 6, 0, 5)))
    evaluator = Evaluator(masker, IMAGE, batch_size=batch_size)
    scores = evaluator.scores(masks_of(numbers), 1)
    expected = [torch.tensor([4, 8 * n / 30, 0]).double().softmax(0)[1] for n in numbers]
    assert scores.confidence == pytest.approx(np.array(expected), abs=1e-6)
    assert scores.top.tolist() == [int(n > 15) for n in numbers]
    assert evaluator.evaluations == len(masker.masks) == len(set(numbers))
    assert all(n <= batch_size for n in masker.calls)
    # Only the last batch may be smaller: duplicates leave no holes.
    assert set(masker.calls[:-1]) <= {batch_size}


def test_batches_are_small_on_a_cpu_where_no_size_is_asked_for() -> None:
    masker = Counting(share(Box(0, 6, 0, 5)))
    Evaluator(masker, IMAGE).scores(masks_of(list(range(31))), 1)
    assert masker.calls == [16, 15]
    assert images_per_call("auto", torch.zeros(1, device="meta")) == 64
    assert images_per_call(5, IMAGE) == 5


def test_masks_stream() -> None:
    drawn: list[int] = []

    def stream() -> Iterator[np.ndarray]:
        for n in range(20):
            drawn.append(n)
            yield masks_of([n])[0]

    class Watching(Counting):
        def __call__(self, x, mask, /):
            assert len(drawn) <= 4 * (len(self.calls) + 1)
            return super().__call__(x, mask)

    Evaluator(Watching(share(Box(0, 6, 0, 5))), IMAGE, batch_size=4).scores(stream(), 1)
    assert len(drawn) == 20


def test_every_evaluation_is_counted_by_the_callback() -> None:
    counts: list[int] = []
    evaluator = Evaluator(
        Counting(share(Box(0, 6, 0, 5))), IMAGE, batch_size=3, on_evaluated=counts.append
    )
    evaluator.scores(masks_of([1, 2, 2, 3, 4]), 1)
    assert counts == [3, 1]
    assert evaluator.evaluations == 4


def test_overflow_under_a_mask_says_how_much_was_kept() -> None:
    def overflowing(x, mask, /):
        kept = mask.float().mean((1, 2, 3))
        return torch.stack([kept, 1 / (kept - 0.5)], 1)

    evaluator = Evaluator(overflowing, IMAGE)
    with pytest.raises(ModelError, match="not finite with 50% of the image kept"):
        evaluator.scores(masks_of([3, 15, 20]), 1)


def test_the_image_is_not_changed_and_needs_no_gradient() -> None:
    image = torch.rand(1, 2, 6, 5, requires_grad=True)
    evaluator = Evaluator(Counting(share(Box(0, 6, 0, 5))), image)
    assert not evaluator.logits(masks_of([1])).requires_grad
    assert evaluator.shape == (6, 5)
