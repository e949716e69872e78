"""Batch sizes, from times that the tests set."""

from __future__ import annotations

import itertools

import pytest

from convad_fx.engine.batch_size import BatchSize


@pytest.mark.parametrize(("call", "more", "best"), [
    (0.5, 0.0, 32),  # expensive calls: as long as five images
    (0.5, 0.01, 8),  # large batches are slower per image
    (0.0, 0.0, 32),  # all the same: the largest
    (0.0, 0.02, 4),
])  # fmt: skip
def test_the_fastest_batch_size_is_kept(call: float, more: float, best: int) -> None:
    size = BatchSize(max_images=64)
    tried, noise = [], itertools.cycle([1.0, 1.1, 0.9, 1.05, 0.95])
    while size.best is None:
        tried.append(size.for_boxes(1.0, 1000))
        for n in (tried[-1], 1.0):  # small calls determine the fixed cost, too
            size.record(n, (call + 0.1 * n + more * n * n) * next(noise))
        if len(tried) in (1, 6):
            size.record(2.0, 30.0)  # something was compiled
    assert sorted(tried) == [4] * 3 + [8] * 3 + [16] * 3 + [32] * 3
    assert size.for_boxes(1.0, 1000) == best
    assert size.for_boxes(0.25, 1000) == 4 * best
    assert size.call_cost == pytest.approx(10 * call, abs=1.0)
    assert BatchSize(max_images=64, fixed=5).for_boxes(0.25, 1000) == 5


def test_on_a_gpu_a_call_costs_as_much_as_many_images() -> None:
    size = BatchSize.on_gpu(max_images=512)
    assert size.call_cost == 64
    while size.best is None:
        for share, masks in ((1.0, 1000), (0.1, 90)):
            images = min(size.for_boxes(share, masks), masks) * share
            size.record(images, max(12.0, 0.1 * images))  # ms: as good as the same up to 120 images
    assert size.best == 256
    assert 64 < size.call_cost < 256
    assert BatchSize.on_gpu(max_images=20).for_boxes(1.0, 1000) == 20


@pytest.mark.parametrize(("more", "best"), [(0.0, 16), (0.1, 4)])
def test_small_groups_use_the_best_size_that_they_fill(more: float, best: int) -> None:
    size, asked = BatchSize(max_images=64), []
    for _ in range(20):  # groups of 20 masks; 23 images' worth would count for a batch of 32
        left = 20
        while left:
            n = min(size.for_boxes(1.0, left), left)
            asked.append(n)
            size.record(n, 0.5 + 0.1 * n + more * n * n)
            left -= n
    assert size.best is None
    assert {4, 8, 16} <= set(asked) <= {4, 8, 12, 16}
    assert size.for_boxes(1.0, 20) == best
    assert size.for_boxes(1.0, 1000) == 32  # not timed yet


def test_equal_calls_leave_the_default_call_cost() -> None:
    size = BatchSize(max_images=64)
    for noise in (1.0, 1.1, 0.9, 1.05, 0.95) * 4:
        size.record(8, 0.8 * noise)
    assert 0.1 < size.call_cost < 0.9
