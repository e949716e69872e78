"""Groups of masks that run together: on boxes of one size, small groups on larger boxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from convad_fx.compiler.lowering.cost_model import Sizes

#: Size of a box in image positions.
Size: TypeAlias = tuple[int, ...]
#: Costs of boxes of these sizes, as shares of a whole image, (K,).
Shares: TypeAlias = Callable[[Sizes], NDArray[np.float64]]

#: Different sizes before grouping, which compares all pairs of them.
MAX_SIZES = 64


def group_by_size(
    members: list[int], sizes: list[Size], shares: Shares, call_cost: float, unit: Size
) -> dict[Size, list[int]]:
    """Size of box -> the masks of `members` that run on it.

    Args:
        sizes: smallest box of every mask; multiples of ``unit``, as are the results.
        call_cost: of one call, in whole images.
    """
    limited = limit_sizes([sizes[k] for k in members], MAX_SIZES, unit)
    groups = merge_groups(limited, shares, call_cost)
    return {size: [members[i] for i in chosen] for size, chosen in groups.items()}


def merge_groups(sizes: list[Size], shares: Shares, call_cost: float) -> dict[Size, list[int]]:
    """Size of box -> the masks that run on it. Groups are merged where that saves time.

    A mask costs its box's share of an image, and a call ``call_cost`` images, whatever its size.

    >>> merge_groups([(2, 2), (9, 10), (10, 10)], lambda s: s.prod(1) / 100, call_cost=0.2)
    {(2, 2): [0], (10, 10): [1, 2]}
    """
    groups: dict[Size, list[int]] = defaultdict(list)
    for i, size in enumerate(sizes):
        groups[size].append(i)
    if len(groups) < 2:
        return dict(groups)
    members, box = list(groups.values()), np.array(list(groups))
    count, share = np.array([len(group) for group in members]), shares(box)
    largest = box.max(0, keepdims=True)
    if count @ (shares(largest) - share) <= call_cost:  # no second call could save as much
        return {tuple(largest[0].tolist()): list(range(len(sizes)))}
    first, second = np.triu_indices(len(box), 1)
    extra = np.full((len(box), len(box)), np.inf)  # cost of merging two groups, without the call
    both = shares(np.maximum(box[first], box[second]))
    extra[first, second] = count[first] * (both - share[first])
    extra[first, second] += count[second] * (both - share[second])
    extra = np.minimum(extra, extra.T)
    alive = np.ones(len(box), bool)
    while True:
        a, b = divmod(int(extra.argmin()), len(box))
        if extra[a, b] >= call_cost:
            break
        box[a], members[a] = np.maximum(box[a], box[b]), members[a] + members[b]
        share[a], count[a], alive[b] = shares(box[a : a + 1])[0], count[a] + count[b], False
        both = shares(np.maximum(box[a], box))
        row = count[a] * (both - share[a]) + count * (both - share)
        extra[a] = extra[:, a] = np.where(alive & (np.arange(len(box)) != a), row, np.inf)
        extra[b] = extra[:, b] = np.inf
    merged: dict[Size, list[int]] = defaultdict(list)
    for a in np.flatnonzero(alive).tolist():
        merged[tuple(box[a].tolist())] += members[a]
    return {size: sorted(group) for size, group in merged.items()}


def limit_sizes(sizes: list[Size], max_sizes: int, unit: Size) -> list[Size]:
    """Round sides up, never past the largest, until there are at most `max_sizes` sizes.

    >>> limit_sizes([(1, 3), (2, 3), (3, 3), (5, 3)], max_sizes=3, unit=(1, 3))
    [(2, 3), (2, 3), (4, 3), (5, 3)]
    """
    step = 1
    largest = tuple(map(max, *sizes)) if len(sizes) > 1 else sizes[0] if sizes else ()
    limited = sizes
    while len(set(limited)) > max_sizes:
        step *= 2
        limited = [
            tuple(
                min(-(-n // (step * u)) * step * u, most)
                for n, most, u in zip(size, largest, unit, strict=True)
            )
            for size in sizes
        ]
    return limited
