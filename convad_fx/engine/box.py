"""Masks that keep little, on the boxes that hold what they keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convad_fx.compiler.lowering.box import BoxPlan
from convad_fx.compiler.lowering.grid_map import GridMap
from convad_fx.engine.batch_size import MIN_ROWS, BatchSize
from convad_fx.engine.bucketing import Size
from convad_fx.engine.chunk import Chunk, mark_dynamic, rows_of
from convad_fx.engine.strategy import Parts, SizedStrategy

#: Larger than the index of any cell.
UNBOUNDED = 1 << 40


class BoxStrategy(SizedStrategy):
    """Masks on the smallest boxes that hold their active cells on every level.

    Args:
        enabled: if not, all boxes are as large as the image, for measurements.

    Attributes:
        activities: of all masks, on whole grids; () where the network has no code for boxes.
        whole: size of a box that stands for the whole image.
        starts: of the boxes, in image positions, (K, axes).
    """

    name = "box"

    def __init__(
        self, plan: BoxPlan, parts: Parts, chunk: Chunk, batch: BatchSize, *, enabled: bool = True
    ) -> None:
        self.plan, self.parts, self.chunk, self.batch = plan, parts, chunk, batch
        self.cost_model, self.unit, self.tile = plan.work, plan.granularity, plan.tile
        self.activities: tuple[Tensor, ...] = ()
        self.whole = plan.image_size
        self.starts = torch.zeros(len(chunk), len(self.whole), dtype=torch.long)
        if "box" in parts:
            # two masks at least: activities that are the same for all then have one row
            masks = chunk.masks
            masks = masks if len(masks) > 1 else masks.expand(MIN_ROWS, *masks.shape[1:])
            self.activities = parts["box_activities"](chunk.x[:1], masks)
            self.whole = whole_box(plan, self.activities)
        self.sizes = [self.whole] * len(chunk)
        if "box" in parts and enabled:
            starts, sizes = smallest_boxes(plan, self.activities, self.whole)
            self.starts, self.sizes = starts[: len(chunk)], sizes[: len(chunk)]
        self.costs: list[float] = self.cost_model.shares(np.array(self.sizes)).tolist()

    def call(self, size: Size, members: list[int]) -> tuple[Any, ...]:
        """Code for boxes, images, cells, activities."""
        x = rows_of(self.chunk.x, members)
        return self.parts["box"], x, *self.cells_and_activities(size, members)

    def cells_and_activities(self, size: Size, members: list[int]) -> list[Tensor]:
        """For each grid axis and stride the cells of the boxes (N, n); then activities."""
        cells = [
            axis_cells(self.starts[members, axis], size[axis], stride).to(self.chunk.x.device)
            for axis, stride in self.plan.cells
        ]
        activities = [rows_of(activity, members) for activity in self.activities]
        return [*(mark_dynamic(cell, 0, 1) for cell in cells), *activities]


def axis_cells(starts: Tensor, size: int, stride: int) -> Tensor:
    """Cells (N, n) along an axis, of boxes of this size that start at these positions (N,).

    >>> axis_cells(torch.tensor([0, 4]), size=5, stride=2)
    tensor([[0, 1, 2],
            [2, 3, 4]])
    """
    return starts[:, None] // stride + torch.arange(-(-size // stride))


def whole_box(plan: BoxPlan, activities: tuple[Tensor, ...]) -> Size:
    """The smallest box that holds the whole grid of every level, which padding may enlarge."""
    most = list(plan.image_size)
    for activity, level in zip(activities, plan.levels, strict=True):
        if level is not None:
            for i, axis in enumerate(level.axes):
                cells = activity.shape[axis] - sum(level.extra[i])
                most[i] = max(most[i], (cells - 1) * level.strides[i] + 1)
    return tuple(-(-n // unit) * unit for n, unit in zip(most, plan.granularity, strict=True))


def smallest_boxes(
    plan: BoxPlan, activities: tuple[Tensor, ...], whole: Size
) -> tuple[Tensor, list[Size]]:
    """The smallest box for each mask that holds its active cells on every level.

    Returns:
        Starts (K, axes) and sizes, in image positions. A box may end beyond the image, but is
        never larger than ``whole``.
    """
    masks = max(len(activity) for activity in activities)
    tile, granularity, most = (torch.tensor(n) for n in (plan.tile, plan.granularity, whole))
    starts, ends = (most - 1).repeat(masks, 1), torch.zeros(masks, len(whole), dtype=torch.long)
    for activity, level in zip(activities, plan.levels, strict=True):
        if level is None:
            continue
        for axis, low, high in active_spans(activity, level):
            stride = level.strides[axis]
            starts[:, axis] = torch.minimum(starts[:, axis], low * stride)
            # the first position of the last cell: a box that ends there has that cell
            ends[:, axis] = torch.maximum(ends[:, axis], (high - 1) * stride + 1)
    starts = starts // tile * tile
    least = (MIN_ROWS - 1) * tile + 1  # two cells at the coarsest level
    sizes = torch.maximum(torch.minimum(ends, most) - starts, least)
    sizes = torch.minimum(-(-sizes // granularity) * granularity, most)
    return starts, [tuple(row) for row in sizes.tolist()]


def active_spans(activity: Tensor, level: GridMap) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each grid axis: the first active cell and the one after the last, (K,) each.

    Cells that padding has added do not count: they are active but zero, as is everything around a
    box. Where nothing is active, the span starts at the end and ends at the start.
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
        if n == 1:  # one cell for all positions of this axis
            yield i, torch.zeros(len(lines), dtype=torch.long), torch.full((len(lines),), UNBOUNDED)
            continue
        active = lines.any(1)
        low = lines.int().argmax(1)
        high = n - lines.flip(1).int().argmax(1)
        yield i, torch.where(active, low, UNBOUNDED), torch.where(active, high, 0)
