"""Activity after operations that slide a window over the grid.

Counts are sums of shifted slices in integers: exact, the same under autocast, for any number of
grid axes, and no kernel but those that torch.compile writes itself.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from convad_fx.compiler.kernels.gating import is_compiled_for_cpu, materialised
from convad_fx.compiler.kernels.padding import (
    Pairs,
    ceil_mode_extra,
    copy_padded,
    padded,
    same_padding,
)
from convad_fx.compiler.kernels.phi import exceeds_tau, full_to_active

SamePairs = tuple[tuple[int, int] | None, ...]


def window_activity(
    activity: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: SamePairs,
    dilation: tuple[int, ...],
    tau: float = 0.0,
    *,
    whole: bool = False,
    ceil_mode: bool = False,
    mode: str = "constant",
    groups: int = 0,
    channels: int = 0,
    exists: Tensor | None = None,
) -> Tensor:
    """Activity of a window operation's output: where Phi > tau (docs/meaning.md, "Phi").

    Args:
        activity: (N, 1 or C, *grid).
        padding: (before, after) for each grid axis, None for TensorFlow's "SAME"; padded elements
            do not exist for Phi.
        whole: active only if every existing element of the window is (``input="strict"``).
        mode: "constant", or a padding mode that copies (reflect, replicate, circular).
        groups: channel groups that the operation combines; 0 if it combines no channels.
        channels: output channels, needed when ``groups`` > 1.
        exists: (1, 1 or C, *grid), where elements of the input exist; None: everywhere.

    Returns:
        (N, 1 or channels, *output grid).
    """
    geometry = (kernel, stride, padding, dilation, ceil_mode, mode)
    if groups:
        activity = _in_groups(activity, groups)
        exists = None if exists is None else _in_groups(exists, groups)
    active, existing = _counts(
        activity, exists, geometry, tau=tau, whole=whole, combine=bool(groups)
    )
    result = exceeds_tau(active, existing, tau, whole)
    if groups > 1:
        result = result.repeat_interleave(channels // groups, dim=1)
    return result


def window_renormalise(
    z: Tensor,
    activity: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: SamePairs,
    dilation: tuple[int, ...],
    *,
    ceil_mode: bool = False,
    exists: Tensor | None = None,
) -> Tensor:
    """Correct ``z``, a mean over windows, so that it is divided by the active count."""
    geometry = (kernel, stride, padding, dilation, ceil_mode, "constant")
    active, existing = _counts(activity, exists, geometry, tau=1.0, whole=False, combine=False)
    return z * full_to_active(active, existing, z)


def transposed_activity(
    activity: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Pairs,
    dilation: tuple[int, ...],
    tau: float = 0.0,
    *,
    whole: bool = False,
    groups: int = 0,
    channels: int = 0,
    exists: Tensor | None = None,
) -> Tensor:
    """As `window_activity`, for a transposed convolution.

    It is a window over the input with ``stride - 1`` non-existing elements between its elements;
    ``padding`` is that of the transposed convolution, (before, after - output_padding).
    """
    if exists is None:
        exists = torch.ones_like(activity[:1, :1])
    if groups:
        activity, exists = _in_groups(activity, groups), _in_groups(exists, groups)
    outer = tuple(
        (d * (k - 1) - lo, d * (k - 1) - hi)
        for (lo, hi), k, d in zip(padding, kernel, dilation, strict=True)
    )
    ones = (1,) * len(kernel)
    active, existing = _counts(
        _spread(activity, stride),
        _spread(exists, stride),
        (kernel, ones, outer, dilation, False, "constant"),
        tau=1.0,
        whole=False,
        combine=bool(groups),
    )
    result = exceeds_tau(active, existing, tau, whole)
    if groups > 1:
        result = result.repeat_interleave(channels // groups, dim=1)
    return result


def _in_groups(activity: Tensor, groups: int) -> Tensor:
    """(N, C, *grid) -> (N, G, C/G, *grid), or (N, 1, 1, *grid) if C is 1."""
    n, c, *grid = activity.shape
    groups = groups if c > 1 else 1
    return activity.reshape(n, groups, c // groups, *grid)


def _counts(
    activity: Tensor,
    exists: Tensor | None,
    geometry: tuple,  # type: ignore[type-arg]
    *,
    tau: float,
    whole: bool,
    combine: bool,
) -> tuple[Tensor, Tensor | int | None]:
    """Numbers of active and existing elements in each window, for `exceeds_tau`.

    Where bool arithmetic suffices, the result and None. With ``combine``, axis 2 holds the channels
    of a group, and they are added up.
    """
    kernel, stride, padding, dilation, ceil_mode, mode = geometry
    grid = activity.shape[-len(kernel) :]
    padding = tuple(
        same_padding(n, k, s, d) if pair is None else pair
        for pair, n, k, s, d in zip(padding, grid, kernel, stride, dilation, strict=True)
    )
    if ceil_mode:
        padding = tuple(
            (lo, hi + ceil_mode_extra(n, k, s, lo, hi, d))
            for n, k, s, (lo, hi), d in zip(grid, kernel, stride, padding, dilation, strict=True)
        )
    if mode != "constant":
        activity = copy_padded(activity, padding, mode)
        exists = None if exists is None else copy_padded(exists, padding, mode)
        padding = ((0, 0),) * len(kernel)
    # A window can miss all elements only if the padding is as wide as the window.
    reads_some = exists is None and all(
        max(lo, hi) <= d * (k - 1) for (lo, hi), k, d in zip(padding, kernel, dilation, strict=True)
    )
    window = functools.partial(
        _over_window, kernel=kernel, stride=stride, padding=padding, dilation=dilation
    )

    def any_channel(t: Tensor) -> Tensor:
        return t.any(2) if combine else t

    if tau == 0 and reads_some and not whole:
        return window(any_channel(activity), operator.or_), None
    if whole:
        hidden = ~activity if exists is None else ~activity & exists
        return ~window(any_channel(hidden), operator.or_), None
    if exists is not None:
        activity = activity & exists
    numbers = activity.to(torch.int32)
    active = window(numbers.sum(2, dtype=torch.int32) if combine else numbers, operator.add)
    share_channels = activity.shape[2] if combine else 1
    if exists is None and all(lo == hi == 0 for lo, hi in padding):
        return active, math.prod(kernel) * share_channels
    if exists is None:
        exists = torch.ones_like(activity[:1, :1])
    # a channel axis of size 1 in `exists` stands for all the channels counted above
    scale = share_channels // exists.shape[2] if combine else 1
    present = exists.to(torch.int32)
    existing = window(present.sum(2, dtype=torch.int32) if combine else present, operator.add)
    return active, existing * scale


def neighbours(
    z: Tensor,
    activity: Tensor,
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
    *,
    exists: Tensor | None = None,
) -> Tensor:
    """``z`` as a convolution reads it under ``fill="neighbour"``.

    >>> z, activity = torch.tensor([[[1.0, 3, 9, 9]]]), torch.tensor([[[True, True, False, False]]])
    >>> neighbours(z, activity, kernel=(3,), dilation=(1,))
    tensor([[[1., 3., 3., 0.]]])

    An inactive element is the mean of the active existing elements of its channel within half a
    window, rounded down, to each side; zero if there are none.

    Args:
        z: (N, C, *grid).
        activity, exists: as in `window_activity`.
    """
    reach = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    counted = activity if exists is None else activity & exists
    counted = counted.expand(*counted.shape[:2], *z.shape[2:])
    # copied into a clone, because strides decide which kernels run, as in `gate`
    kept = z.expand(torch.broadcast_shapes(z.shape, counted.shape)).clone()  # type: ignore[no-untyped-call]
    around = functools.partial(
        _over_window,
        combine=operator.add,
        kernel=[2 * r + 1 for r in reach],
        stride=[1] * len(reach),
        padding=tuple((r, r) for r in reach),
        dilation=[1] * len(reach),
    )
    total = around(torch.where(counted, kept, 0))
    number = around(counted.to(torch.int32)).clamp(min=1)
    return kept.copy_(torch.where(activity, kept, total / number.to(z.dtype)))


def _over_window(
    t: Tensor,
    combine: Callable[[Tensor, Tensor], Tensor],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
) -> Tensor:
    """Reduce every window by combining shifted slices, one axis after the other.

    Padding adds zeros, which change neither "or" nor a sum, so axes can be padded one by one.
    """
    as_bool = t.dtype == torch.bool
    if as_bool and is_compiled_for_cpu(t):
        t = t.to(torch.int32)  # as `materialised` stores them, to save conversions in between
    axes = range(t.dim() - len(kernel), t.dim())
    for axis, k, s, pair, d in zip(axes, kernel, stride, padding, dilation, strict=True):
        t = padded(t, (pair, *((0, 0),) * (axes[-1] - axis)))
        if k == s == 1:
            continue
        count = (t.shape[axis] - d * (k - 1) - 1) // s + 1
        t = materialised(
            functools.reduce(
                combine, (_sliced(t, axis, i * d, i * d + (count - 1) * s + 1, s) for i in range(k))
            )
        )
    return t != 0 if as_bool and t.dtype != torch.bool else t


def _sliced(t: Tensor, axis: int, start: int, stop: int, step: int) -> Tensor:
    return t[(slice(None),) * axis + (slice(start, stop, step),)]


def _spread(activity: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Insert ``stride - 1`` False elements between neighbours on each grid axis."""
    first = activity.dim() - len(stride)
    for axis, s in enumerate(stride, start=first):
        if s == 1:
            continue
        n = activity.shape[axis]
        gaps = activity.new_zeros((*activity.shape[: axis + 1], s - 1, *activity.shape[axis + 1 :]))
        stuffed = torch.cat([activity.unsqueeze(axis + 1), gaps], dim=axis + 1)
        activity = _sliced(stuffed.flatten(axis, axis + 1), axis, 0, (n - 1) * s + 1, 1)
    return activity
