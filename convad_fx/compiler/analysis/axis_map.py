"""What a relabelling does to axes, as values. Pure Python: no tensors, no graph.

An `AxisMap` says for every output axis which input axes it is made of. A reshape is first a
sequence of *blocks*: neighbouring input axes become neighbouring output axes of the same size.

>>> reshape_blocks((2, 8, 5, 5), (2, 200))
(Block(0 -> 0), Block(1,2,3 -> 1))
>>> reshape_blocks((2, 8, 5, 5), (2, 2, 4, 5, 5))
(Block(0 -> 0), Block(1 -> 1,2), Block(2 -> 3), Block(3 -> 4))

The batch is a component like any other: it may move, be merged with other axes and come back.

>>> windows = AxisMap.reshaped(merge_blocks(3, 0, 1), (13, 4, 5), (52, 5))
>>> windows.batch_after(BatchAxis(0))
BatchAxis(axis=0, outer=1, inner=4)
>>> AxisMap.reshaped(split_blocks(2, 0, 2), (52, 5), (13, 4, 5)).batch_after(BatchAxis(0, inner=4))
BatchAxis(axis=0, outer=1, inner=1)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


class MixesImages(ValueError):
    """A relabelling cuts, reorders or drops the batch, or does so to axes merged with it."""


@dataclass(frozen=True, slots=True)
class BatchAxis:
    """The axis that holds the batch, and the sizes merged with it there.

    Index along the axis: ``(outer_index * N + image) * inner + inner_index``.
    """

    axis: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def is_first(self) -> bool:
        """Axis 0 is the batch and nothing else: what a model takes and returns."""
        return self == BATCH_FIRST

    @property
    def is_merged(self) -> bool:
        """The axis holds something besides the batch."""
        return self.outer * self.inner > 1


BATCH_FIRST = BatchAxis()


# ------------------------------------------------------------------------------- components


@dataclass(frozen=True, slots=True)
class Axis:
    """An input axis as it is."""

    axis: int
    size: int

    @property
    def axes(self) -> Shape:
        """Input axes that this component reads."""
        return (self.axis,)


@dataclass(frozen=True, slots=True)
class Changed(Axis):
    """An input axis of which elements are taken, reversed or repeated; ``how`` says which.

    Attributes:
        how: "flip", "repeat", a slice, a tuple of indices or the view of a tensor of indices.
    """

    how: Any


@dataclass(frozen=True, slots=True)
class Merged:
    """Components merged into one axis, row-major. Made by `merged`: no component is a `Merged`."""

    parts: tuple[Axis | Piece, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(part.size for part in self.parts)

    @property
    def axes(self) -> Shape:
        """Input axes that this component reads."""
        return tuple(dict.fromkeys(axis for part in self.parts for axis in part.axes))


@dataclass(frozen=True, slots=True)
class Piece:
    """The digit ``index`` of a component cut into ``sizes``, row-major. Made by `piece`."""

    of: Component
    sizes: Shape
    index: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.sizes[self.index]

    @property
    def axes(self) -> Shape:
        """Input axes that this component reads."""
        return self.of.axes


@dataclass(frozen=True, slots=True)
class New:
    """An axis of size 1 that is no input axis."""

    size = 1
    axes: Shape = ()


Component = Axis | Merged | Piece | New


def merged(parts: Sequence[Component]) -> Component:
    """One axis from components: nested merges are flattened, new axes of size 1 left out."""
    flat: list[Axis | Piece] = []
    for part in parts:
        if isinstance(part, Merged):
            flat += part.parts
        elif not isinstance(part, New):
            flat.append(part)
    if not flat:
        return New()
    return flat[0] if len(flat) == 1 else Merged(tuple(flat))


def piece(of: Component, sizes: Sequence[int], index: int) -> Component:
    """A digit of a component; the component itself where it is not cut."""
    return of if len(sizes) == 1 else Piece(of, tuple(sizes), index)


def _batch_stride(component: Component, batch: BatchAxis, images: int) -> int | None:
    """How far apart two of the images are along a component; None where it has no batch."""
    match component:
        case New():
            return None
        case Changed(axis) if axis == batch.axis:
            raise MixesImages
        case Axis(axis):
            return batch.inner if axis == batch.axis else None
        case Merged(parts):
            for i, part in enumerate(parts):
                if (stride := _batch_stride(part, batch, images)) is not None:
                    return stride * math.prod(later.size for later in parts[i + 1 :])
            return None
        case Piece(of, sizes, index):
            if (stride := _batch_stride(of, batch, images)) is None:
                return None
            inside = math.prod(sizes[index + 1 :])
            span = inside * sizes[index]
            if stride % inside == 0 and span % (stride * images) == 0:
                return stride // inside
            if stride % span == 0 or inside % (stride * images) == 0:
                return None  # the batch is in another piece
    raise MixesImages


# --------------------------------------------------------------------------------- the map


@dataclass(frozen=True, slots=True)
class AxisMap:
    """Maps each output axis to its input component.

    Attributes:
        shape: of the input.
        outputs: one component for each output axis.
        fixed: (axis, index) of input axes read at a single index.
    """

    shape: Shape
    outputs: tuple[Component, ...]
    fixed: tuple[tuple[int, int], ...] = ()

    @classmethod
    def reordered(cls, shape: Shape, axes: Sequence[int | None]) -> AxisMap:
        """Axes in another order; None is a new axis, an axis not named is dropped.

        >>> AxisMap.reordered((2, 5), (1, 0)).outputs
        (Axis(axis=1, size=5), Axis(axis=0, size=2))
        """
        return cls(shape, tuple(New() if a is None else Axis(a, shape[a]) for a in axes))

    @classmethod
    def reshaped(cls, blocks: Sequence[Block], before: Shape, after: Shape) -> AxisMap:
        """A reshape. Of axes merged and split, outputs of size 1 count as new axes."""
        outputs: list[Component] = [New() for _ in after]
        for block in blocks:
            whole = merged([Axis(i, before[i]) for i in block.inputs])
            made = block.outputs
            if len(block.inputs) != 1:
                made = tuple(j for j in made if after[j] > 1) or made[:1]
            for index, j in enumerate(made):
                outputs[j] = piece(whole, [after[k] for k in made], index)
        return cls(before, tuple(outputs))

    @classmethod
    def changed(cls, shape: Shape, how: dict[int, Any], after: Shape | None = None) -> AxisMap:
        """Axes flipped or repeated in place; ``after``: the output's shape where it differs."""
        axes = enumerate(after or shape)
        return cls(shape, tuple(Changed(i, n, how[i]) if i in how else Axis(i, n) for i, n in axes))

    @classmethod
    def taken(cls, shape: Shape, index: Sequence[Any]) -> AxisMap:
        """Indexing: one slice, integer or list of indices per input axis; None is a new axis."""
        outputs: list[Component] = []
        fixed: list[tuple[int, int]] = []
        axis = 0
        for item in index:
            if item is None:
                outputs.append(New())
                continue
            if isinstance(item, int):
                fixed.append((axis, item))
            elif item == slice(None):
                outputs.append(Axis(axis, shape[axis]))
            else:
                outputs.append(Changed(axis, _taken_size(item, shape[axis]), item))
            axis += 1
        return cls(shape, tuple(outputs), tuple(fixed))

    @classmethod
    def pixel_shuffled(cls, shape: Shape, factor: int, *, down: bool = False) -> AxisMap:
        """(N, C r r, H, W) -> (N, C, H r, W r), or with ``down`` the reverse."""
        images, channels, *grid = (Axis(i, n) for i, n in enumerate(shape))
        if down:
            inner = [piece(axis, (axis.size // factor, factor), 1) for axis in grid]
            outer = [piece(axis, (axis.size // factor, factor), 0) for axis in grid]
            return cls(shape, (images, merged([channels, *inner]), *outer))
        sizes = (channels.size // factor**2, factor, factor)
        rows = [merged([axis, piece(channels, sizes, i)]) for i, axis in enumerate(grid, 1)]
        return cls(shape, (images, piece(channels, sizes, 0), *rows))

    @classmethod
    def channel_shuffled(cls, shape: Shape, groups: int) -> AxisMap:
        """Channel ``k`` of each group, then channel ``k + 1`` of each group."""
        images, channels, *grid = (Axis(i, n) for i, n in enumerate(shape))
        sizes = (groups, channels.size // groups)
        shuffled = merged([piece(channels, sizes, 1), piece(channels, sizes, 0)])
        return cls(shape, (images, shuffled, *grid))

    def batch_after(self, batch: BatchAxis) -> BatchAxis:
        """Where the batch is in the output. Raises `MixesImages` if images would mix."""
        images = self.shape[batch.axis] // (batch.outer * batch.inner)
        for axis, component in enumerate(self.outputs):
            stride = _batch_stride(component, batch, images)
            if stride is not None:
                return BatchAxis(axis, component.size // (stride * images), stride)
        raise MixesImages


def _taken_size(item: Any, size: int) -> int:
    if isinstance(item, slice):
        return len(range(size)[item])
    return len(item) if isinstance(item, tuple) else int(item.shape[0])


# ------------------------------------------------------------------------- blocks of a reshape


@dataclass(frozen=True, slots=True, repr=False)
class Block:
    """Input axes that become output axes: one to one kept, many to one merged, one to many cut."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def __repr__(self) -> str:
        show = ",".join
        return f"Block({show(map(str, self.inputs))} -> {show(map(str, self.outputs))})"


def reshape_blocks(before: Sequence[int], after: Sequence[int]) -> tuple[Block, ...]:
    """The blocks of a reshape from one shape to another, smallest first to last.

    Axes of size 1 go with the block before them (not with the batch), so that a grid which happens
    to be 1x1 is merged with its channels and not forgotten.
    """
    if math.prod(before) != math.prod(after):
        raise ValueError(f"{tuple(before)} and {tuple(after)} have different numbers of elements")
    blocks: list[Block] = []
    i = j = 0
    while i < len(before) or j < len(after):
        ins, outs = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(ins), j + len(outs)
        m, n = math.prod(before[k] for k in ins), math.prod(after[k] for k in outs)
        while m != n:
            if m < n:
                m, i = m * before[i], i + 1
                ins.append(i - 1)
            else:
                n, j = n * after[j], j + 1
                outs.append(j - 1)
        if (ins, outs) == ([0], [0]):
            blocks.append(Block((0,), (0,)))  # axes of size 1 do not go with the batch
            continue
        # trailing ones belong here, unless the other side has its own one to pair them with
        rest_in = _ones(before, i)
        rest_out = _ones(after, j)
        if rest_in > rest_out:
            ins += range(i, i + rest_in - rest_out)
            i += rest_in - rest_out
        elif rest_out > rest_in:
            outs += range(j, j + rest_out - rest_in)
            j += rest_out - rest_in
        blocks.append(Block(tuple(ins), tuple(outs)))
    return tuple(blocks)


def _ones(shape: Sequence[int], start: int) -> int:
    count = 0
    while start + count < len(shape) and shape[start + count] == 1:
        count += 1
    return count


def merge_blocks(rank: int, first: int, last: int) -> tuple[Block, ...]:
    """The blocks of ``flatten(first, last)``: known from the call, whatever the sizes.

    >>> merge_blocks(4, 1, 3)
    (Block(0 -> 0), Block(1,2,3 -> 1))
    """
    merged = Block(tuple(range(first, last + 1)), (first,))
    before = tuple(Block((i,), (i,)) for i in range(first))
    after = tuple(Block((i,), (i - last + first,)) for i in range(last + 1, rank))
    return (*before, merged, *after)


def split_blocks(rank: int, axis: int, parts: int) -> tuple[Block, ...]:
    """The blocks of ``unflatten(axis, sizes)`` into ``parts`` axes."""
    before = tuple(Block((i,), (i,)) for i in range(axis))
    after = tuple(Block((i,), (i + parts - 1,)) for i in range(axis + 1, rank))
    return (*before, Block((axis,), tuple(range(axis, axis + parts))), *after)
