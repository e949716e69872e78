"""Tiles that masks of one image share: which there are, and putting them together for each mask.

Two tiles at one place are the same if the activities on their way from the image are the same as
far around them as they depend on. Random numbers stand for active cells, and their sums for
activities, so that equal ones are found by sorting. Stages then go from the last to the first, to
see which tiles anybody needs, and are computed from the first to the last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from convad_fx.compiler.kernels.box import along
from convad_fx.compiler.lowering.tile import MULTIPLICATIONS_PER_COPY, TilePlan, TileRead, TileStage
from convad_fx.engine.batch_size import BatchSize, marked
from convad_fx.engine.box import Boxed, Parts, cells_from, cells_of
from convad_fx.engine.bucketing import grouped

#: Work on tiles costs so much more than on boxes.
SHARING = 1.2
#: Less than any share of an image that takes time.
LITTLE = 1e-3
#: Of random numbers that stand for active cells.
SEED = 0
#: Masks whose sums are held at once: about a byte for each cell of each.
SUMMED = 64

Numbers = NDArray[np.uint64]
Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]


class Shared:
    """Masks on boxes of a tensor amid the network, put together from tiles that they share.

    Args:
        otherwise: what each of the masks that are boxed would cost, in images.
        members: those that are to share.
    """

    def __init__(
        self,
        share: TilePlan,
        parts: Parts,
        boxed: Boxed,
        otherwise: list[float],
        members: list[int],
    ) -> None:
        self.way, self.parts, self.boxed, self.members = share, parts, boxed, members
        self.otherwise = sum(otherwise[k] for k in members)
        self.first = boxed.first[members]
        end = self.first + torch.tensor([boxed.sizes[k] for k in members])
        self.tiles = Tiles(self.way, boxed.activities, members, self.first, end)
        self.place = {k: i for i, k in enumerate(members)}

    @property
    def saves(self) -> float:
        """What they would cost more than what follows the tiles, in images."""
        sizes = np.array([self.boxed.sizes[k] for k in self.members])
        return self.otherwise - float(self.way.work.shares(sizes).sum())

    @property
    def cost(self) -> float:
        """What all tiles cost, in images."""
        return SHARING * self.tiles.cost / self.way.work.total

    @property
    def done(self) -> float:
        """What all tiles multiply, in images."""
        return self.tiles.work / self.way.work.total

    def share(self, size: tuple[int, ...]) -> float:
        """Of the whole image's arithmetic, after the tiles; never nothing, so that it is timed."""
        return max(self.way.work.share(size), LITTLE)

    def groups(self, batch: BatchSize) -> dict[tuple[int, ...], list[int]]:
        """Size of box -> the masks that run on it."""
        shares, granularity = self.way.work.shares, self.boxed.region.granularity
        return grouped(self.members, self.boxed.sizes, shares, batch.call, granularity)

    def asks(self, size: tuple[int, ...]) -> Callable[[list[int]], tuple[Any, ...]]:
        """What to call for some masks, and with what."""
        boxed = self.boxed

        def ask(chosen: list[int]) -> tuple[Any, ...]:
            first = boxed.first[chosen]
            cells = cells_of(first, size, boxed.region, boxed.x.device)
            cut = [a if len(a) == 1 else marked(a[chosen]) for a in boxed.activities]
            owner = torch.tensor([self.place[k] for k in chosen])
            box = self.tiles.boxes(owner, first, size)
            marked(box, 0, *range(2, box.dim()))
            return self.parts["tile_rest"], box, *cells, *cut

        return ask


