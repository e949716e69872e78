"""The different tiles that masks of one image need: which there are, and their values.

Two tiles at one place are the same if the activities on their way from the image are the same as
far around as they depend on; equal ones are found by their hashes. Stages then go from the last to
the first, to see which tiles are needed, and are computed from the first to the last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from convad_fx.compiler.kernels.box import along
from convad_fx.compiler.lowering.tile import (
    MULTIPLICATIONS_PER_COPY,
    TilePlan,
    TileRead,
    TileStage,
)
from convad_fx.engine.batching import PrepareCall
from convad_fx.engine.box import axis_cells
from convad_fx.engine.bucketing import Size
from convad_fx.engine.chunk import mark_dynamic
from convad_fx.engine.mask_hash import MASKS_AT_ONCE
from convad_fx.engine.tile_hash import Hashes, TileHasher


class TileSet:
    """The different tiles of each stage that the boxes of some masks need.

    Args:
        activities: (K or 1, C, *grid), as in `BoxPlan`.
        members: which of the K masks share tiles.
        starts, ends: of their boxes, in image positions, (members, axes).

    Attributes:
        counts: how many tiles each stage has.
    """

    def __init__(
        self,
        plan: TilePlan,
        activities: Sequence[Tensor],
        members: Sequence[int],
        starts: Tensor,
        ends: Tensor,
    ) -> None:
        self.plan, self.activities = plan, activities
        self.grid = plan.counts
        self.members = torch.tensor(members)
        needed = torch.ones(len(members), *self.grid, dtype=torch.bool)
        for axis, n in enumerate(self.grid):
            tile, place = plan.tile[axis], torch.arange(n)
            low = (starts[:, axis, None] // tile).clamp(max=n - 1)
            inside = (place >= low) & (place * tile < ends[:, axis, None])
            needed &= along(inside, 1 + axis, needed.dim())
        self._rows: list[Tensor] = []  # for each stage: member and place -> row of its tile
        self._owners: list[tuple[Tensor, Tensor]] = []  # member and place (axes) of each row
        for stage, hashes in zip(plan.stages[::-1], self._hashes()[::-1], strict=True):
            needed = self._deduplicate(stage, hashes, needed)
        self._rows.reverse()
        self._owners.reverse()
        self.counts = [len(owner) for owner, _ in self._owners]
        self._values: list[Tensor | None] = [None] * len(plan.stages)  # (rows * cells, C)

    def _hashes(self) -> list[Hashes]:
        """Hashes of the tiles of each stage, (members, *tiles)."""
        reads = {read.activity: None for stage in self.plan.stages for read in stage.depends}
        varying = {i: a for i in reads if len(a := self.activities[i]) > 1}
        hasher = TileHasher(self.plan, {i: tuple(a.shape[1:]) for i, a in varying.items()})
        parts = []
        for members in torch.split(self.members, MASKS_AT_ONCE):
            chosen = {i: a[members.to(a.device)] for i, a in varying.items()}
            parts.append(hasher.hashes(chosen, len(members)))
        return [np.concatenate(stage) for stage in zip(*parts, strict=True)]

    def _deduplicate(self, stage: TileStage, hashes: Hashes, needed: Tensor) -> Tensor:
        """Find the different tiles of a stage; return which of the stage before they need."""
        flat = needed.flatten(1)
        member, place = flat.nonzero(as_tuple=True)
        chosen = hashes.reshape(flat.shape)[member, place]
        _, where, inverse = np.unique(chosen, return_index=True, return_inverse=True)
        rows = torch.zeros(flat.shape, dtype=torch.long)
        rows[member, place] = torch.from_numpy(inverse)
        owner = member[where]
        places = torch.stack(torch.unravel_index(place[where], self.grid), 1)
        self._rows.append(rows.reshape(needed.shape))
        self._owners.append((owner, places))
        before = torch.zeros_like(needed)
        spans = []
        for axis, (low, high) in enumerate(stage.reach):
            n = self.plan.tile[axis] // stage.strides[axis]
            spans.append(range(-low // n, (n + high - 1) // n + 1))
        for offsets in itertools.product(*spans):
            moved = [
                (places[:, axis] + offset).clamp(0, self.grid[axis] - 1)
                for axis, offset in enumerate(offsets)
            ]
            before[(owner, *moved)] = True
        return before

    @property
    def multiplications(self) -> float:
        """Multiplications of all tiles."""
        return sum(n * stage.work for stage, n in self._stages())

    @property
    def cost(self) -> float:
        """Cost of all tiles in multiplications, copying included."""
        return sum(
            n * (stage.work + MULTIPLICATIONS_PER_COPY * stage.copied)
            for stage, n in self._stages()
        )

    @property
    def peak_values(self) -> float:
        """Values of two successive stages, the most that are held at once."""
        held = [n * self._cells(stage.result) * stage.channels for stage, n in self._stages()]
        return float(max(a + b for a, b in itertools.pairwise([0, *held])))

    def _stages(self) -> list[tuple[TileStage, int]]:
        return list(zip(self.plan.stages, self.counts, strict=True))

    def _cells(self, strides: tuple[int, ...]) -> int:
        """Cells of a tile of a tensor with these strides."""
        return math.prod(t // s for t, s in zip(self.plan.tile, strides, strict=True))

    # ------------------------------------------------------------------ from stage to stage

    def prepare_stage(self, i: int, x: Tensor, code: Callable[..., Any]) -> PrepareCall:
        """What to call for tiles of a stage, by their rows, when the stage before is stored."""
        stage, (owner, places) = self.plan.stages[i], self._owners[i]
        views = [(read, self._patches(read)) for read in stage.cuts]
        if i == 0:
            before, rows = x[0].movedim(0, -1).reshape(-1, x.shape[1]), None  # of each position
        else:
            stored = self._values[i - 1]
            assert stored is not None
            before, rows = stored, self._rows[i - 1]

        def prepare(chosen: list[int]) -> tuple[Any, ...]:
            owners, at = owner[chosen], places[chosen]
            cells = []
            for axis, (low, high) in enumerate(stage.reach):
                n = self.plan.tile[axis] // stage.strides[axis]
                steps = torch.arange(-low, n + high)
                cells.append((at[:, axis, None] * n + steps).clamp(0, stage.grid[axis] - 1))
            patch = self._gather(before, rows, owners, cells, stage.strides)
            cuts = (self._cut(read, view, owners, at) for read, view in views)
            return code, *(mark_dynamic(t) for t in (patch, *cuts))

        return prepare

    def store(self, i: int, rows: list[int], tiles: Tensor) -> None:
        """Copy tiles (N, C, *tile) of a stage, which come in the order of rows."""
        cells = self._cells(self.plan.stages[i].result)
        values, count = self._values[i], self.counts[i]
        if values is None:
            values = self._values[i] = tiles.new_empty((count * cells, tiles.shape[1]))
        part = slice(rows[0] * cells, (rows[-1] + 1) * cells)
        values[part] = tiles.movedim(1, -1).reshape(-1, tiles.shape[1])
        if rows[-1] + 1 == count:  # the stages before are not read again
            self._values[:i] = [None] * i

    def assemble(self, owners: Tensor, starts: Tensor, size: Size) -> Tensor:
        """The last stage's tensor on boxes of these members, (N, C, *box)."""
        last, values = self.plan.stages[-1], self._values[-1]
        assert values is not None
        cells = [
            axis_cells(starts[:, axis], size[axis], stride).clamp(max=last.cells[axis] - 1)
            for axis, stride in enumerate(last.result)
        ]
        return self._gather(values, self._rows[-1], owners, cells, last.result)

    def _gather(
        self,
        values: Tensor,
        rows: Tensor | None,
        owners: Tensor,
        cells: list[Tensor],
        strides: tuple[int, ...],
    ) -> Tensor:
        """Cells (N, n) along each axis of the grid of these members -> (N, C, n, ...)."""
        index: Any = 0
        rank = 1 + len(cells)
        if rows is None:
            for axis, cell in enumerate(cells):
                index = index * self.plan.image_size[axis] + along(cell, 1 + axis, rank)
        else:
            sizes = [t // s for t, s in zip(self.plan.tile, strides, strict=True)]
            pairs = list(zip(cells, sizes, strict=True))
            places = (along(cell // n, 1 + axis, rank) for axis, (cell, n) in enumerate(pairs))
            index = rows[(along(owners[:, None], 1, rank), *places)]
            for axis, (cell, n) in enumerate(pairs):
                index = index * n + along(cell % n, 1 + axis, rank)
        gathered = values.index_select(0, index.flatten().to(values.device))
        return gathered.reshape(*index.shape, -1).movedim(-1, 1)

    def _cut(self, read: TileRead, view: Tensor, owners: Tensor, places: Tensor) -> Tensor:
        """The patches of an activity that these tiles read, out of all patches."""
        masks = self.members[owners] if len(view) > 1 else torch.zeros_like(owners)
        index: list[Any] = [slice(None)] * (view.dim() - len(read.axes))
        index[0] = masks.to(view.device)
        for axis, grid in zip(read.axes, read.grid, strict=True):
            index[axis] = places[:, grid].to(view.device)
        z = view[tuple(index)]
        if not read.axes:
            return z
        # indexing put the rows first, wherever the indexed axes were
        return z.movedim(list(range(-len(read.axes), 0)), list(read.axes))

    def _patches(self, read: TileRead) -> Tensor:
        """All patches of an activity, as a view: (K, C, *tiles, *patch), False outside the grid."""
        z = self.activities[read.activity]
        padding = [0] * (2 * z.dim())
        axes = list(zip(read.axes, read.grid, read.strides, read.reach, strict=True))
        for axis, grid, stride, (low, high) in axes:
            n = self.plan.tile[grid] // stride
            at = 2 * (z.dim() - 1 - axis)
            padding[at] = low
            padding[at + 1] = self.grid[grid] * n + high - z.shape[axis]  # negative: cut off
        z = F.pad(z, padding)
        for axis, grid, stride, (low, high) in axes:
            n = self.plan.tile[grid] // stride
            z = z.unfold(axis, n + low + high, n)
        return z
