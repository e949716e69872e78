"""Elements under other axes: nothing is computed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from convad_fx.compiler.analysis.axis_map import merge_blocks, reshape_blocks, split_blocks
from convad_fx.compiler.analysis.rules.registry import rule
from convad_fx.compiler.analysis.steps import (
    ChannelShuffle,
    Concat,
    Expand,
    Flip,
    Pad,
    Pieces,
    PixelShuffle,
    Rearrange,
    Refused,
    Reshape,
    Step,
    Take,
)
from convad_fx.compiler.capture.op_schema import OpView, TensorView


@rule("reshape")
def reshape(op: OpView) -> Step:
    if any(isinstance(size, str) or "dtype" in str(type(size)) for size in op.shape):
        return Refused("view(dtype) reinterprets memory", "use .to(dtype)")
    return Reshape(reshape_blocks(op.input.shape, op.output))


@rule("flatten", "flatten_module")
def flatten(op: OpView) -> Step:
    rank = op.input.rank
    first, last = op.start_dim % rank, op.end_dim % rank
    return Reshape(merge_blocks(rank, first, last))


@rule("unflatten", "unflatten_module")
def unflatten(op: OpView) -> Step:
    sizes = op.get("sizes") or op.unflattened_size
    return Reshape(split_blocks(op.input.rank, op.dim % op.input.rank, len(sizes)))


@rule("permute")
def permute(op: OpView) -> Step:
    return Rearrange(tuple(axis % op.input.rank for axis in op.dims))


@rule("transpose")
def transpose(op: OpView) -> Step:
    return _swapped(op, op.dim0, op.dim1)


@rule("swap_last")
def swap_last(op: OpView) -> Step:
    return _swapped(op, -2, -1)


def _swapped(op: OpView, a: int, b: int) -> Step:
    axes = list(range(op.input.rank))
    axes[a], axes[b] = axes[b], axes[a]
    return Rearrange(tuple(axes))


@rule("reverse_axes")
def reverse_axes(op: OpView) -> Step:
    return Rearrange(tuple(reversed(range(op.input.rank))))


@rule("movedim")
def movedim(op: OpView) -> Step:
    rank = op.input.rank
    sources = [axis % rank for axis in _listed(op.source)]
    targets = [axis % rank for axis in _listed(op.destination)]
    order = [axis for axis in range(rank) if axis not in sources]
    for target, source in sorted(zip(targets, sources, strict=True)):
        order.insert(target, source)
    return Rearrange(tuple(order))


@rule("squeeze")
def squeeze(op: OpView) -> Step:
    rank = op.input.rank
    axes = range(rank) if op.dim is None else [axis % rank for axis in _listed(op.dim)]
    dropped = {axis for axis in axes if op.input.shape[axis] == 1}
    return Rearrange(tuple(axis for axis in range(rank) if axis not in dropped))


@rule("unsqueeze")
def unsqueeze(op: OpView) -> Step:
    axes: list[int | None] = list(range(op.input.rank))
    axes.insert(op.dim % (op.input.rank + 1), None)
    return Rearrange(tuple(axes))


@rule("expand")
def expand(op: OpView) -> Step:
    return _expanded(op)


@rule("repeat")
def repeat(op: OpView) -> Step:
    if any(
        n > 1 and m != n for n, m in zip(op.input.shape, op.output[-op.input.rank :], strict=True)
    ):
        return Refused(
            "it repeats elements along an axis, so one appears at several positions",
            "use interpolate(mode='nearest') or circular padding",
        )
    return _expanded(op)


def _expanded(op: OpView) -> Step:
    if len(op.output) != op.input.rank:
        return Refused("it adds axes in front of the batch", "unsqueeze first, behind the batch")
    changed = zip(op.input.shape, op.output, strict=True)
    return Expand(tuple(i for i, (n, m) in enumerate(changed) if n != m))


@rule("getitem")
def getitem(op: OpView) -> Step:
    index = op.index if isinstance(op.index, tuple) else (op.index,)
    if not all(i is None or i is Ellipsis or isinstance(i, int | slice) for i in index):
        lists = [i for i in index if isinstance(i, tuple | TensorView)]
        if refused := _not_one_list(lists):
            return refused
    named = sum(i is not None and i is not Ellipsis for i in index)
    rest = (slice(None),) * (op.input.rank - named)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *rest, *index[at + 1 :])
    else:
        index = (*index, *rest)
    return Take(tuple(_plain(item) for item in index))


@rule("index")
def aten_index(op: OpView) -> Step:
    rest = (None,) * (op.input.rank - len(op.indices))
    index = tuple(slice(None) if i is None else i for i in (*op.indices, *rest))
    return _not_one_list([i for i in op.indices if i is not None]) or Take(index)


@rule("index_select")
def index_select(op: OpView) -> Step:
    return _not_one_list([op.index]) or _take(op, op.dim, op.index)


def _not_one_list(lists: list[Any]) -> Refused | None:
    """One list of indices along one axis is a relabelling; lists together are not."""
    if len(lists) > 1 or any(not _is_list_of_indices(item) for item in lists):
        return Refused(
            "it indexes several axes at once, or by something else than a list of indices",
            "index one axis at a time, with a list of indices",
        )
    if any(item.masked for item in lists if isinstance(item, TensorView)):
        return Refused(
            "its indices are computed from the image",
            "give it indices that do not depend on the image",
        )
    return None


def _is_list_of_indices(item: Any) -> bool:
    if isinstance(item, TensorView):
        return item.rank == 1
    return isinstance(item, tuple) and all(type(index) is int for index in item)


@rule("slice")
def aten_slice(op: OpView) -> Step:
    return _take(op, op.dim, slice(op.start, op.end, op.step))


@rule("narrow")
def narrow(op: OpView) -> Step:
    stop = op.start + op.length
    from_the_end = op.start < 0 == stop  # -1 + 1 is not index 0 but the end
    return _take(op, op.dim, slice(op.start, None if from_the_end else stop))


@rule("select")
def select(op: OpView) -> Step:
    return _take(op, op.dim, op.index)


def _take(op: OpView, dim: int, item: Any) -> Take:
    index: list[Any] = [slice(None)] * op.input.rank
    index[dim % op.input.rank] = _plain(item)
    return Take(tuple(index))


def _plain(item: Any) -> Any:
    """``slice(0, sys.maxsize, 1)`` is how aten says ``slice(None)``."""
    if not isinstance(item, slice):
        return item
    start = None if item.start == 0 else item.start
    stop = None if item.stop is not None and item.stop >= sys.maxsize else item.stop
    return slice(start, stop, None if item.step == 1 else item.step)


@rule("flip")
def flip(op: OpView) -> Step:
    return Flip(tuple(sorted(axis % op.input.rank for axis in op.dims)))


@rule("chunk", "split")
def split(op: OpView) -> Step:
    axis, start, takes = op.dim % op.input.rank, 0, []
    for shape in op.output:
        takes.append(_take(op, axis, slice(start, start + shape[axis])))
        start += shape[axis]
    return Pieces(tuple(takes))


@rule("unbind")
def unbind(op: OpView) -> Step:
    return Pieces(tuple(_take(op, op.dim, i) for i in range(len(op.output))))


@rule("cat")
def cat(op: OpView) -> Step:
    return Concat(op.dim % len(op.output))


@rule("stack")
def stack(op: OpView) -> Step:
    return Concat(op.dim % len(op.output), new=True)


@rule("pad")
def pad(op: OpView) -> Step:
    return _padding(op, op.pad, op.mode, op.value)


#: Kinds of modules that pad -> the mode of ``F.pad``.
_PADDING_MODES = {
    "zero_pad": "constant",
    "constant_pad": "constant",
    "reflection_pad": "reflect",
    "replication_pad": "replicate",
    "circular_pad": "circular",
}


@rule(*_PADDING_MODES)
def padding_module(op: OpView) -> Step:
    return _padding(op, op.padding, _PADDING_MODES[op.kind], op.get("value"))


def _padding(op: OpView, flat: Sequence[int] | int, mode: str, value: float | None) -> Step:
    """F.pad lists the last axis first: (left, right, top, bottom, ...)."""
    rank = op.input.rank
    numbers = list(flat) if isinstance(flat, Sequence) else [flat] * (2 * (rank - 2))
    pairs = [(int(a), int(b)) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
    missing = rank - len(pairs)
    return Pad(((0, 0),) * missing + tuple(reversed(pairs)), mode, value or 0.0)


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(op: OpView) -> Step:
    if op.input.rank != 4:
        return Refused("it takes one sample without a batch, or more axes", "pass (N, C, H, W)")
    down = op.kind == "pixel_unshuffle"
    return PixelShuffle(op.downscale_factor if down else op.upscale_factor, down=down)


@rule("channel_shuffle")
def channel_shuffle(op: OpView) -> Step:
    return ChannelShuffle(op.groups)


def _listed(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)
