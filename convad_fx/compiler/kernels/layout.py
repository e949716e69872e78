"""Activity after operations that move elements: reordered axes, reshapes, padding, indexing ..."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convad_fx.compiler.kernels.padding import Pairs, copy_padded, padded


def rearrange(activity: Tensor, axes: tuple[int | None, ...]) -> Tensor:
    """Reorder axes. None is a new axis of size 1; axes that are not listed have size 1 and go.

    >>> rearrange(torch.ones(2, 1, 5, 7, dtype=torch.bool), (0, 2, 3, None)).shape
    torch.Size([2, 5, 7, 1])
    """
    kept = [axis for axis in axes if axis is not None]
    dropped = [axis for axis in range(activity.dim()) if axis not in kept]
    order = sorted(kept)
    activity = activity.squeeze(dropped) if dropped else activity
    activity = activity.permute([order.index(axis) for axis in kept])
    return activity[tuple(None if axis is None else slice(None) for axis in axes)]


def reshaped(
    activity: Tensor,
    source: Tensor,
    like: Tensor,
    spread: tuple[int, ...],
    full: tuple[bool, ...],
    batch: tuple[int, int] | None = None,
    collapsed: tuple[int, ...] = (),
) -> Tensor:
    """The activity of ``like``, a reshape of ``source``.

    Args:
        spread: axes of the source that are merged with others, and must be expanded first.
        full: the axes of the result along which activity may differ; the others have size 1.
        batch: the axis of the batch before and after, where either is not axis 0 and nothing else.
        collapsed: axes of the result to store with size 1: activity does not differ along them.
    """
    sizes = [source.shape[i] if i in spread else n for i, n in enumerate(activity.shape)]
    shape = [n if wide else 1 for n, wide in zip(like.shape, full, strict=True)]
    if batch is not None:
        before, after = batch
        if before in spread:  # one image may meet many masks, and the reverse
            sizes[before] = max(source.shape[before], activity.shape[before])
        shape[after] = -1
        result = activity.expand(sizes).reshape(shape)
        for axis in collapsed:
            result = result.narrow(axis, 0, 1)
        return result
    return activity.expand(sizes).reshape(activity.shape[0], *shape[1:])


def pad_activity(
    activity: Tensor, padding: Pairs, mode: str = "constant", value: bool = True
) -> Tensor:
    """Activity after explicit padding of the last axes. ``value``: that of padded elements."""
    if mode == "constant" or all(lo <= 0 and hi <= 0 for lo, hi in padding):
        return padded(activity, padding, value)
    return copy_padded(activity, padding, mode)


def concatenated(
    activities: Sequence[Tensor | bool], tensors: Sequence[Tensor | None], axis: int
) -> Tensor:
    """Activity after concatenating tensors along an axis.

    Args:
        activities: of the tensors; True or False for a tensor that does not depend on the image.
        tensors: the concatenated tensors; None for one of size 1 along the axis.
    """
    tracked = [a for a in activities if isinstance(a, Tensor)]
    shape = list(
        torch.broadcast_shapes(  # type: ignore[no-untyped-call]
            *([n if i != axis else 1 for i, n in enumerate(a.shape)] for a in tracked)
        )
    )
    pieces = []
    for activity, tensor in zip(activities, tensors, strict=True):
        shape[axis] = 1 if tensor is None else tensor.shape[axis]
        pieces.append(
            activity.expand(shape)
            if isinstance(activity, Tensor)
            else torch.full(shape, activity, dtype=torch.bool, device=tracked[0].device)
        )
    return torch.cat(pieces, dim=axis)


def index_activity(activity: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Activity after indexing one axis with a list of indices."""
    return activity[(slice(None),) * axis + (indices,)]


def upsampled(activity: Tensor, factor: int, axes: tuple[int, ...] = (2, 3)) -> Tensor:
    """Activity after a pixel shuffle, if it does not differ between channels."""
    for axis in axes:
        activity = activity.repeat_interleave(factor, dim=axis)
    return activity


def spread_as(activity: Tensor, like: Tensor) -> Tensor:
    """The activity expanded to the shape of ``like``, to which a relabelling can be applied."""
    return activity.expand(activity.shape[0], *like.shape[1:])
