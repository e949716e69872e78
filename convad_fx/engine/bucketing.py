"""Which masks run together: those on boxes of one size, and small groups on larger boxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from convad_fx.compiler.lowering.cost_model import Sizes

#: Sizes of box among which groups are sought: pairs of them are compared.
GROUPS = 64
#: What boxes of these sizes cost, as shares of an image, (K,).
Shares = Callable[[Sizes], NDArray[np.float64]]


def grouped(
    members: list[int],
    sizes: list[tuple[int, ...]],
    shares: Shares,
    call: float,
    unit: tuple[int, ...],
) -> dict[tuple[int, ...], list[int]]:
    """Size of box -> those of these masks that run on it, of which `sizes` has the boxes of all.

    Sizes are multiples of ``unit``, and remain so.
    """
    found = merged(rounded([sizes[k] for k in members], GROUPS, unit), shares, call)
    return {size: [members[i] for i in chosen] for size, chosen in found.items()}


def merged(
    sizes: list[tuple[int, ...]], shares: Shares, call: float
) -> dict[tuple[int, ...], list[int]]:
    """Size of box -> the masks that run on it. Small groups go on larger boxes, if that is cheaper.

    A mask costs its box's share of an image, and a call ``call`` images, whatever its size.

    >>> merged([(2, 2), (9, 10), (10, 10)], lambda sizes: sizes.prod(1) / 100, call=0.2)
    {(2, 2): [0], (10, 10): [1, 2]}
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, size in enumerate(sizes):
        groups[size].append(i)
    if len(groups) < 2:
        return dict(groups)
    members, box = list(groups.values()), np.array(list(groups))
    count, share = np.array([len(some) for some in members]), shares(box)
    largest = box.max(0, keepdims=True)
    if count @ (shares(largest) - share) <= call:  # no second call could save as much
        return {tuple(largest[0].tolist()): list(range(len(sizes)))}
    first, second = np.triu_indices(len(box), 1)
    more = np.full((len(box), len(box)), np.inf)  # what a box that holds both costs more
    both = shares(np.maximum(box[first], box[second]))
    more[first, second] = count[first] * (both - share[first])
    more[first, second] += count[second] * (both - share[second])
    more = np.minimum(more, more.T)
    alive = np.ones(len(box), bool)
    while True:
        a, b = divmod(int(more.argmin()), len(box))
        if more[a, b] >= call:
            break
        box[a], members[a] = np.maximum(box[a], box[b]), members[a] + members[b]
        share[a], count[a], alive[b] = shares(box[a : a + 1])[0], count[a] + count[b], False
        both = shares(np.maximum(box[a], box))
        row = count[a] * (both - share[a]) + count * (both - share)
        more[a] = more[:, a] = np.where(alive & (np.arange(len(box)) != a), row, np.inf)
        more[b] = more[:, b] = np.inf
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for a in np.flatnonzero(alive).tolist():
        found[tuple(box[a].tolist())] += members[a]
    return {size: sorted(some) for size, some in found.items()}


def rounded(
    sizes: list[tuple[int, ...]], most: int, unit: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """At most so many sizes: of more, sides are rounded up, but never past the largest.

    >>> rounded([(1, 3), (2, 3), (3, 3), (5, 3)], most=3, unit=(1, 3))
    [(2, 3), (2, 3), (4, 3), (5, 3)]
    """
    step = 1
    largest = tuple(map(max, *sizes)) if len(sizes) > 1 else sizes[0] if sizes else ()
    found = sizes
    while len(set(found)) > most:
        step *= 2
        found = [
            tuple(
                min(-(-n // (step * u)) * step * u, m)
                for n, m, u in zip(size, largest, unit, strict=True)
            )
            for size in sizes
        ]
    return found
