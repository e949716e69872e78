"""What a network that runs on boxes calls beside the functions of `activity`.

A box is the part of the image, and of every grid computed from it, that holds all active cells of
one mask. Around it everything reads as zero, and zero padding is exactly that. ``places`` tell
where the boxes of a batch lie: for each grid axis the image positions (N, tiles, size of a tile); a
grid that is ``stride`` times coarser takes every stride-th. A tile is a multiple of every stride,
so sizes are products: compiled code, which does not know the number of tiles, need not divide.

Grids have ``axes`` in their tensor, a ``stride`` against the image for each, and ``extra`` cells
before and after them where an operation has padded them explicitly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convad_fx.compiler.activity import written

Axes = tuple[int, ...]
Strides = tuple[int, ...]
Extra = tuple[tuple[int, int], ...]


def cut(
    z: Tensor, places: tuple[Tensor, ...], axes: Axes, strides: Strides, extra: Extra
) -> Tensor:
    """The boxes of whole grids: (N or 1, C, *grid) -> (N, C, *box). Outside the grid: any value."""
    for place, axis, stride, more in zip(places, axes, strides, extra, strict=True):
        index = _positions(place, stride, more)
        z = taken(z, index.clamp(max=z.shape[axis] - 1), axis)
    return z


def cut_activity(
    activity: Tensor, places: tuple[Tensor, ...], axes: Axes, strides: Strides, extra: Extra
) -> Tensor:
    """As `cut`; outside the grid nothing is active.

    >>> rows = torch.tensor([[[2, 3], [4, 5]]])
    >>> cut_activity(torch.ones(1, 1, 2, dtype=torch.bool), (rows,), (2,), (2,), ((0, 0),))
    tensor([[[ True, False]]])
    """
    result = cut(activity, places, axes, strides, extra)
    for place, axis, stride, more in zip(places, axes, strides, extra, strict=True):
        inside = _positions(place, stride, more) < activity.shape[axis]
        result = result & along(inside, axis, activity.dim())
    return written(result)


def placed(
    z: Tensor,
    places: tuple[Tensor, ...],
    axes: Axes,
    strides: Strides,
    canvas: tuple[int, ...],
    fill: float = 0.0,
) -> Tensor:
    """Whole grids again: boxes (N, C, *box) back in their places, `fill` around them."""
    for place, axis, stride, size in zip(places, axes, strides, canvas, strict=True):
        index = torch.arange(size, device=z.device) - first(place, stride)
        inside = (index >= 0) & (index < z.shape[axis])
        z = taken(z, index.clamp(0, z.shape[axis] - 1), axis)
        z = z.masked_fill(~along(inside, axis, z.dim()), fill)
    return z


def shape_only(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A tensor (N, *sizes) without values, for activities that are shaped after the model's."""
    return torch.empty((x.shape[0], *sizes), device="meta")


def fitted(z: Tensor, places: tuple[Tensor, ...], strides: Strides) -> Tensor:
    """The first cells of each grid axis, as many as the box has at this stride."""
    for axis, (place, stride) in enumerate(zip(places, strides, strict=True), start=2):
        z = z.narrow(axis, 0, side(place, stride))
    return z


def of_whole(mean: Tensor, box: Tensor, axes: Axes, canvas: tuple[int, ...]) -> Tensor:
    """A mean over a box as the mean over the whole grid, all zero around the box."""
    cells, full = 1, 1
    for axis, size in zip(axes, canvas, strict=True):
        cells, full = cells * box.shape[axis], full * size
    return mean * (cells / full)


def first(place: Tensor, stride: int) -> Tensor:
    """(N, 1): the first cell of boxes in a grid of that stride."""
    return place[:, :1, 0] // stride


def side(place: Tensor, stride: int) -> int:
    """How many cells of a grid of that stride a box holds along an axis.

    >>> side(torch.zeros(1, 3, 32), 16)
    6
    """
    return place.shape[1] * (place.shape[2] // stride)


def _positions(place: Tensor, stride: int, extra: tuple[int, int]) -> Tensor:
    """(N, size of the box at that stride): where its cells lie in the whole grid."""
    steps = torch.arange(side(place, stride) + sum(extra), device=place.device)
    return first(place, stride) + steps


def taken(z: Tensor, index: Tensor, axis: int) -> Tensor:
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
