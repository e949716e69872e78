"""Tiles that masks of one image share: which there are, and putting them together for each mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convad_fx.compiler.batches import BatchSize
from convad_fx.compiler.share import Read, Share, Stage

#: Of random numbers that stand for activities.
SEED = 0
#: Masks whose sums are held at once: eight bytes for each cell of each.
SUMMED = 64


class Tiles:
    """Different tiles of each stage, for these masks, as far as these boxes need them.

    Args:
        share: how masks share.
        activities: (K or 1, C, *grid), those that stages read.
        first, end: where the boxes of masks start and end, in image positions, (K, axes).
    """

    def __init__(
        self, share: Share, activities: tuple[Tensor, ...], first: Tensor, end: Tensor
    ) -> None:
        self.share, self.activities = share, activities
        # padding may make a grid larger than the image
        grids = [(stage.cells, stage.result) for stage in share.stages]
        self.counts = tuple(
            max(-(-cells[axis] * strides[axis] // tile) for cells, strides in grids)
            for axis, tile in enumerate(share.tile)
        )
        masks = len(first)
        self.views: dict[Read, Tensor] = {}
        tile = torch.tensor(share.tile)
        needed = torch.ones(masks, *self.counts, dtype=torch.bool)
        for axis, n in enumerate(self.counts):
            place = torch.arange(n)
            low, high = first[:, axis, None] // tile[axis], -(-end[:, axis, None] // tile[axis])
            needed &= _along((place >= low) & (place < high), axis, len(self.counts))
        self.rows: list[Tensor] = []  # for each stage: mask and place -> row of its tiles
        self.of: list[tuple[Tensor, Tensor]] = []  # mask and place (axes) of each row
        for stage, keys in zip(share.stages[::-1], self._keys(masks)[::-1], strict=True):
            needed = self._find(stage, keys, needed)
        self.rows.reverse()
        self.of.reverse()

    def _keys(self, masks: int) -> list[Tensor]:
        """What tells tiles apart, for each stage, (K, *tiles)."""
        found: list[list[Tensor]] = []
        for start in range(0, masks, SUMMED):
            some = slice(start, min(start + SUMMED, masks))
            # the same numbers for all of them: drawn anew, in the same order
            sums = Sums(tuple(None if len(a) == 1 else a[some] for a in self.activities))
            size = some.stop - some.start
            keys = [sums.keys(s.depends, self.share, self.counts, size) for s in self.share.stages]
            found.append(keys)
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def _find(self, stage: Stage, keys: Tensor, needed: Tensor) -> Tensor:
        """The different tiles of a stage; returns which tiles of the stage before they need."""
        flat = needed.flatten(1)
        mask, place = flat.nonzero(as_tuple=True)
        chosen = keys.flatten(1)[mask, place].numpy()
        _, where, inverse = np.unique(chosen, return_index=True, return_inverse=True)
        rows = torch.zeros(flat.shape, dtype=torch.long)
        rows[mask, place] = torch.from_numpy(inverse)
        owner, at = mask[where], place[where]
        places = torch.stack(torch.unravel_index(at, self.counts), 1)
        self.rows.append(rows.reshape(needed.shape))
        self.of.append((owner, places))
        before = torch.zeros_like(needed)
        spans = []
        for axis, (low, high) in enumerate(stage.reach):
            n = self.share.tile[axis] // stage.strides[axis]
            spans.append(range(-low // n, (n + high - 1) // n + 1))
        for offset in np.ndindex(*(len(span) for span in spans)):
            moved = [
                (places[:, axis] + spans[axis][k]).clamp(0, self.counts[axis] - 1)
                for axis, k in enumerate(offset)
            ]
            before[(owner, *moved)] = True
        return before

    @property
    def work(self) -> float:
        """What all of them multiply."""
        rows = zip(self.share.stages, self.of, strict=True)
        return sum(stage.work * len(owner) for stage, (owner, _) in rows)

    def compute(self, x: Tensor, parts: Any, batch: BatchSize) -> None:
        """All tiles, stage by stage."""
        self.values = x[0].movedim(0, -1).reshape(-1, x.shape[1])  # a row for each position
        before: Tensor | None = None
        for i, (stage, (owner, places)) in enumerate(zip(self.share.stages, self.of, strict=True)):
            call, found, done = parts[f"tiles_{i}"], [], 0
            share = stage.work / self.share.work.total
            while left := len(owner) - done:
                n = batch.of(max(share, 0.001), left)
                n = -(-left // -(-left // n))
                some = slice(done, done + n)
                own, at = owner[some], places[some]
                patch = self._patch(before, own, at, stage)
                cuts = [self._cut(read, own, at) for read in stage.cuts]
                if len(own) == 1:
                    patch, cuts = (
                        patch.expand(2, *patch.shape[1:]),
                        [c.expand(2, *c.shape[1:]) for c in cuts],
                    )
                for tensor in (patch, *cuts):
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
                z = call(patch, *cuts)[: len(own)]
                found.append(z.movedim(1, -1).reshape(-1, z.shape[1]))
                done += n
            self.values = torch.cat(found)
            before = self.rows[i]
        self.last = before

    def _patch(self, before: Tensor | None, owner: Tensor, places: Tensor, stage: Stage) -> Tensor:
        cells = []
        for axis, (low, high) in enumerate(stage.reach):
            stride = stage.strides[axis]
            n = self.share.tile[axis] // stride
            steps = torch.arange(-low, n + high)
            cells.append((places[:, axis, None] * n + steps).clamp(0, stage.grid[axis] - 1))
        return self._gathered(before, owner, cells, stage.strides)

    def _gathered(
        self, rows: Tensor | None, owner: Tensor, cells: list[Tensor], strides: tuple[int, ...]
    ) -> Tensor:
        """Cells (N, n) along each axis of the grid of these masks -> (N, C, n, ...)."""
        dims = len(cells)
        if rows is None:
            index: Any = 0
            for axis, cell in enumerate(cells):
                index = index * self.share.canvas[axis] + _along(cell, axis, dims)
        else:
            sizes = [t // s for t, s in zip(self.share.tile, strides, strict=True)]
            where = tuple(
                _along(c // n, axis, dims)
                for axis, (c, n) in enumerate(zip(cells, sizes, strict=True))
            )
            index = rows[(_along(owner[:, None], 0, dims), *where)]
            for axis, (cell, n) in enumerate(zip(cells, sizes, strict=True)):
                index = index * n + _along(cell % n, axis, dims)
        found = self.values.index_select(0, index.flatten().to(self.values.device))
        return found.reshape(*index.shape, -1).movedim(-1, 1)

    def _cut(self, read: Read, owner: Tensor, places: Tensor) -> Tensor:
        if read not in self.views:
            self.views[read] = self._unfolded(read)
        view = self.views[read]
        if len(view) == 1:
            owner = torch.zeros_like(owner)
        index: list[Any] = [slice(None)] * (view.dim() - len(read.axes))
        index[0] = owner
        for axis, grid in zip(read.axes, read.grid, strict=True):
            index[axis] = places[:, grid]
        z = view[tuple(index)]
        if not read.axes:
            return z
        # the chosen places are the first axis, wherever they were
        return z.movedim(list(range(-len(read.axes), 0)), list(read.axes))

    def _unfolded(self, read: Read) -> Tensor:
        """All patches of an activity, as a view: (K, C, *tiles, *patch), False outside the grid."""
        z = self.activities[read.activity]
        pads = [0] * (2 * z.dim())
        for axis, grid, stride, (low, high) in zip(
            read.axes, read.grid, read.strides, read.reach, strict=True
        ):
            n = self.share.tile[grid] // stride
            more = self.counts[grid] * n + high - z.shape[axis]  # fewer, if it is negative
            at = 2 * (z.dim() - 1 - axis)
            pads[at], pads[at + 1] = low, more
        z = torch.nn.functional.pad(z, pads)
        for axis, grid, stride, (low, high) in zip(
            read.axes, read.grid, read.strides, read.reach, strict=True
        ):
            n = self.share.tile[grid] // stride
            z = z.unfold(axis, n + low + high, n)
        return z

    def boxes(self, owner: Tensor, first: Tensor, size: tuple[int, ...]) -> Tensor:
        """The last stage's tensor on the boxes of these masks, (N, C, *box)."""
        last = self.share.stages[-1]
        cells = []
        for axis, stride in enumerate(last.result):
            steps = torch.arange(-(-size[axis] // stride))
            cells.append((first[:, axis, None] // stride + steps).clamp(max=last.cells[axis] - 1))
        return self._gathered(self.last, owner, cells, last.result)


class Sums:
    """Sums of random numbers over active cells: equal where activities are equal.

    Of integers modulo 2^64: of two that differ they are equal with probability 2^-63.

    Args:
        activities: (K, C, *grid); None for what no mask touches.
    """

    def __init__(self, activities: tuple[Tensor | None, ...]) -> None:
        self.activities = activities
        self.random = torch.Generator().manual_seed(SEED)
        self.known: dict[Any, Tensor] = {}
        self.factors: dict[Read, int] = {}

    def _numbers(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=self.random)

    def keys(
        self, reads: tuple[Read, ...], share: Share, counts: tuple[int, ...], masks: int
    ) -> Tensor:
        """(K, *tiles): what stands for all that a tile depends on, its place among it."""
        found = self._numbers((1, *counts)).expand(masks, *counts)
        for read in reads:
            activity = self.activities[read.activity]
            if activity is not None:
                factor = self.factors.setdefault(read, int(self._numbers((1,))) | 1)
                found = found + factor * self._within(activity, read, share, counts)
        return found

    def _within(
        self, activity: Tensor, read: Read, share: Share, counts: tuple[int, ...]
    ) -> Tensor:
        """Sums over patches, (K, *tiles)."""
        sums = self._summed(activity, read)
        for i, grid in enumerate(read.grid):
            n = share.tile[grid] // read.strides[i]
            low, high = read.reach[i]
            start, most = torch.arange(counts[grid]) * n, sums.shape[1 + i] - 1
            ends = [(start + by).clamp(0, most) for by in (n + high, -low)]
            sums = sums.index_select(1 + i, ends[0]) - sums.index_select(1 + i, ends[1])
        for axis in range(len(counts)):
            if axis not in read.grid:
                sums = sums.unsqueeze(1 + axis)
        return sums

    def _summed(self, activity: Tensor, read: Read) -> Tensor:
        key = read.activity, read.axes
        if key not in self.known:
            activity = activity.cpu()
            numbers = self._numbers((1, *activity.shape[1:]))
            others = [a for a in range(1, activity.dim()) if a not in read.axes]
            sums = torch.where(activity, numbers, 0)
            sums = sums.sum(others) if others else sums
            for i in range(len(read.axes)):
                sums = sums.cumsum(1 + i)
                pads = [0] * (2 * (sums.dim() - 1 - (1 + i))) + [1, 0]
                sums = torch.nn.functional.pad(sums, pads)
            self.known[key] = sums
        return self.known[key]


def _along(cell: Tensor, axis: int, dims: int) -> Tensor:
    """(N, n) -> (N, 1, .., n, .., 1), n at an axis of so many."""
    shape = [1] * (1 + dims)
    shape[0], shape[1 + axis] = cell.shape
    return cell.reshape(shape)
