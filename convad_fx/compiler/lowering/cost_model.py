"""Multiplications of a network, as a function of the size of a box."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Sizes of boxes in image positions, (K, axes).
Sizes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class OpCost:
    """Multiplications of operations on boxes.

    Attributes:
        each: multiplications for one cell.
        strides: image positions per cell.
        reach: cells beyond the box, before and after, for each axis together.
    """

    each: float
    strides: tuple[int, ...]
    reach: tuple[int, ...]

    def of(self, sizes: Sizes) -> NDArray[np.float64]:
        """Multiplications for boxes of these sizes, (K,).

        >>> OpCost(10.0, (2, 2), (0, 1)).of(np.array([(5, 8)]))  # 3 x 5 cells
        array([150.])
        """
        cells = -(-sizes // np.array(self.strides)) + np.array(self.reach)
        result: NDArray[np.float64] = self.each * cells.prod(1)
        return result


@dataclass(frozen=True, slots=True)
class CostModel:
    """Multiplications per mask; by default, all on whole images.

    Attributes:
        costs: of the operations on boxes.
        rest: multiplications of the others.
        total: multiplications of the whole network on a whole image.
    """

    costs: tuple[OpCost, ...] = ()
    rest: float = 1.0
    total: float = 1.0

    @classmethod
    def of(cls, operations: Iterable[tuple[float, OpCost | None]]) -> CostModel:
        """From each operation's multiplications on a whole image, and its cost on a box if any."""
        alike: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = defaultdict(float)
        rest = total = 0.0
        for work, cost in operations:
            total += work
            if cost is None:
                rest += work
            else:
                alike[cost.strides, cost.reach] += cost.each
        return cls(tuple(OpCost(each, *key) for key, each in alike.items()), rest, total)

    @property
    def on_boxes(self) -> float:
        """The share of the operations on boxes."""
        return 1 - self.rest / self.total if self.total else 0.0

    def multiplied(self, sizes: Sizes) -> NDArray[np.float64]:
        """Multiplications for boxes of these sizes, (K,)."""
        total = np.full(len(sizes), self.rest)
        for cost in self.costs:
            total += cost.of(sizes)
        return total

    def shares(self, sizes: Sizes) -> NDArray[np.float64]:
        """Multiplications for boxes of these sizes, as shares of a whole image, (K,); at most 1."""
        return np.minimum(1.0, self.multiplied(sizes) / self.total)

    def share(self, size: tuple[int, ...]) -> float:
        """The same for one box."""
        return float(self.shares(np.array([size]))[0])
