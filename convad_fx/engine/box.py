"""Masks on the boxes that hold what they keep: where these lie, and what to call for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convad_fx.compiler.lowering.box import BoxPlan
from convad_fx.compiler.lowering.grid_map import GridMap
from convad_fx.engine.batch_size import LEAST, BatchSize, marked, rows_of
from convad_fx.engine.bucketing import grouped

#: Further than any cell.
FAR = 1 << 40
#: Code of ways, by the names of their graphs.
Parts = Mapping[str, Callable[..., Any]]


class Boxed:
    """Masks on the boxes that hold their active cells."""

    def __init__(self, region: BoxPlan, parts: Parts, x: Tensor, masks: Tensor) -> None:
        self.region, self.parts, self.x = region, parts, x
        self.ok = "box" in parts
        self.activities: tuple[Tensor, ...] = ()
        if self.ok:
            # of a single mask, too, it shows which activities are the same for all: one row
            some = masks if len(masks) > 1 else masks.expand(LEAST, *masks.shape[1:])
            self.activities = parts["box_activities"](x[:1], some)
        self.whole = self.region.image_size
        self.first, self.sizes = torch.zeros(len(masks), 0), [self.whole] * len(masks)
        if self.ok:
            self.whole = extent(self.region, self.activities)
            first, sizes = boxes(self.region, self.activities, self.whole)
            self.first, self.sizes = first[: len(masks)], sizes[: len(masks)]

    def share(self, size: tuple[int, ...]) -> float:
        """Of the whole image's arithmetic."""
        return self.region.work.share(size)

    def in_tiles(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """How many tiles a box has, the last perhaps in part."""
        return tuple(-(-n // tile) for n, tile in zip(size, self.region.tile, strict=True))

    @property
    def costs(self) -> list[float]:
        """What each mask would cost, in images."""
        found: list[float] = self.region.work.shares(np.array(self.sizes)).tolist()
        return found

    def groups(self, members: list[int], batch: BatchSize) -> dict[tuple[int, ...], list[int]]:
        """Size of box -> the masks that run on it."""
        shares = self.region.work.shares
        return grouped(members, self.sizes, shares, batch.call, self.region.granularity)

    def asks(self, size: tuple[int, ...]) -> Callable[[list[int]], tuple[Any, ...]]:
        """What to call for some masks, and with what."""

        def ask(chosen: list[int]) -> tuple[Any, ...]:
            cells = cells_of(self.first[chosen], size, self.region, self.x.device)
            cut = [a if len(a) == 1 else marked(a[chosen]) for a in self.activities]
            return self.parts["box"], rows_of(self.x, chosen), *cells, *cut

        return ask


def cells_of(
    first: Tensor, size: tuple[int, ...], region: BoxPlan, device: torch.device
) -> list[Tensor]:
    """For each grid axis and stride the cells of boxes that start at these positions, (N, n)."""
    found = []
    for axis, stride in region.cells:
        found.append(marked(cells_from(first[:, axis], size[axis], stride).to(device), 0, 1))
    return found


def cells_from(first: Tensor, size: int, stride: int) -> Tensor:
    """The cells (N, n) of a line of so many positions, from each of these (N,) on.

    >>> cells_from(torch.tensor([0, 4]), size=5, stride=2)
    tensor([[0, 1, 2],
            [2, 3, 4]])
    """
    return first[:, None] // stride + torch.arange(-(-size // stride))


def extent(region: BoxPlan, activities: tuple[Tensor, ...]) -> tuple[int, ...]:
    """The smallest box that holds every level's whole grid: some convolutions make it larger."""
    most = list(region.image_size)
    for activity, level in zip(activities, region.levels, strict=True):
        if level is not None:
            for i, axis in enumerate(level.axes):
                cells = activity.shape[axis] - sum(level.extra[i])
                most[i] = max(most[i], (cells - 1) * level.strides[i] + 1)
    return tuple(-(-n // g) * g for n, g in zip(most, region.granularity, strict=True))


def boxes(
    region: BoxPlan, activities: tuple[Tensor, ...], whole: tuple[int, ...]
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The smallest box for each mask that holds its active cells on every level.

    Returns:
        Where they start (K, axes) and their sizes, in image positions. A box may end beyond the
        image; it is never larger than ``whole``.
    """
    masks = max(len(activity) for activity in activities)
    tile, granularity, most = (
        torch.tensor(each) for each in (region.tile, region.granularity, whole)
    )
    first, end = (most - 1).repeat(masks, 1), torch.zeros(masks, len(whole), dtype=torch.long)
    for activity, level in zip(activities, region.levels, strict=True):
        if level is None:
            continue
        for axis, low, high in spans(activity, level):
            stride = level.strides[axis]
            first[:, axis] = torch.minimum(first[:, axis], low * stride)
            # the last cell's first position: a box that ends there has that cell
            end[:, axis] = torch.maximum(end[:, axis], (high - 1) * stride + 1)
    first = first // tile * tile
    least = (LEAST - 1) * tile + 1  # so many cells at the coarsest level
    size = -(-torch.maximum(torch.minimum(end, most) - first, least) // granularity) * granularity
    return first, [tuple(row) for row in torch.minimum(size, most).tolist()]


def spans(activity: Tensor, level: GridMap) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each grid axis: the first active cell and the one after the last, (K,) each.

    Cells that padding has added are active but zero, as is everything around a box: left out. Where
    nothing is active, the span starts at the end and ends at the start.
    """
    for axis, (before, after) in zip(level.axes, level.extra, strict=True):
        if activity.shape[axis] > 1:
            activity = activity.narrow(axis, before, activity.shape[axis] - before - after)
    for i, axis in enumerate(level.axes):
        n = activity.shape[axis]
        others = tuple(other for other in range(1, activity.dim()) if other != axis)
        if activity.device.type == "cpu":  # numpy's is several times faster there
            lines = torch.from_numpy(activity.numpy().any(others))
        else:
            lines = activity.view(torch.uint8).amax(others).cpu() > 0
        if n == 1:  # activity is not known along this axis: it may be anywhere
            yield i, torch.zeros(len(lines), dtype=torch.long), torch.full((len(lines),), FAR)
            continue
        some = lines.any(1)
        low = lines.int().argmax(1)
        high = n - lines.flip(1).int().argmax(1)
        yield i, torch.where(some, low, FAR), torch.where(some, high, 0)
