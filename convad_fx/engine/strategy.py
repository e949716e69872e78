"""The protocol of execution strategies, which evaluate masks with less work.

A strategy is made for one chunk of masks. `whole`, `box`, `patch` and `tile` implement it. A new
one has its graphs in `compiler.lowering.strategies`, is chosen in `choose`, and has its batch size
in `Engine._batch_sizes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from convad_fx.compiler.lowering.cost_model import CostModel
from convad_fx.engine.batch_size import BatchSize
from convad_fx.engine.bucketing import Size, group_by_size
from convad_fx.engine.chunk import Chunk

#: Emitted code, by the names of `Strategies.graphs`.
Parts: TypeAlias = Mapping[str, Callable[..., Any]]


class Strategy(Protocol):
    """A way to evaluate the masks of a chunk. Masks are numbered by their rows in the chunk.

    Answers need no putting back: row i of what is called is the answer to the i-th mask.

    Attributes:
        name: by which its code is timed.
        batch: how many masks run at once.
        costs: arithmetic for each mask of the chunk, in whole images.
    """

    name: str
    chunk: Chunk
    batch: BatchSize
    costs: list[float]

    def groups(self, members: list[int]) -> dict[Size, list[int]]:
        """Size, in image positions -> the masks that run together at this size."""

    def share(self, size: Size) -> float:
        """Arithmetic for a mask of a group, in whole images; positive."""

    def key(self, size: Size) -> tuple[Any, ...]:
        """The strategy and the size in tiles; compared with float32 once."""

    def call(self, size: Size, members: list[int]) -> tuple[Any, ...]:
        """What to call for masks of the group of this size, and its arguments, first a tensor."""


class SizedStrategy:
    """Groups masks by the size of their boxes; a base for strategies on boxes.

    Attributes:
        sizes: of each mask's box, in image positions; multiples of `unit`.
        cost_model: arithmetic on a box of any size.
    """

    name: str
    batch: BatchSize
    sizes: list[Size]
    cost_model: CostModel
    unit: Size
    tile: Size

    def groups(self, members: list[int]) -> dict[Size, list[int]]:
        """Size of box -> the masks that run on it; merged where that saves calls."""
        shares, call_cost = self.cost_model.shares, self.batch.call_cost
        return group_by_size(members, self.sizes, shares, call_cost, self.unit)

    def share(self, size: Size) -> float:
        """Arithmetic for a box, in whole images."""
        return self.cost_model.share(size)

    def key(self, size: Size) -> tuple[Any, ...]:
        """The strategy and the tiles of a box, of which the last may be cut off."""
        return self.name, *(-(-n // tile) for n, tile in zip(size, self.tile, strict=True))


@dataclass(frozen=True, slots=True)
class Group:
    """Masks that run together by one strategy at one size."""

    strategy: Strategy
    size: Size
    members: list[int]


def groups_of(strategy: Strategy, members: list[int]) -> Iterator[Group]:
    """The groups of these masks."""
    for size, group in strategy.groups(members).items():
        yield Group(strategy, size, group)