class Tiles:
    """Different tiles of each stage, for these masks, as far as the boxes of masks need them.

    Args:
        share: how masks share.
        activities: (K or 1, C, *grid), as in `BoxPlan`; those that stages read count.
        members: which of the K masks share.
        first, end: where their boxes start and end, in image positions, (members, axes).
    """

    def __init__(
        self,
        share: TilePlan,
        activities: Sequence[Tensor],
        members: Sequence[int],
        first: Tensor,
        end: Tensor,
    ) -> None:
        self.share, self.activities = share, activities
        self.members = torch.tensor(members)
        self.counts = share.counts
        needed = torch.ones(len(members), *self.counts, dtype=torch.bool)
        for axis, n in enumerate(self.counts):
            tile, place = share.tile[axis], torch.arange(n)
            low = (first[:, axis, None] // tile).clamp(max=n - 1)
            some = (place >= low) & (place * tile < end[:, axis, None])
            needed &= along(some, 1 + axis, needed.dim())
        self.rows: list[Tensor] = []  # for each stage: member and place -> row of its tile
        self.of: list[tuple[Tensor, Tensor]] = []  # member and place (axes) of each row
        for stage, keys in zip(share.stages[::-1], self._keys()[::-1], strict=True):
            needed = self._find(stage, keys, needed)
        self.rows.reverse()
        self.of.reverse()
        self.values: list[Tensor | None] = [None] * len(share.stages)  # (rows * cells, C)

    def _keys(self) -> list[Numbers]:
        """What tells tiles apart, for each stage, (members, *tiles)."""
        reads = {read.activity: None for stage in self.share.stages for read in stage.depends}
        touched = {i: a for i in reads if len(a := self.activities[i]) > 1}
        sums = Sums(self.share, {i: tuple(a.shape[1:]) for i, a in touched.items()})
        found = []
        for start in range(0, len(self.members), SUMMED):
            some = self.members[start : start + SUMMED]
            chosen = {i: a[some.to(a.device)] for i, a in touched.items()}
            found.append(sums.keys(chosen, len(some)))
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def _find(self, stage: TileStage, keys: Numbers, needed: Tensor) -> Tensor:
        """The different tiles of a stage; returns which tiles of the stage before they need."""
        flat = needed.flatten(1)
        member, place = flat.nonzero(as_tuple=True)
        chosen = keys.reshape(flat.shape)[member, place]
        _, where, inverse = np.unique(chosen, return_index=True, return_inverse=True)
        rows = torch.zeros(flat.shape, dtype=torch.long)
        rows[member, place] = torch.from_numpy(inverse)
        owner, at = member[where], place[where]
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
    def numbers(self) -> list[int]:
        """How many different ones each stage has."""
        return [len(owner) for owner, _ in self.of]

    @property
    def work(self) -> float:
        """What all of them multiply."""
        rows = zip(self.share.stages, self.numbers, strict=True)
        return sum(number * stage.work for stage, number in rows)

    @property
    def cost(self) -> float:
        """The same, and what copying costs."""
        rows = zip(self.share.stages, self.numbers, strict=True)
        return sum(
            number * (stage.work + MULTIPLICATIONS_PER_COPY * stage.copied)
            for stage, number in rows
        )

    @property
    def held(self) -> float:
        """Values of two stages, the most that are there at once."""
        each = [0.0]
        for stage, number in zip(self.share.stages, self.numbers, strict=True):
            each.append(float(number * self._cells(stage.result) * stage.channels))
        return max(a + b for a, b in itertools.pairwise(each))

    def _cells(self, strides: tuple[int, ...]) -> int:
        """Of a tile."""
        return math.prod(t // s for t, s in zip(self.share.tile, strides, strict=True))

    # ------------------------------------------------------------------ from stage to stage

    def asks(
        self, i: int, x: Tensor, part: Callable[..., Any]
    ) -> Callable[[list[int]], tuple[Any, ...]]:
        """What to call for some tiles of a stage, and with what; of stages before, all are kept."""
        stage, (owner, places) = self.share.stages[i], self.of[i]
        views = [(read, self._unfolded(read)) for read in stage.cuts]
        if i == 0:
            before, rows = x[0].movedim(0, -1).reshape(-1, x.shape[1]), None  # of each position
        else:
            kept = self.values[i - 1]
            assert kept is not None
            before, rows = kept, self.rows[i - 1]

        def ask(chosen: list[int]) -> tuple[Any, ...]:
            own, at = owner[chosen], places[chosen]
            cells = []
            for axis, (low, high) in enumerate(stage.reach):
                n = self.share.tile[axis] // stage.strides[axis]
                steps = torch.arange(-low, n + high)
                cells.append((at[:, axis, None] * n + steps).clamp(0, stage.grid[axis] - 1))
            patch = self._gathered(before, rows, own, cells, stage.strides)
            cuts = (self._cut(read, view, own, at) for read, view in views)
            return part, *(marked(t) for t in (patch, *cuts))

        return ask

    def keep(self, i: int, chosen: list[int], tiles: Tensor) -> None:
        """What some tiles of a stage are, (N, C, *tile): copied, in the order of rows."""
        cells = self._cells(self.share.stages[i].result)
        kept, number = self.values[i], self.numbers[i]
        if kept is None:
            kept = self.values[i] = tiles.new_empty((number * cells, tiles.shape[1]))
        some = slice(chosen[0] * cells, (chosen[-1] + 1) * cells)
        kept[some] = tiles.movedim(1, -1).reshape(-1, tiles.shape[1])
        if chosen[-1] + 1 == number:  # nobody reads what it was made from any more
            self.values[:i] = [None] * i

    def boxes(self, owner: Tensor, first: Tensor, size: tuple[int, ...]) -> Tensor:
        """The last stage's tensor on the boxes of these members, (N, C, *box)."""
        last, kept = self.share.stages[-1], self.values[-1]
        assert kept is not None
        cells = []
        for axis, stride in enumerate(last.result):
            some = cells_from(first[:, axis], size[axis], stride)
            cells.append(some.clamp(max=last.cells[axis] - 1))
        return self._gathered(kept, self.rows[-1], owner, cells, last.result)

    def _gathered(
        self,
        values: Tensor,
        rows: Tensor | None,
        owner: Tensor,
        cells: list[Tensor],
        strides: tuple[int, ...],
    ) -> Tensor:
        """Cells (N, n) along each axis of the grid of these members -> (N, C, n, ...)."""
        index: Any = 0
        rank = 1 + len(cells)
        if rows is None:
            for axis, cell in enumerate(cells):
                index = index * self.share.image_size[axis] + along(cell, 1 + axis, rank)
        else:
            sizes = [t // s for t, s in zip(self.share.tile, strides, strict=True)]
            pairs = list(zip(cells, sizes, strict=True))
            where = (along(cell // n, 1 + axis, rank) for axis, (cell, n) in enumerate(pairs))
            index = rows[(along(owner[:, None], 1, rank), *where)]
            for axis, (cell, n) in enumerate(pairs):
                index = index * n + along(cell % n, 1 + axis, rank)
        found = values.index_select(0, index.flatten().to(values.device))
        return found.reshape(*index.shape, -1).movedim(-1, 1)

    def _cut(self, read: TileRead, view: Tensor, owner: Tensor, places: Tensor) -> Tensor:
        """The patches of an activity that these tiles read, of all of them."""
        owner = self.members[owner] if len(view) > 1 else torch.zeros_like(owner)
        index: list[Any] = [slice(None)] * (view.dim() - len(read.axes))
        index[0] = owner.to(view.device)
        for axis, grid in zip(read.axes, read.grid, strict=True):
            index[axis] = places[:, grid].to(view.device)
        z = view[tuple(index)]
        if not read.axes:
            return z
        # the chosen places are the first axis, wherever they were
        return z.movedim(list(range(-len(read.axes), 0)), list(read.axes))

    def _unfolded(self, read: TileRead) -> Tensor:
        """All patches of an activity, as a view: (K, C, *tiles, *patch), False outside the grid."""
        z = self.activities[read.activity]
        pads = [0] * (2 * z.dim())
        rows = list(zip(read.axes, read.grid, read.strides, read.reach, strict=True))
        for axis, grid, stride, (low, high) in rows:
            n = self.share.tile[grid] // stride
            more = self.counts[grid] * n + high - z.shape[axis]  # fewer, if it is negative
            at = 2 * (z.dim() - 1 - axis)
            pads[at], pads[at + 1] = low, more
        z = F.pad(z, pads)
        for axis, grid, stride, (low, high) in rows:
            n = self.share.tile[grid] // stride
            z = z.unfold(axis, n + low + high, n)
        return z


class Sums:
    """Sums of random numbers over what is active: equal where activities are equal.

    Eight cells of a line are a byte, and the sums are of bytes times random numbers, modulo 2^64:
    of two activities that differ they are equal with a probability of 2^-57.

    Args:
        share: how masks share.
        shapes: (C, *grid) of each activity that masks touch.
    """

    def __init__(self, share: TilePlan, shapes: Mapping[int, Sequence[int]]) -> None:
        self.share = share
        self.random = np.random.default_rng(SEED)
        self.places = [self._drawn(1, *share.counts) for _ in share.stages]
        reads = dict.fromkeys(read for stage in share.stages for read in stage.depends)
        self.factors = {r: self._drawn() | np.uint64(1) for r in reads if r.activity in shapes}
        self.numbers = {
            (r.activity, r.axes): self._drawn(
                *_packed(np.empty((1, *shapes[r.activity]), np.bool_), r.axes).shape
            )
            for r in self.factors
        }

    def _drawn(self, *shape: int) -> Numbers:
        drawn: Numbers = self.random.integers(0, 1 << 64, shape, np.uint64)
        return drawn

    def keys(self, activities: Mapping[int, Tensor], masks: int) -> list[Numbers]:
        """(K, *tiles) for each stage: what stands for all that a tile depends on, and its place."""
        lines = {}
        for key, numbers in self.numbers.items():
            activity, axes = key
            packed = _packed(activities[activity].cpu().numpy(), axes)
            lines[key] = packed, _cumulative(packed * numbers)
        found = []
        for stage, places in zip(self.share.stages, self.places, strict=True):
            keys = np.broadcast_to(places, (masks, *self.share.counts))
            for read in stage.depends:
                if (key := (read.activity, read.axes)) in lines:
                    within = self._within(*lines[key], self.numbers[key], read)
                    keys = keys + self.factors[read] * within
            found.append(keys)
        return found

    def _within(self, packed: Bytes, sums: Numbers, numbers: Numbers, read: TileRead) -> Numbers:
        """Sums over patches, (K, *tiles); of lines there are those over all bytes before."""
        if not read.axes:
            result = sums[-1]
        else:
            first, end = self._spans(read, -1, 8 * len(packed))
            low = np.minimum(first // 8, len(packed) - 1)  # none of a patch need be on the grid
            high = np.maximum(end - 1, 0) // 8
            before = np.uint8(255) >> (first % 8).astype(np.uint8)  # bits start at the highest
            after = np.uint8(255) << (7 - (end - 1) % 8).astype(np.uint8)
            after[end <= first] = 0
            alone = low >= high
            shape = (-1, *[1] * (packed.ndim - 1))
            starts = packed[low] & np.where(alone, before & after, before).reshape(shape)
            ends = packed[high] & np.where(alone, np.uint8(0), after).reshape(shape)
            result = sums[high] - sums[np.minimum(low + 1, high)]
            result += starts * numbers[low]
            result += ends * numbers[high]
        for i in reversed(range(len(read.axes) - 1)):
            lines = np.moveaxis(result, -1, 0)
            first, end = self._spans(read, i, len(lines))
            result = np.stack([lines[a:b].sum(0) for a, b in zip(first, end, strict=True)])
        tiles = len(read.axes)
        result = np.moveaxis(result, tiles, 0)
        result = result.sum(tuple(range(1 + tiles, result.ndim)))
        missing = [1 + axis for axis in range(len(self.share.counts)) if axis not in read.grid]
        return np.expand_dims(result, missing)

    def _spans(self, read: TileRead, i: int, cells: int) -> tuple[Places, Places]:
        """Where patches start and end along an axis, inside the grid."""
        n = self.share.tile[read.grid[i]] // read.strides[i]
        low, high = read.reach[i]
        start = np.arange(self.share.counts[read.grid[i]]) * n
        return (start - low).clip(0, cells), (start + n + high).clip(0, cells)


def _packed(activity: NDArray[np.bool_], axes: tuple[int, ...]) -> Bytes:
    """(K, C, *grid) -> (last of the axes, K, *others, *axes before), eight of the last a byte."""
    others = [axis for axis in range(1, activity.ndim) if axis not in axes]
    packed = np.packbits(activity.transpose(0, *others, *axes), axis=-1)
    return np.ascontiguousarray(np.moveaxis(packed, -1, 0))


def _cumulative(numbers: Numbers) -> Numbers:
    """Sums over the first 0, 1, ... along the first axis."""
    sums = np.zeros((1 + len(numbers), *numbers.shape[1:]), np.uint64)
    for before, line, after in zip(sums[:-1], numbers, sums[1:], strict=True):
        np.add(before, line, out=after)  # several times faster than cumsum along the first axis
    return sums
