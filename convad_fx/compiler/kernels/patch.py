"""What a network that recomputes only what a mask changes calls beside the other functions.

A patch holds the cells that a hidden box can change: those of the box and, for each grid axis,
``reach`` (before, after) more; some may lie outside the grid. ``places`` tell where the hidden
boxes of a batch lie: for each grid axis the image positions (N, tiles, size of a tile); a grid that
is ``stride`` times coarser takes every stride-th. A tile is a multiple of every stride, so sizes
are products: compiled code, which does not know the number of tiles, need not divide. ``whole`` is
the same tensor without a mask, (1, C, *grid).

On a CPU patches are copied fastest one by one, elsewhere all at once, by index. To torch.compile
each of these functions is one operation: kernels that it makes of them take minutes to compile, and
are no faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from convad_fx.compiler.kernels.box import Axes, along, taken
from convad_fx.compiler.kernels.gating import materialised

Strides = tuple[int, ...]
Places = tuple[Tensor, ...]
Reach = tuple[tuple[int, int], ...]


def around(
    whole: Tensor, places: Places, axes: Axes, strides: Strides, reach: Reach, fill: float = 0.0
) -> Tensor:
    """Patches (N, C, *patch) of what no mask has changed; `fill` outside the grid.

    >>> whole = torch.arange(1.0, 6.0).reshape(1, 1, 5)
    >>> around(whole, (torch.tensor([[[2, 3]], [[4, 5]]]),), (2,), (1,), ((1, 0),)).tolist()
    [[[2.0, 3.0, 4.0]], [[4.0, 5.0, 0.0]]]
    """
    return _call(_around, whole, places, axes, strides, _flat(reach), fill)


def surrounded(
    z: Tensor,
    whole: Tensor,
    places: Places,
    axes: Axes,
    strides: Strides,
    reach: Reach,
    wanted: Reach,
    fill: float = 0.0,
) -> Tensor:
    """Patches of another reach: what is new is of `whole`, and `fill` outside the grid.

    >>> z, whole = torch.zeros(1, 1, 2), torch.arange(1.0, 6.0).reshape(1, 1, 5)
    >>> surrounded(z, whole, (torch.tensor([[[2, 3]]]),), (2,), (1,), ((0, 0),), ((1, 2),))
    tensor([[[2., 0., 0., 5., 0.]]])
    """
    reaches = _flat(reach), _flat(wanted)
    return _call(_surrounded, z, whole, places, axes, strides, *reaches, fill)


def restored(
    z: Tensor, whole: Tensor, places: Places, axes: Axes, strides: Strides, reach: Reach
) -> Tensor:
    """Whole grids (N, C, *grid) again, with the patches in their places.

    >>> z, whole = torch.zeros(1, 1, 2), torch.arange(1.0, 6.0).reshape(1, 1, 5)
    >>> restored(z, whole, (torch.tensor([[[2, 3]]]),), (2,), (1,), ((0, 0),))
    tensor([[[1., 2., 0., 0., 5.]]])
    """
    return _call(_restored, z, whole, places, axes, strides, _flat(reach))


def active(activity: Tensor, places: Places, axes: Axes, strides: Strides, reach: Reach) -> Tensor:
    """The patches of activities (N or 1, C, *grid); outside the grid nothing is active.

    >>> rows = torch.tensor([[[0, 1]]])
    >>> active(torch.ones(1, 1, 3, dtype=torch.bool), (rows,), (2,), (1,), ((1, 0),))
    tensor([[[False,  True,  True]]])
    """
    return materialised(_call(_active, activity, places, axes, strides, _flat(reach)))


def first(place: Tensor, stride: int) -> Tensor:
    """(N, 1): the first cell of boxes in a grid of that stride."""
    return place[:, :1, 0] // stride


def side(place: Tensor, stride: int) -> int:
    """How many cells of a grid of that stride a box holds along an axis.

    >>> side(torch.zeros(1, 3, 32), 16)
    6
    """
    return place.shape[1] * (place.shape[2] // stride)


# -------------------------------------------------------------------- the same, as torch operations


def _around(
    whole: Tensor,
    places: Sequence[Tensor],
    axes: Sequence[int],
    strides: Sequence[int],
    reach: Sequence[int],
    fill: float,
) -> Tensor:
    starts, sizes = _frame(places, strides, reach)
    if _one_by_one(whole):
        z = _of_size(whole, places, axes, sizes).fill_(fill)
        return _laid(z, starts, whole, None, axes, whole)
    dims = len(axes)
    cells = [
        along((start + _count(n, whole)).clamp(0, whole.shape[axis] - 1), 1 + i, 1 + dims)
        for i, (start, n, axis) in enumerate(zip(starts, sizes, axes, strict=True))
    ]
    grid_first = whole[0].movedim([axis - 1 for axis in axes], list(range(dims)))
    z = grid_first[tuple(cells)].movedim(list(range(1, 1 + dims)), list(axes)).contiguous()
    return z.masked_fill_(~_on_grid(starts, sizes, axes, whole), fill)


def _active(
    activity: Tensor,
    places: Sequence[Tensor],
    axes: Sequence[int],
    strides: Sequence[int],
    reach: Sequence[int],
) -> Tensor:
    starts, sizes = _frame(places, strides, reach)
    if _one_by_one(activity):
        z = _of_size(activity, places, axes, sizes).fill_(False)
        return _laid(z, starts, activity, None, axes, activity)
    z = activity
    for start, n, axis in zip(starts, sizes, axes, strict=True):
        z = taken(z, (start + _count(n, z)).clamp(0, activity.shape[axis] - 1), axis)
    return z & _on_grid(starts, sizes, axes, activity)


def _surrounded(
    z: Tensor,
    whole: Tensor,
    places: Sequence[Tensor],
    axes: Sequence[int],
    strides: Sequence[int],
    reach: Sequence[int],
    wanted: Sequence[int],
    fill: float,
) -> Tensor:
    result = _around(whole, places, axes, strides, wanted, fill)
    starts, _ = _frame(places, strides, reach)
    frame, most = _frame(places, strides, wanted)
    if _one_by_one(z):
        return _laid(result, frame, z, starts, axes, whole)
    inside = _on_grid(frame, most, axes, whole)
    return _overlaid(z, result, [f - s for f, s in zip(frame, starts, strict=True)], inside, axes)


def _restored(
    z: Tensor,
    whole: Tensor,
    places: Sequence[Tensor],
    axes: Sequence[int],
    strides: Sequence[int],
    reach: Sequence[int],
) -> Tensor:
    starts, _ = _frame(places, strides, reach)
    if _one_by_one(z):
        result = whole.repeat(len(z), *[1] * (whole.dim() - 1))
        return _laid(result, None, z, starts, axes, whole)
    inside = torch.ones((), dtype=torch.bool, device=z.device)
    return _overlaid(z, whole, [-start for start in starts], inside, axes)


def _one_by_one(z: Tensor) -> bool:
    return z.device.type == "cpu"


def _overlaid(
    z: Tensor, under: Tensor, starts: list[Tensor], inside: Tensor, axes: Sequence[int]
) -> Tensor:
    """Patches over others, of which each starts at some cell of the patch, by index."""
    over = z
    for start, axis in zip(starts, axes, strict=True):
        cell, n = start + _count(under.shape[axis], z), z.shape[axis]
        over = taken(over, cell.clamp(0, n - 1), axis)
        inside = inside & along((cell >= 0) & (cell < n), axis, z.dim())
    return torch.where(inside, over, under)


def _laid(
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
    rows = zip(places, strides, reach[::2], strict=True)
    starts = [first(place, stride) - before for place, stride, before in rows]
    return starts, _sizes(places, strides, reach)


def _sizes(places: Sequence[Tensor], strides: Sequence[int], reach: Sequence[int]) -> list[int]:
    rows = zip(places, strides, reach[::2], reach[1::2], strict=True)
    return [side(place, stride) + before + after for place, stride, before, after in rows]


def _of_size(
    whole: Tensor, places: Sequence[Tensor], axes: Sequence[int], sizes: Sequence[int]
) -> Tensor:
    """Patches without values."""
    shape = [places[0].shape[0], *whole.shape[1:]]
    for axis, n in zip(axes, sizes, strict=True):
        shape[axis] = n
    return whole.new_empty(shape)


def _count(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device)


def _on_grid(
    starts: list[Tensor], sizes: Sequence[int], axes: Sequence[int], whole: Tensor
) -> Tensor:
    """Which cells of patches lie on the grid."""
    inside = torch.ones((), dtype=torch.bool, device=whole.device)
    for start, n, axis in zip(starts, sizes, axes, strict=True):
        cell = start + _count(n, whole)
        inside = inside & along((cell >= 0) & (cell < whole.shape[axis]), axis, whole.dim())
    return inside


def _flat(reach: Reach) -> list[int]:
    return [n for pair in reach for n in pair]


def _like_around(*args: Any) -> Tensor:
    whole, places, axes, strides, reach, *_ = args
    return _of_size(whole, places, axes, _sizes(places, strides, reach))


def _like_surrounded(*args: Any) -> Tensor:
    _, whole, places, axes, strides, _, wanted, _ = args
    return _of_size(whole, places, axes, _sizes(places, strides, wanted))


def _like_restored(*args: Any) -> Tensor:
    z, whole, *_ = args
    return torch.empty((z.shape[0], *whole.shape[1:]), dtype=whole.dtype, device=whole.device)


_OPERATIONS: dict[Callable[..., Tensor], Any] = {}
for _function, _shape in (
    (_around, _like_around),
    (_active, _like_around),
    (_surrounded, _like_surrounded),
    (_restored, _like_restored),
):
    _name = f"convad_fx::{_function.__name__.strip('_')}"
    _OPERATIONS[_function] = torch.library.custom_op(_name, _function, mutates_args=())
    _OPERATIONS[_function].register_fake(_shape)


def _call(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """The function itself, or as an operation where only shapes are known."""
    known = not (torch.compiler.is_compiling() or isinstance(args[0], FakeTensor))
    return function(*args) if known else _OPERATIONS[function](*args)
