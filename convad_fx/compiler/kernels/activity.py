"""The tensor functions that emitted code calls. Activities are bool; True = active.

Named for how the emitted code reads: ``gate(relu, window_activity(mask, kernel=(3, 3), ...))``.
Counts are sums of shifted slices in integers: exact, the same under autocast, for any number of
grid axes, and no kernel but those that torch.compile writes itself.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from convad_fx.errors import ImageError, MaskError

Pairs = tuple[tuple[int, int], ...]
SamePairs = tuple[tuple[int, int] | None, ...]


def gate(z: Tensor, activity: Tensor, fill: float = 0.0) -> Tensor:
    """``where(activity, z, fill)``: what an operation that combines cells is given to read.

    >>> gate(torch.tensor([[1.0, float("nan")]]), torch.tensor([[True, False]]))
    tensor([[1., 0.]])
    """
    if z.dtype == torch.bool:
        return z & activity
    bits = _BITS.get(z.dtype) if fill == 0 else None
    if torch.is_grad_enabled() and z.requires_grad:
        bits = None  # which have no gradient
    if torch.compiler.is_compiling():  # which chooses strides anyway; one operation, fused
        # a refilled maximum over the whole image has no second axis
        few = z.dtype == torch.float32 and z.dim() > 1 and z.shape[1] < FEW_CHANNELS
        if bits is not None and few and _is_compiled_for_cpu(z):
            return _bitwise(z, activity, bits)
        return torch.where(activity, z, fill)
    repeated = len(z) == 1 != len(activity)  # for each mask; other axes of z are never the shorter
    if z.is_cuda and z.is_floating_point():
        result = torch.where(activity, z, fill)
        first = int(repeated)  # a batch of its own has no strides to keep
        if result.stride()[first:] == z.stride()[first:]:
            return result
    elif bits is not None and (repeated or z.is_contiguous() or not _has_gaps(z)):
        return _bitwise(z, activity, bits)  # one pass over the tensor, not two
    # A copy keeps the strides. where() may take the activity's, and masked_fill() makes its result
    # contiguous: the network would run other kernels than the model, or could not view() what
    # the model can.
    shape = (len(activity), *z.shape[1:]) if repeated else z.shape
    return _copied(z, shape).masked_fill_(~activity, fill)


def _bitwise(z: Tensor, activity: Tensor, bits: torch.dtype) -> Tensor:
    """The bits of every number and all ones, or none."""
    return (z.view(bits) & -activity.to(bits)).view(z.dtype)


#: Fewer than fill a vector of float32: inductor goes through them cell by cell, where `where` is a
#: branch whose side the processor has to guess. (Integers of 16 bits it never puts into vectors.)
FEW_CHANNELS = 8
#: Integers of the same size.
_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def _copied(z: Tensor, shape: Sequence[int]) -> Tensor:
    """A copy with the strides of ``z``, gaps included, as ``x[..., ::2]`` leaves them.

    Kernels add up in another order for other strides: Theorem 1 holds bit for bit only so. Where
    the batch is repeated, the gaps do not matter.
    """
    wide = z.expand(shape)
    if wide.shape != z.shape or not _has_gaps(z):
        return wide.clone()
    return torch.empty_strided(shape, z.stride(), dtype=z.dtype, device=z.device).copy_(z)


def _has_gaps(z: Tensor) -> bool:
    """Not every place of its memory is used, and none twice."""
    span = 1 + sum((n - 1) * step for n, step in zip(z.shape, z.stride(), strict=True))
    return span > z.numel() > 0 and 0 not in z.stride()


def checked_mask(
    x: Tensor,
    mask: Tensor | None,
    channels: int,
    size: tuple[int, ...] | None = None,
    rank: int = 4,
    like: Tensor | None = None,
) -> Tensor:
    """The mask, once it is known to fit the image: bool (N, 1, *grid); None means all kept.

    Args:
        x: the image batch (N, channels, *grid).
        mask: True = kept; its batch or the image's may be 1.
        size: the only grid size the graph is valid for, where a rule depends on it.
        like: a parameter of the network, whose dtype and device the image must have; None where the
            network casts what it is given.

    Raises:
        ImageError, MaskError: what was expected, what came, what to do.
    """
    if not isinstance(x, Tensor):
        raise ImageError(
            f"the image is a {type(x).__name__}; expected a tensor (N, {channels}, ...)",
            hint="stack images with torch.stack",
        )
    if x.dim() != rank or x.shape[1] != channels:
        grid = ("length", "height, width", "depth, height, width")[rank - 3]
        raise ImageError(
            f"the image has shape {tuple(x.shape)}; expected (N, {channels}, {grid})",
            hint="add the batch axis with x[None]" if x.dim() == rank - 1 else "",
        )
    if size is not None and tuple(x.shape[2:]) != size:
        raise ImageError(
            f"the image has grid {tuple(x.shape[2:])}, but this network was converted for {size}"
            " and uses sizes that depend on it",
            hint="convert again with an example of the new size",
        )
    if like is not None and x.device != like.device:
        raise ImageError(
            f"the image is on {x.device}, the network on {like.device}",
            hint="use x.to(device), or masked.to(device)",
        )
    if like is not None and x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ImageError(
            f"the image has dtype {x.dtype}; expected {like.dtype}, as the network has",
            hint=f"use x.to({like.dtype}), or masked.to({x.dtype})"
            if x.is_floating_point()
            else "normalise the image as the model expects",
        )
    if mask is None:
        return x.new_ones((1, 1, *x.shape[2:]), dtype=torch.bool)
    expected = f"expected bool of shape (N, 1, {', '.join(map(str, x.shape[2:]))})"
    if not isinstance(mask, Tensor):
        raise MaskError(
            f"the mask is a {type(mask).__name__}; {expected}", hint="use torch.as_tensor(mask)"
        )
    if mask.dtype != torch.bool:
        raise MaskError(
            f"the mask has dtype {mask.dtype}; {expected}, True = kept",
            hint="pass `mask > 0.5`: a cell is either kept or hidden, never by a fraction",
        )
    if mask.dim() != rank or mask.shape[1] != 1 or mask.shape[2:] != x.shape[2:]:
        raise MaskError(
            f"the mask has shape {tuple(mask.shape)}; {expected}",
            hint="one channel, the image's size; see mask[:, None] or mask[None, None]",
        )
    if mask.shape[0] != x.shape[0] and 1 not in (mask.shape[0], x.shape[0]):
        raise MaskError(
            f"{mask.shape[0]} masks for {x.shape[0]} images",
            hint="one batch size must be 1, or both the same",
        )
    if mask.device != x.device:
        raise MaskError(
            f"the mask is on {mask.device}, the image on {x.device}", hint="use mask.to(x.device)"
        )
    return written(mask)


def per_mask(x: Tensor, mask: Tensor) -> Tensor:
    """The image once per mask, as a view, where no gate does it."""
    return x.expand(max(x.shape[0], mask.shape[0]), *x.shape[1:])


def written(t: Tensor) -> Tensor:
    """The same bools or counts, which code compiled for a CPU writes down instead of inlining them.

    Inductor computes what is pointwise wherever it is read, here in every gate and in every window,
    with bounds that keep it from using vectors; and it takes a float for a bool by a detour.
    `as_strided` makes it store integers once, and read them as they are. Nothing happens in eager
    mode, on a GPU, when exporting, or to floats.
    """
    if t.is_floating_point() or not _is_compiled_for_cpu(t):
        return t
    # always a copy, fused with what makes t: as_strided of a slice counts in what it was cut from
    numbers = t.to(torch.int32, copy=True, memory_format=torch.contiguous_format)
    stored = torch.as_strided(numbers, numbers.shape, numbers.stride())
    return stored != 0 if t.dtype == torch.bool else stored


def _is_compiled_for_cpu(t: Tensor) -> bool:
    compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiled and t.device.type == "cpu"


# ------------------------------------------------------------------------------- windows


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
        padding: (before, after) for each grid axis, None for TensorFlow's "SAME"; padded cells do
            not exist for Phi.
        whole: active only where every cell read that exists is active (``input="strict"``).
        mode: "constant", or the padding mode that copies cells (reflect, replicate, circular).
        groups: channel groups combined by the operation; 0 where it combines none.
        channels: output channels, needed when ``groups`` > 1.
        exists: (1, 1 or C, *grid), where some cells of the input do not exist.

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
    result = _decide(active, existing, tau, whole)
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
    """A mean over windows, divided by the active count instead of the full one."""
    geometry = (kernel, stride, padding, dilation, ceil_mode, "constant")
    active, existing = _counts(activity, exists, geometry, tau=1.0, whole=False, combine=False)
    return z * _ratio(active, existing, z)


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

    It is a window over the input with ``stride - 1`` cells that do not exist between its cells;
    ``padding`` is the transposed one, (before, after - output_padding).
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
    result = _decide(active, existing, tau, whole)
    if groups > 1:
        result = result.repeat_interleave(channels // groups, dim=1)
    return result


def _in_groups(activity: Tensor, groups: int) -> Tensor:
    """(N, C, *grid) -> (N, G, C/G, *grid), or (N, 1, 1, *grid) where C is stored as 1."""
    n, c, *grid = activity.shape
    groups = groups if c > 1 else 1
    return activity.reshape(n, groups, c // groups, *grid)


def _decide(active: Tensor, existing: Tensor | int | None, tau: float, whole: bool) -> Tensor:
    if existing is None:  # _counts has already answered: a bool tensor
        return active
    if whole:
        return active == existing
    # num > tau * den in double: exact for every tau that is a binary fraction
    share = (
        active > existing * tau if isinstance(existing, int) else active > existing.double() * tau
    )
    return share if isinstance(existing, int) else share | (existing == 0)


def _ratio(active: Tensor, existing: Tensor | int | None, z: Tensor) -> Tensor:
    assert existing is not None  # None answers "any", which no ratio asks
    full = existing if isinstance(existing, Tensor) else torch.full_like(active, existing)
    exact = torch.float64 if z.dtype == torch.float64 else torch.float32
    ratio = full.to(exact) / active.clamp(min=1).to(exact)
    return torch.where(active > 0, ratio, 1.0).to(z.dtype)


def _counts(
    activity: Tensor,
    exists: Tensor | None,
    geometry: tuple,  # type: ignore[type-arg]
    *,
    tau: float,
    whole: bool,
    combine: bool,
) -> tuple[Tensor, Tensor | int | None]:
    """Active and existing cells in each window; (answer, None) where bool arithmetic suffices.

    With ``combine`` axis 2 holds the channels of a group and is summed away.
    """
    kernel, stride, padding, dilation, ceil_mode, mode = geometry
    grid = activity.shape[-len(kernel) :]
    padding = tuple(
        same_padding(n, k, s, d) if pair is None else pair
        for pair, n, k, s, d in zip(padding, grid, kernel, stride, dilation, strict=True)
    )
    if ceil_mode:
        padding = tuple(
            (lo, hi + _ceil_extra(n, k, s, lo, hi, d))
            for n, k, s, (lo, hi), d in zip(grid, kernel, stride, padding, dilation, strict=True)
        )
    if mode != "constant":
        activity = _copy_padded(activity, padding, mode)
        exists = None if exists is None else _copy_padded(exists, padding, mode)
        padding = ((0, 0),) * len(kernel)
    # A window can miss every cell only if the padding is as wide as the window.
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
    # existing cells along a channel axis stored as 1 stand for all the channels counted above
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

    An inactive cell is the mean of the active cells that exist, channel by channel, in the box
    around it that reaches half a window, rounded down, to each side.

    Args:
        z: (N, C, *grid).
        activity, exists: as in `window_activity`.
    """
    reach = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    counted = activity if exists is None else activity & exists
    counted = counted.expand(*counted.shape[:2], *z.shape[2:])
    # Copied into a clone: as in `gate`, strides decide which kernels run.
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

    What padding adds is 0, which changes neither "or" nor a sum: axes can be padded one by one.
    """
    as_bool = t.dtype == torch.bool
    if as_bool and _is_compiled_for_cpu(t):
        t = t.to(torch.int32)  # as `written` stores them: no bool is made of each in between
    axes = range(t.dim() - len(kernel), t.dim())
    for axis, k, s, pair, d in zip(axes, kernel, stride, padding, dilation, strict=True):
        t = _padded(t, (pair, *((0, 0),) * (axes[-1] - axis)))
        if k == s == 1:
            continue
        count = (t.shape[axis] - d * (k - 1) - 1) // s + 1
        t = written(
            functools.reduce(
                combine,
                (_sliced(t, axis, i * d, i * d + (count - 1) * s + 1, s) for i in range(k)),
            )
        )
    return t != 0 if as_bool and t.dtype != torch.bool else t


def _sliced(t: Tensor, axis: int, start: int, stop: int, step: int) -> Tensor:
    return t[(slice(None),) * axis + (slice(start, stop, step),)]


def same_padding(n: int, k: int, s: int, d: int) -> tuple[int, int]:
    """TensorFlow's "SAME": ceil(n / s) cells come out, the odd cell of padding is at the end."""
    total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
    return total // 2, total - total // 2


