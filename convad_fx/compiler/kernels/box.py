"""Functions that emitted code calls to run on boxes.

A box is the part of the image, and of every grid computed from it, that holds all active cells of
one mask. Around it everything reads as zero, and zero padding is exactly that. ``cells`` says where
the boxes of a batch lie in a grid: for each of its axes, the cells (N, n). They are inputs, for
every stride, so compiled code knows all sizes and need not divide.

Grids have ``axes`` in their tensor, and ``extra`` cells before and after them where an operation
has padded them explicitly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convad_fx.compiler.kernels.gating import materialised

Cells = tuple[Tensor, ...]
Axes = tuple[int, ...]
Extra = tuple[tuple[int, int], ...]


def cut_box(z: Tensor, cells: Cells, axes: Axes, extra: Extra) -> Tensor:
    """The boxes of whole grids: (N or 1, C, *grid) -> (N, C, *box). Outside the grid: any value."""
    for cell, axis, more in zip(cells, axes, extra, strict=True):
        index = _with_extra(cell, more)
        z = gather_cells(z, index.clamp(max=z.shape[axis] - 1), axis)
    return z


def cut_activity_box(activity: Tensor, cells: Cells, axes: Axes, extra: Extra) -> Tensor:
    """As `cut_box`; outside the grid nothing is active.

    >>> rows = torch.tensor([[1, 2]])
    >>> cut_activity_box(torch.ones(1, 1, 2, dtype=torch.bool), (rows,), (2,), ((0, 0),))
    tensor([[[ True, False]]])
    """
    result = cut_box(activity, cells, axes, extra)
    for cell, axis, more in zip(cells, axes, extra, strict=True):
        inside = _with_extra(cell, more) < activity.shape[axis]
        result = result & along(inside, axis, activity.dim())
    return materialised(result)


def paste_box(
    z: Tensor, cells: Cells, axes: Axes, grid: tuple[int, ...], fill: float = 0.0
) -> Tensor:
    """Whole grids again: boxes (N, C, *box) back in their places, `fill` around them."""
    for cell, axis, size in zip(cells, axes, grid, strict=True):
        index = torch.arange(size, device=z.device) - cell[:, :1]
        inside = (index >= 0) & (index < z.shape[axis])
        z = gather_cells(z, index.clamp(0, z.shape[axis] - 1), axis)
        z = z.masked_fill(~along(inside, axis, z.dim()), fill)
    return z


def shape_only(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A tensor (N, *sizes) without values, for activities that are shaped after the model's."""
    return torch.empty((x.shape[0], *sizes), device="meta")


def fit_to_box(z: Tensor, cells: Cells, axes: Axes) -> Tensor:
    """The first cells along each axis, as many as the box has."""
    for cell, axis in zip(cells, axes, strict=True):
        z = z.narrow(axis, 0, cell.shape[1])
    return z


def trim(z: Tensor, axes: Axes, less: Extra) -> Tensor:
    """Fewer cells before and after, along each axis.

    >>> trim(torch.arange(5).reshape(1, 1, 5), (2,), ((1, 2),))
    tensor([[[1, 2]]])
    """
    for axis, (before, after) in zip(axes, less, strict=True):
        z = z.narrow(axis, before, z.shape[axis] - before - after)
    return z


def mean_over_grid(mean: Tensor, box: Tensor, axes: Axes, grid: tuple[int, ...]) -> Tensor:
    """A mean over a box as the mean over the whole grid, all zero around the box."""
    cells = math.prod([box.shape[axis] for axis in axes])
    return mean * (cells / math.prod(grid))


def _with_extra(cells: Tensor, extra: tuple[int, int]) -> Tensor:
    """(N, n + extra): where a box with what padding has added lies in the padded grid."""
    if not any(extra):
        return cells
    return cells[:, :1] + torch.arange(cells.shape[1] + sum(extra), device=cells.device)


def gather_cells(z: Tensor, index: Tensor, axis: int) -> Tensor:
    """Cells (N, n) along an axis. take_along_dim() would do, but ties what is compiled to sizes."""
    shape = [len(index), *z.shape[1:]]
    z = z.expand(shape)
    shape[axis] = index.shape[1]
    return z.gather(axis, along(index, axis, z.dim()).expand(shape))


def along(index: Tensor, axis: int, rank: int) -> Tensor:
    """(N, n) -> (N, 1, .., n, .., 1)."""
    shape = [1] * rank
    shape[0], shape[axis] = index.shape
    return index.reshape(shape)
