"""Functions that emitted code calls to recompute only what a mask changes.

A patch holds the cells that a hidden box can change: those of the box and, for each grid axis,
``reach`` (before, after) more; some may lie outside the grid. ``places`` says where the hidden
boxes of a batch lie: for each grid axis the image positions (N, tiles, size of a tile); a grid that
is ``stride`` times coarser takes every stride-th. A tile is a multiple of every stride, so sizes
are products: compiled code, which does not know the number of tiles, need not divide. ``whole`` is
the same tensor without a mask, (1, C, *grid).

On a CPU patches are copied fastest one by one, elsewhere all at once, by index. To torch.compile
each of these functions is one operation: kernels that it makes of them take minutes to compile, and
are no faster. Operations take each reach as one flat list.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from convad_fx.compiler.kernels.box import along, gather_cells
from convad_fx.compiler.kernels.gating import materialised

Reach = tuple[tuple[int, int], ...]


def _operation(like: Callable[..., Tensor]) -> Callable[[Callable[..., Tensor]], Any]:
    """Make a function one operation of torch where it is compiled, or only shapes are known.

    Args:
        like: from the same arguments, a tensor of the result's shape and dtype.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name = f"convad_fx::{function.__name__.strip('_')}"
        operation: Any = torch.library.custom_op(name, function, mutates_args=())
        operation.register_fake(like)

        @functools.wraps(function)
        def call(*args: Any) -> Tensor:
            eager = not (torch.compiler.is_compiling() or isinstance(args[0], FakeTensor))
            return (function if eager else operation)(*map(_flat, args))

        return call

    return decorate


def _flat(value: Any) -> Any:
    """A reach as a flat list; anything else as it is."""
    is_reach = isinstance(value, tuple) and len(value) > 0 and isinstance(value[0], tuple)
    return [n for pair in value for n in pair] if is_reach else value


def _like_patch(whole: Tensor, *args: Any) -> Tensor:
    places, axes, strides, reach, *_ = args
    return _empty_patches(whole, places, axes, _frame(places, strides, reach)[1])


def _like_widened(*args: Any) -> Tensor:
    _, whole, places, axes, strides, _, wanted, *_ = args
    return _empty_patches(whole, places, axes, _frame(places, strides, wanted)[1])


def _like_whole(z: Tensor, whole: Tensor, *_: Any) -> Tensor:
    return whole.new_empty((z.shape[0], *whole.shape[1:]))


@_operation(_like_patch)
def cut_patch(
    whole: Tensor,
    places: Sequence[Tensor],
    axes: Sequence[int],
    strides: Sequence[int],
    reach: Sequence[int],
    fill: float = 0.0,
) -> Tensor:
    """Patches (N, C, *patch) of what no mask has changed; `fill` outside the grid.

    >>> whole = torch.arange(1.0, 6.0).reshape(1, 1, 5)
    >>> cut_patch(whole, (torch.tensor([[[2, 3]], [[4, 5]]]),), (2,), (1,), ((1, 0),)).tolist()
    [[[2.0, 3.0, 4.0]], [[4.0, 5.0, 0.0]]]
    """
    starts, sizes = _frame(places, strides, reach)
    if _one_by_one(whole):
        z = _empty_patches(whole, places, axes, sizes).fill_(fill)
        return _copy_cells(z, starts, whole, None, axes, whole)
    dims = len(axes)
    cells = [
        along((start + _arange(n, whole)).clamp(0, whole.shape[axis] - 1), 1 + i, 1 + dims)
        for i, (start, n, axis) in enumerate(zip(starts, sizes, axes, strict=True))
    ]
    grid_first = whole[0].movedim([axis - 1 for axis in axes], list(range(dims)))
    z = grid_first[tuple(cells)].movedim(list(range(1, 1 + dims)), list(axes)).contiguous()
    return z.masked_fill_(~_on_grid(starts, sizes, axes, whole), fill)


@_operation(_like_patch)
def _cut_activity_patch(
    activity: Tensor,
    places: Sequence[Tensor],
    axes: Sequence[int],
    strides: Sequence[int],
    reach: Sequence[int],
) -> Tensor:
    starts, sizes = _frame(places, strides, reach)
    if _one_by_one(activity):
        z = _empty_patches(activity, places, axes, sizes).fill_(False)
        return _copy_cells(z, starts, activity, None, axes, activity)
    z = activity
    for start, n, axis in zip(starts, sizes, axes, strict=True):
        z = gather_cells(z, (start + _arange(n, z)).clamp(0, activity.shape[axis] - 1), axis)
    return z & _on_grid(starts, sizes, axes, activity)


def cut_activity_patch(activity: Tensor, *where: Any) -> Tensor:
    """Patches of activities (N or 1, C, *grid); outside the grid nothing is active.

    >>> rows = torch.tensor([[[0, 1]]])
    >>> cut_activity_patch(torch.ones(1, 1, 3, dtype=torch.bool), (rows,), (2,), (1,), ((1, 0),))
    tensor([[[False,  True,  True]]])
    """
    return materialised(_cut_activity_patch(activity, *where))


