"""What a reshape does to axes, as values. Pure Python: no tensors, no graph.

A reshape of a row-major tensor is a sequence of *blocks*: some neighbouring input axes become some
neighbouring output axes with the same number of cells.

>>> reshape_blocks((2, 8, 5, 5), (2, 200))
(Block(0 -> 0), Block(1,2,3 -> 1))
>>> reshape_blocks((2, 8, 5, 5), (2, 2, 4, 5, 5))
(Block(0 -> 0), Block(1 -> 1,2), Block(2 -> 3), Block(3 -> 4))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


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
        raise ValueError(f"{tuple(before)} and {tuple(after)} have different numbers of cells")
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
            blocks.append(Block((0,), (0,)))  # the batch keeps to itself
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
