"""Masks that hide little, on the patches that what they hide can change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convad_fx.compiler.lowering.box import GridMap
from convad_fx.compiler.lowering.patch import PatchPlan
from convad_fx.engine.batch_size import MIN_ROWS, BatchSize
from convad_fx.engine.box import active_spans
from convad_fx.engine.bucketing import Size, group_by_size
from convad_fx.engine.chunk import Chunk, mark_dynamic, rows_of
from convad_fx.engine.strategy import Parts, in_tiles

#: Time per multiplication on patches, which are copied, relative to whole grids.
PATCH_OVERHEAD = 1.2


class PatchStrategy:
    """Recomputes what masks of one image change, for those of which that is less work.

    Args:
        otherwise: cost of each mask by other strategies, in whole images.
        call_cost: fixed cost of a call, in whole images.

    Attributes:
        members: the masks that run on patches, by row; none if they save too little in all.
        costs: of each mask, on patches if it is a member.
    """

    name = "patch"

    def __init__(
        self,
        plan: PatchPlan,
        parts: Parts,
        chunk: Chunk,
        batch: BatchSize,
        otherwise: list[float],
        call_cost: float,
    ) -> None:
        self.plan, self.parts, self.chunk, self.batch = plan, parts, chunk, batch
        self.costs, self.members, self.sizes = otherwise, set[int](), list[Size]()
        if "patch" not in parts or len(chunk.x) > 1:
            return
        self.tile = torch.tensor(plan.tile)
        self.tiles = -(-torch.tensor(plan.image_size) // self.tile)
        self.starts, sizes = self._hidden_boxes(~chunk.masks)
        self.sizes = [tuple(row) for row in (sizes * self.tile).tolist()]
        shares = plan.work.shares(np.array(self.sizes)).tolist()
        gains = [o - PATCH_OVERHEAD * s for o, s in zip(otherwise, shares, strict=True)]
        gains = [max(gain, 0.0) for gain in gains]
        # the network has to run once without a mask; two calls of its own
        if sum(gains) > 1 + 2 * call_cost:
            self.members = {k for k, gain in enumerate(gains) if gain > 0}
            self.costs = [o - gain for o, gain in zip(otherwise, gains, strict=True)]

    def _hidden_boxes(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Starts and sizes, in tiles, of boxes around what is hidden, (K, axes) each."""
        axes = hidden.dim() - 2
        grid = GridMap(tuple(range(2, hidden.dim())), (1,) * axes, ((0, 0),) * axes)
        low, high = torch.zeros(2, len(hidden), axes, dtype=torch.long)
        for axis, first, end in active_spans(hidden, grid):
            low[:, axis], high[:, axis] = first, end
        low = torch.minimum(low // self.tile, self.tiles - 1)  # where nothing is hidden: any tile
        sizes = (-(-high // self.tile) - low).clamp(min=MIN_ROWS)
        return low, torch.minimum(sizes, self.tiles)

    def prepare(self, without: Iterable[int]) -> None:
        """Run the network without a mask, for all members but those that others evaluate."""
        self.members.difference_update(without)
        if self.members:
            self.base = self.parts["patch_base"](self.chunk.x, None)
            self.activities = self.parts["patch_activities"](self.chunk.x, self.chunk.masks)

    def groups(self, members: list[int]) -> dict[Size, list[int]]:
        """Size of hidden box -> the masks that run on its patches."""
        shares = self.plan.work.shares
        return group_by_size(members, self.sizes, shares, self.batch.call_cost, self.plan.tile)

    def share(self, size: Size) -> float:
        """Arithmetic on patches, without copying."""
        return self.plan.work.share(size)

    def key(self, size: Size) -> tuple[Any, ...]:
        """Tiles of a hidden box."""
        return self.name, *in_tiles(size, self.plan.tile)

    def call(self, size: Size, members: list[int]) -> tuple[Any, ...]:
        """Code for patches, the image, positions (N, tiles, positions of a tile), activities."""
        last = self.tiles - torch.tensor(size) // self.tile
        starts = torch.minimum(self.starts[members], last) * self.tile
        positions = []
        for axis, (n, tile) in enumerate(zip(size, self.plan.tile, strict=True)):
            steps = torch.arange(n).reshape(n // tile, tile)
            of_axis = (starts[:, axis, None, None] + steps).to(self.chunk.x.device)
            positions.append(mark_dynamic(of_axis, 0, 1))
        activities = [rows_of(activity, members) for activity in self.activities]
        return self.parts["patch"], self.chunk.x, *positions, *activities, *self.base