@_operation(_like_widened)
def widen_patch(
    z: Tensor,
    whole: Tensor,
    places: Sequence[Tensor],
    axes: Sequence[int],
    strides: Sequence[int],
    reach: Sequence[int],
    wanted: Sequence[int],
    fill: float = 0.0,
) -> Tensor:
    """Patches of another reach: new cells are those of `whole`, and `fill` outside the grid.

    >>> z, whole = torch.zeros(1, 1, 2), torch.arange(1.0, 6.0).reshape(1, 1, 5)
    >>> widen_patch(z, whole, (torch.tensor([[[2, 3]]]),), (2,), (1,), ((0, 0),), ((1, 2),))
    tensor([[[2., 0., 0., 5., 0.]]])
    """
    result = cut_patch(whole, places, axes, strides, wanted, fill)
    starts, _ = _frame(places, strides, reach)
    frame, most = _frame(places, strides, wanted)
    if _one_by_one(z):
        return _copy_cells(result, frame, z, starts, axes, whole)
    inside = _on_grid(frame, most, axes, whole)
    return _overlay(z, result, [f - s for f, s in zip(frame, starts, strict=True)], inside, axes)


@_operation(_like_whole)
def paste_patch(
    z: Tensor,
    whole: Tensor,
    places: Sequence[Tensor],
    axes: Sequence[int],
    strides: Sequence[int],
    reach: Sequence[int],
) -> Tensor:
    """Whole grids (N, C, *grid) again, with the patches in their places.

    >>> z, whole = torch.zeros(1, 1, 2), torch.arange(1.0, 6.0).reshape(1, 1, 5)
    >>> paste_patch(z, whole, (torch.tensor([[[2, 3]]]),), (2,), (1,), ((0, 0),))
    tensor([[[1., 2., 0., 0., 5.]]])
    """
    starts, _ = _frame(places, strides, reach)
    if _one_by_one(z):
        result = whole.repeat(len(z), *[1] * (whole.dim() - 1))
        return _copy_cells(result, None, z, starts, axes, whole)
    inside = torch.ones((), dtype=torch.bool, device=z.device)
    return _overlay(z, whole, [-start for start in starts], inside, axes)


# --------------------------------------------------------------------------- where patches lie


def _one_by_one(z: Tensor) -> bool:
    return z.device.type == "cpu"


def _overlay(
    z: Tensor, under: Tensor, starts: list[Tensor], inside: Tensor, axes: Sequence[int]
) -> Tensor:
    """Patches over others, of which each starts at some cell of the patch, by index."""
    over = z
    for start, axis in zip(starts, axes, strict=True):
        cell, n = start + _arange(under.shape[axis], z), z.shape[axis]
        over = gather_cells(over, cell.clamp(0, n - 1), axis)
        inside = inside & along((cell >= 0) & (cell < n), axis, z.dim())
    return torch.where(inside, over, under)


def _copy_cells(
    to: Tensor,
    frame: list[Tensor] | None,
    of: Tensor,
    starts: list[Tensor] | None,
    axes: Sequence[int],
    whole: Tensor,
) -> Tensor:
    """Copies, one by one, the cells of the grid that both hold. No starts: the whole grid."""
    origin = [[0] * len(axes)] * len(to)
    to_starts = origin if frame is None else torch.cat(frame, 1).tolist()
    of_starts = origin if starts is None else torch.cat(starts, 1).tolist()
    for i, (a, b) in enumerate(zip(to_starts, of_starts, strict=True)):
        into, out = [slice(None)] * (to.dim() - 1), [slice(None)] * (to.dim() - 1)
        for k, axis in enumerate(axes):
            low = max(a[k], b[k], 0)
            high = min(a[k] + to.shape[axis], b[k] + of.shape[axis], whole.shape[axis])
            into[axis - 1] = slice(low - a[k], max(low, high) - a[k])
            out[axis - 1] = slice(low - b[k], max(low, high) - b[k])
        to[i][tuple(into)] = of[i if len(of) > 1 else 0][tuple(out)]
    return to


def _frame(
    places: Sequence[Tensor], strides: Sequence[int], reach: Sequence[int]
) -> tuple[list[Tensor], list[int]]:
    """Where patches start, (N, 1) for each grid axis, and their size."""
    rows = list(zip(places, strides, reach[::2], reach[1::2], strict=True))
    starts = [place[:, :1, 0] // stride - before for place, stride, before, _ in rows]
    return starts, [
        place.shape[1] * (place.shape[2] // stride) + before + after
        for place, stride, before, after in rows
    ]


def _empty_patches(
    whole: Tensor, places: Sequence[Tensor], axes: Sequence[int], sizes: Sequence[int]
) -> Tensor:
    shape = [places[0].shape[0], *whole.shape[1:]]
    for axis, n in zip(axes, sizes, strict=True):
        shape[axis] = n
    return whole.new_empty(shape)


def _arange(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device)


def _on_grid(
    starts: list[Tensor], sizes: Sequence[int], axes: Sequence[int], whole: Tensor
) -> Tensor:
    inside = torch.ones((), dtype=torch.bool, device=whole.device)
    for start, n, axis in zip(starts, sizes, axes, strict=True):
        cell = start + _arange(n, whole)
        inside = inside & along((cell >= 0) & (cell < whole.shape[axis]), axis, whole.dim())
    return inside
