"""Which masks run on boxes of one size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convad_fx.engine.bucketing import MAX_SIZES, limit_sizes, merge_groups


def by_area(sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shares of an image of 10 x 10."""
    return sizes.prod(1) / 100


def test_expensive_calls_merge_all_groups() -> None:
    sizes = [(n, 11 - n) for n in range(1, 11)] * 3

    saved = float((1 - by_area(np.array(sizes))).sum())
    assert merge_groups(sizes, by_area, call_cost=saved + 1e-6) == {(10, 10): list(range(30))}
    assert len(merge_groups(sizes, by_area, call_cost=0.4 * saved)) > 1


def test_small_groups_are_merged_into_larger_boxes() -> None:
    alone = merge_groups([(4, 5)] + [(5, 5)] * 9, by_area, call_cost=0.1)
    assert alone == {(5, 5): list(range(10))}
    assert len(merge_groups([(2, 2)] * 9 + [(9, 9)] * 9, by_area, call_cost=0.1)) == 2
    every = [(i, j) for i in range(1, 29) for j in range(1, 29)]
    groups = merge_groups(limit_sizes(every, MAX_SIZES, (1, 1)), by_area, call_cost=0)
    assert len(groups) <= MAX_SIZES
    assert sorted(i for members in groups.values() for i in members) == list(range(784))
    for size, members in groups.items():
        assert max(size) <= 28
        assert all(every[i][axis] <= size[axis] for i in members for axis in (0, 1))
