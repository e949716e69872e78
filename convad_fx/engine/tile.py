"""Masks of one image that share tiles of the first layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from convad_fx.compiler.lowering.tile import TilePlan
from convad_fx.engine.batch_size import LARGE_BATCH, BatchSize
from convad_fx.engine.batching import BatchRunner
from convad_fx.engine.box import BoxStrategy
from convad_fx.engine.bucketing import Size
from convad_fx.engine.chunk import mark_dynamic
from convad_fx.engine.strategy import Parts, SizedStrategy
from convad_fx.engine.tile_set import TileSet

#: Time per multiplication on tiles, relative to boxes.
TILE_OVERHEAD = 1.2
#: Batches of tiles are as large as batches of boxes of this share of an image.
TILE_BATCH_WEIGHT = 1 / 8
#: Share of an image that a box counts for at least, so that its calls are timed.
MIN_SHARE = 1e-3


class TileStrategy(SizedStrategy):
    """Computes the different tiles once, and the rest of the network on boxes made of them.

    Args:
        otherwise: cost of each mask of the chunk by other strategies, in whole images.
        members: the masks that share tiles, by row.

    Attributes:
        costs: of each mask of the chunk, after the tiles.
    """

    name = "tile"

    def __init__(
        self,
        plan: TilePlan,
        parts: Parts,
        box: BoxStrategy,
        batch: BatchSize,
        otherwise: list[float],
        members: list[int],
    ) -> None:
        self.parts, self.box, self.batch = parts, box, batch
        self.chunk, self.members, self.sizes = box.chunk, members, box.sizes
        self.cost_model, self.unit, self.tile = plan.work, box.unit, box.tile
        starts = box.starts[members]
        ends = starts + torch.tensor([box.sizes[k] for k in members])
        self.tiles = TileSet(plan, box.activities, members, starts, ends)
        shares = plan.work.shares(np.array(box.sizes))
        self.costs: list[float] = shares.tolist()
        self.saves = sum(otherwise[k] for k in members) - float(shares[members].sum())
        self._owner = {k: i for i, k in enumerate(members)}

    @property
    def tile_cost(self) -> float:
        """Cost of all tiles, in whole images."""
        return TILE_OVERHEAD * self.tiles.cost / self.cost_model.total

    @property
    def tile_area(self) -> float:
        """Arithmetic of all tiles, in whole images."""
        return self.tiles.multiplications / self.cost_model.total

    def compute_tiles(self, runner: BatchRunner, batches: list[BatchSize]) -> None:
        """Run all stages, each in batches of its own size."""
        for i, (count, batch) in enumerate(zip(self.tiles.counts, batches, strict=True)):
            name = f"tile stage {i}"
            code = self.parts[f"tile_stage_{i}"]
            prepare = self.tiles.prepare_stage(i, self.chunk.x, code)
            for rows, tiles in runner.run(
                list(range(count)),
                prepare,
                batch,
                name=name,
                share=TILE_BATCH_WEIGHT,
                min_rows=LARGE_BATCH,
            ):
                self.tiles.store(i, rows, tiles)

    def share(self, size: Size) -> float:
        """Arithmetic for a box, after the tiles; positive."""
        return max(super().share(size), MIN_SHARE)

    def call(self, size: Size, members: list[int]) -> tuple[Any, ...]:
        """Code for what follows the tiles, boxes of them, cells, activities."""
        owners = torch.tensor([self._owner[k] for k in members])
        boxes = self.tiles.assemble(owners, self.box.starts[members], size)
        mark_dynamic(boxes, 0, *range(2, boxes.dim()))
        cells_and_activities = self.box.cells_and_activities(size, members)
        return self.parts["tile_rest"], boxes, *cells_and_activities