def same_padded(
    z: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    value: float = 0,
) -> Tensor:
    """An image batch with TensorFlow's "SAME" padding: what timm's layers of that name read.

    >>> same_padded(torch.ones(1, 1, 5, 4), (3, 3), (2, 2)).shape
    torch.Size([1, 1, 7, 5])
    """
    pairs = [
        same_padding(n, k, s, d)
        for n, k, s, d in zip(z.shape[-2:], kernel, stride, dilation, strict=True)
    ]
    return F.pad(z, [n for pair in reversed(pairs) for n in pair], value=value)


def _ceil_extra(n: int, k: int, s: int, lo: int, hi: int, d: int) -> int:
    """Extra cells after the end that ``ceil_mode`` reads (torch's own rule for the last window)."""
    span = d * (k - 1) + 1
    count = -(-(n + lo + hi - span) // s) + 1
    if (count - 1) * s >= n + lo:
        count -= 1
    return max(0, (count - 1) * s + span - (n + lo + hi))


def _padded(t: Tensor, padding: Pairs, value: bool = False) -> Tensor:
    if all(lo == hi == 0 for lo, hi in padding):
        return t
    flat = [p for pair in reversed(padding) for p in pair]
    return F.pad(t, flat, value=value)


def _copy_padded(activity: Tensor, padding: Pairs, mode: str) -> Tensor:
    """Reflect, replicate or circular padding; F.pad wants (N, C, *grid) of floats for these."""
    if all(lo == hi == 0 for lo, hi in padding):
        return activity
    flat = [p for pair in reversed(padding) for p in pair]
    grid = activity.shape[-len(padding) :]
    lead = activity.shape[: -len(padding)]
    padded = F.pad(activity.reshape(-1, 1, *grid).to(torch.float32), flat, mode=mode) > 0.5
    return padded.reshape(*lead, *padded.shape[2:])


def _spread(activity: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Put ``stride - 1`` False cells between neighbours on each grid axis."""
    first = activity.dim() - len(stride)
    for axis, s in enumerate(stride, start=first):
        if s == 1:
            continue
        n = activity.shape[axis]
        gaps = activity.new_zeros((*activity.shape[: axis + 1], s - 1, *activity.shape[axis + 1 :]))
        stuffed = torch.cat([activity.unsqueeze(axis + 1), gaps], dim=axis + 1)
        activity = _sliced(stuffed.flatten(axis, axis + 1), axis, 0, (n - 1) * s + 1, 1)
    return activity


# ---------------------------------------------------------- adaptive pooling, interpolation


def adaptive_activity(
    activity: Tensor,
    like: Tensor,
    axes: tuple[int, ...],
    tau: float = 0.0,
    *,
    whole: bool = False,
    exists: Tensor | None = None,
) -> Tensor:
    """Activity after adaptive pooling to the grid of ``like``, along ``axes``."""
    active, existing = _adaptive_counts(activity, like, axes, exists)
    return _decide(active, existing, tau, whole)


def adaptive_renormalise(
    z: Tensor, activity: Tensor, axes: tuple[int, ...], *, exists: Tensor | None = None
) -> Tensor:
    """Adaptive average pooling, divided by the active count instead of the full one."""
    active, existing = _adaptive_counts(activity, z, axes, exists)
    return z * _ratio(active, existing, z)


def _adaptive_counts(
    activity: Tensor, like: Tensor, axes: tuple[int, ...], exists: Tensor | None
) -> tuple[Tensor, Tensor]:
    present = torch.ones_like(activity[:1]) if exists is None else exists
    active = activity & present
    sizes = [like.shape[axis] for axis in axes]
    return _adaptive_sum(active, axes, sizes), _adaptive_sum(present, axes, sizes)


def _adaptive_sum(activity: Tensor, axes: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Sums over torch's adaptive windows [floor(i n / m), ceil((i + 1) n / m)), by running sums."""
    total = activity.to(torch.int32)
    for axis, m in zip(axes, sizes, strict=True):
        n = total.shape[axis]
        running = F.pad(total.movedim(axis, -1).cumsum(-1, dtype=torch.int32), (1, 0))
        cells = torch.arange(m, device=total.device)
        starts, stops = (cells * n) // m, ((cells + 1) * n + m - 1) // m
        total = (running[..., stops] - running[..., starts]).movedim(-1, axis)
    return total


def resize_activity(
    activity: Tensor,
    like: Tensor,
    source: Tensor,
    mode: str,
    axes: tuple[int, ...],
    tau: float = 0.0,
    *,
    align_corners: bool | None = None,
    scale_factor: tuple[float | None, ...] | None = None,
    antialias: bool = False,
    whole: bool = False,
    exists: Tensor | None = None,
) -> Tensor:
    """Activity after interpolating ``source`` to the grid of ``like``, along ``axes``.

    The cells read are those of non-zero weight, and the weights are torch's own: each axis is
    interpolated once as an identity matrix.
    """
    present = torch.ones_like(activity[:1, :1]) if exists is None else exists
    active, existing = (activity & present).double(), present.double()
    for axis in axes:
        n, m = source.shape[axis], like.shape[axis]
        factor = None if scale_factor is None else scale_factor[axis - 2]
        reads = _interpolation_reads(n, m, mode, factor, align_corners, antialias, activity.device)
        active = (active.movedim(axis, -1) @ reads.mT).movedim(-1, axis)
        existing = (existing.movedim(axis, -1) @ reads.mT).movedim(-1, axis)
    return _decide(active, existing, tau, whole)


def _interpolation_reads(
    n: int,
    m: int,
    mode: str,
    factor: float | None,
    align_corners: bool | None,
    antialias: bool,
    device: torch.device,
) -> Tensor:
    """(m, n) of 0 and 1: which of n cells each of m interpolated cells reads."""
    cells = torch.eye(n, dtype=torch.float64, device=device)
    separable = {"trilinear": "linear", "bilinear": "linear"}.get(mode, mode)
    size: int | tuple[int, int] | None = m if factor is None else None
    scale: float | tuple[float, float] | None = factor
    if separable == "bicubic" or antialias:
        # These exist in two dimensions only. The second axis has two cells that copy themselves: of
        # an image of width 1 torch antialiases another one, by mistake.
        cells = torch.stack([cells, cells], -1)
        separable = "bicubic" if mode == "bicubic" else "bilinear"
        size = (m, 2) if factor is None else None
        scale = None if factor is None else (factor, 1.0)
    weights = F.interpolate(
        cells[:, None],
        size=size,
        scale_factor=scale,
        mode=separable,
        align_corners=align_corners,
        antialias=antialias,
    )
    return (weights.reshape(n, m, -1)[..., 0] != 0).double().mT


# ---------------------------------------------------------------------- joins, reductions


def sum_activity(
    a: Tensor,
    b: Tensor,
    tau: float = 0.0,
    a_exists: Tensor | None = None,
    b_exists: Tensor | None = None,
) -> Tensor:
    """Activity of a sum (or maximum) of two grids: where Phi of the pair exceeds tau."""
    if a_exists is None and b_exists is None:
        # one of two active is a share of 1/2
        return a | b if tau < 0.5 else a & b
    ea = torch.ones_like(a[:1]) if a_exists is None else a_exists
    eb = torch.ones_like(b[:1]) if b_exists is None else b_exists
    active = (a & ea).to(torch.int32) + (b & eb).to(torch.int32)
    return _decide(active, ea.to(torch.int32) + eb.to(torch.int32), tau, whole=False)


def anywhere(activity: Tensor, axes: tuple[int, ...], *, exists: Tensor | None = None) -> Tensor:
    """One value per sample: active iff anything that exists was. The axes stay, with size 1."""
    if exists is not None:
        activity = activity & exists
    return activity.any(axes[0], keepdim=True) if len(axes) == 1 else _any(activity, axes)


def _any(activity: Tensor, axes: tuple[int, ...]) -> Tensor:
    return functools.reduce(lambda t, axis: t.any(axis, keepdim=True), axes, activity)


def share_activity(
    activity: Tensor, axes: tuple[int, ...], tau: float = 0.0, *, exists: Tensor | None = None
) -> Tensor:
    """Activity of a reduction over some of several axes: where Phi > tau. The axes stay."""
    active, existing = _totals(activity, axes, exists)
    return _decide(active, existing, tau, whole=False)


def mean_renormalise(
    z: Tensor,
    activity: Tensor,
    axes: tuple[int, ...],
    kept: tuple[int | None, ...],
    *,
    exists: Tensor | None = None,
) -> Tensor:
    """A mean over axes, divided by the active count instead of the full one.

    Args:
        kept: for each axis of ``z`` the axis of the activity it was, as in `rearrange`.
    """
    return z * rearrange(_ratio(*_totals(activity, axes, exists), z), kept)


def _totals(
    activity: Tensor, axes: tuple[int, ...], exists: Tensor | None
) -> tuple[Tensor, Tensor]:
    if exists is None:  # with the batch on axis 0, the same for every sample
        exists = torch.ones_like(activity if 0 in axes else activity[:1])
    active = (activity & exists).sum(axes, keepdim=True, dtype=torch.int32)
    return active, exists.sum(axes, keepdim=True, dtype=torch.int32)


# ------------------------------------------------------------------------------ relabelling


def rearrange(activity: Tensor, axes: tuple[int | None, ...]) -> Tensor:
    """Reorder axes; None is a new axis of size 1, an axis not named has size 1 and is dropped.

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
    narrow: tuple[int, ...] = (),
) -> Tensor:
    """The activity of ``like``, a reshape of ``source``.

    Args:
        spread: axes of the source that are merged with others and must be written out first.
        full: which axes of the result activity may differ along; the others have size 1.
        batch: the axis of the batch before and after, where either is not axis 0 and nothing else.
        narrow: axes of the result to be stored with size 1 after all: nothing differs along them.
    """
    sizes = [source.shape[i] if i in spread else n for i, n in enumerate(activity.shape)]
    shape = [n if wide else 1 for n, wide in zip(like.shape, full, strict=True)]
    if batch is not None:
        before, after = batch
        if before in spread:  # one image may meet many masks, and the reverse
            sizes[before] = max(source.shape[before], activity.shape[before])
        shape[after] = -1
        result = activity.expand(sizes).reshape(shape)
        for axis in narrow:
            result = result.narrow(axis, 0, 1)
        return result
    return activity.expand(sizes).reshape(activity.shape[0], *shape[1:])


def pad_activity(
    activity: Tensor, padding: Pairs, mode: str = "constant", value: bool = True
) -> Tensor:
    """Activity after explicit padding of the last axes. ``value``: what padded cells are."""
    if mode == "constant" or all(lo <= 0 and hi <= 0 for lo, hi in padding):
        return _padded(activity, padding, value)
    return _copy_padded(activity, padding, mode)


def concatenated(
    activities: Sequence[Tensor | bool], tensors: Sequence[Tensor | None], axis: int
) -> Tensor:
    """Activities of several tensors, concatenated as the tensors are.

    A plain True or False stands for a tensor that no image reaches; None among the tensors for one
    cell along the axis.
    """
    given = [a for a in activities if isinstance(a, Tensor)]
    shape = list(
        torch.broadcast_shapes(  # type: ignore[no-untyped-call]
            *([n if i != axis else 1 for i, n in enumerate(a.shape)] for a in given)
        )
    )
    pieces = []
    for activity, tensor in zip(activities, tensors, strict=True):
        shape[axis] = 1 if tensor is None else tensor.shape[axis]
        pieces.append(
            activity.expand(shape)
            if isinstance(activity, Tensor)
            else torch.full(shape, activity, dtype=torch.bool, device=given[0].device)
        )
    return torch.cat(pieces, dim=axis)


def both(a: Tensor, b: Tensor) -> Tensor:
    """Activity of a product: the intersection."""
    return a & b


def either(a: Tensor, b: Tensor) -> Tensor:
    """Which cells of a joined pair exist."""
    return a | b


def picked(activity: Tensor, places: Tensor, axis: int) -> Tensor:
    """What an index with a list of places does, done to the activity."""
    return activity[(slice(None),) * axis + (places,)]


def upsampled(activity: Tensor, factor: int, axes: tuple[int, ...] = (2, 3)) -> Tensor:
    """Pixel shuffle of an activity that does not differ between channels."""
    for axis in axes:
        activity = activity.repeat_interleave(factor, dim=axis)
    return activity


def spread_as(activity: Tensor, like: Tensor) -> Tensor:
    """The activity written out in full, for a relabelling that is then applied to it as it is."""
    return activity.expand(activity.shape[0], *like.shape[1:])
