"""Masks that hide little, on the patches that what they hide can change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convad_fx.compiler.lowering.grid_map import GridMap
from convad_fx.compiler.lowering.patch import PatchPlan
from convad_fx.engine.batch_size import MIN_ROWS, BatchSize
from convad_fx.engine.box import active_spans
from convad_fx.engine.bucketing import Size
from convad_fx.engine.chunk import Chunk, mark_dynamic, rows_of
from convad_fx.engine.strategy import Parts, SizedStrategy

#: Time per multiplication on patches, which are copied, relative to whole grids.
PATCH_OVERHEAD = 1.2


class PatchStrategy(SizedStrategy):
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
        self.parts, self.chunk, self.batch = parts, chunk, batch
        self.cost_model, self.unit, self.tile = plan.work, plan.tile, plan.tile
        self.costs, self.members, self.sizes = otherwise, set[int](), list[Size]()
        if "patch" not in parts or len(chunk.x) > 1:
            return
        tile = torch.tensor(plan.tile)
        self._tiles = -(-torch.tensor(plan.image_size) // tile)
        self._starts, sizes = _hidden_boxes(chunk.masks, tile, self._tiles)
        self.sizes = [tuple(row) for row in (sizes * tile).tolist()]
        shares = plan.work.shares(np.array(self.sizes)).tolist()
        gains = [o - PATCH_OVERHEAD * s for o, s in zip(otherwise, shares, strict=True)]
        gains = [max(gain, 0.0) for gain in gains]
        # the network has to run once without a mask; two calls of its own
        if sum(gains) > 1 + 2 * call_cost:
            self.members = {k for k, gain in enumerate(gains) if gain > 0}
            self.costs = [o - gain for o, gain in zip(otherwise, gains, strict=True)]

    def prepare(self, without: Iterable[int]) -> None:
        """Run the network without a mask, for all members but those that others evaluate."""
        self.members.difference_update(without)
        if self.members:
            self.base = self.parts["patch_base"](self.chunk.x, None)
            self.activities = self.parts["patch_activities"](self.chunk.x, self.chunk.masks)

    def call(self, size: Size, members: list[int]) -> tuple[Any, ...]:
        """Code for patches, the image, positions (N, tiles, positions of a tile), activities."""
        tiles = torch.tensor(self.tile)
        last = self._tiles - torch.tensor(size) // tiles
        starts = torch.minimum(self._starts[members], last) * tiles
        positions = []
        for axis, (n, tile) in enumerate(zip(size, self.tile, strict=True)):
            steps = torch.arange(n).reshape(n // tile, tile)
            of_axis = (starts[:, axis, None, None] + steps).to(self.chunk.x.device)
            positions.append(mark_dynamic(of_axis, 0, 1))
        activities = [rows_of(activity, members) for activity in self.activities]
        return self.parts["patch"], self.chunk.x, *positions, *activities, *self.base


def _hidden_boxes(masks: Tensor, tile: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Starts and sizes, in tiles, of boxes around what is hidden, (K, axes) each."""
    axes = len(tile)
    grid = GridMap(tuple(range(2, masks.dim())), (1,) * axes, ((0, 0),) * axes)
    low, high = torch.zeros(2, len(masks), axes, dtype=torch.long)
    for axis, first, end in active_spans(~masks, grid):
        low[:, axis], high[:, axis] = first, end
    low = torch.minimum(low // tile, tiles - 1)  # where nothing is hidden: any tile
    sizes = (-(-high // tile) - low).clamp(min=MIN_ROWS)
    return low, torch.minimum(sizes, tiles)
