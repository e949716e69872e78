"""Literal tables: what a reshape does to axes, and what becomes of the batch in a relabelling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convad_fx.compiler.analysis.axis_map import (
    Axis,
    AxisMap,
    BatchAxis,
    Block,
    Changed,
    Merged,
    MixesImages,
    New,
    Piece,
    merge_blocks,
    merged,
    reshape_blocks,
    split_blocks,
)


def blocks(text: str) -> tuple[Block, ...]:
    """ "0>0 1,2>1" -> (Block((0,), (0,)), Block((1, 2), (1,)))"""
    parsed = []
    for word in text.split():
        before, _, after = word.partition(">")
        parsed.append(
            Block(
                tuple(int(i) for i in before.split(",") if i),
                tuple(int(j) for j in after.split(",") if j),
            )
        )
    return tuple(parsed)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((13, 8, 5, 5), (13, 200), "0>0 1,2,3>1"),
        ((13, 8, 5, 5), (13, 8, 25), "0>0 1>1 2,3>2"),
        ((13, 8, 25), (13, 8, 5, 5), "0>0 1>1 2>2,3"),
        ((13, 8, 5, 5), (13, 2, 4, 5, 5), "0>0 1>1,2 2>3 3>4"),
        ((13, 2, 4, 5, 5), (13, 8, 5, 5), "0>0 1,2>1 3>2 4>3"),
        # a grid that happens to be 1x1 is merged with its channels, not forgotten
        ((13, 64, 1, 1), (13, 64), "0>0 1,2,3>1"),
        ((13, 64), (13, 64, 1, 1), "0>0 1>1,2,3"),
        # the batch keeps to itself
        ((13, 5), (13, 1, 5), "0>0 1>1,2"),
        ((13, 1, 5), (13, 5), "0>0 1,2>1"),
        # no output axis is an input axis
        ((13, 6, 4), (13, 4, 6), "0>0 1,2>1,2"),
        ((13, 6, 8), (26, 3, 8), "0,1>0,1 2>2"),
    ],
)
def test_reshape(before: tuple[int, ...], after: tuple[int, ...], expected: str) -> None:
    assert reshape_blocks(before, after) == blocks(expected)


def test_flatten_and_unflatten_know_their_blocks_from_the_call() -> None:
    assert merge_blocks(4, 1, 3) == blocks("0>0 1,2,3>1")
    assert merge_blocks(4, 2, 3) == blocks("0>0 1>1 2,3>2")
    assert split_blocks(3, 1, 2) == blocks("0>0 1>1,2 2>3")


def test_different_numbers_of_cells_are_an_error() -> None:
    with pytest.raises(ValueError, match="different numbers of elements"):
        reshape_blocks((2, 3), (2, 4))


# ------------------------------------------------------------------------------- whole maps


def test_equal_maps_are_the_same_relabelling() -> None:
    shape = (13, 8, 5, 5)
    kept = AxisMap.reordered(shape, (0, 1, 2, 3))
    assert AxisMap.reshaped(reshape_blocks(shape, shape), shape, shape) == kept
    assert AxisMap.taken(shape, (slice(None),) * 4) == kept
    assert AxisMap.changed(shape, {}) == kept
    assert AxisMap.channel_shuffled((13, 8), 8) != AxisMap.reordered((13, 8), (0, 1))
    flat = AxisMap.reshaped(merge_blocks(4, 2, 3), shape, (13, 8, 25))
    assert flat.outputs[2] == merged([Axis(2, 5), merged([New(), Axis(3, 5)])])


@pytest.mark.parametrize(
    ("down", "shape", "outputs"),
    [
        (
            False,
            (13, 8, 5, 7),
            (
                Axis(0, 13),
                Piece(Axis(1, 8), (2, 2, 2), 0),
                Merged((Axis(2, 5), Piece(Axis(1, 8), (2, 2, 2), 1))),
                Merged((Axis(3, 7), Piece(Axis(1, 8), (2, 2, 2), 2))),
            ),
        ),
        (
            True,
            (13, 2, 4, 6),
            (
                Axis(0, 13),
                Merged((Axis(1, 2), Piece(Axis(2, 4), (2, 2), 1), Piece(Axis(3, 6), (3, 2), 1))),
                Piece(Axis(2, 4), (2, 2), 0),
                Piece(Axis(3, 6), (3, 2), 0),
            ),
        ),
    ],
)
def test_pixel_shuffle(down: bool, shape: tuple[int, ...], outputs: tuple[Any, ...]) -> None:
    axis_map = AxisMap.pixel_shuffled(shape, 2, down=down)
    assert axis_map.outputs == outputs
    function = F.pixel_unshuffle if down else F.pixel_shuffle
    given = torch.arange(math.prod(shape)).reshape(shape)
    assert torch.equal(carried_out(axis_map, given), function(given, 2))


def carried_out(axis_map: AxisMap, x: Tensor) -> Tensor:
    """What the map says, element by element: for every output index the input index."""
    sizes = [component.size for component in axis_map.outputs]
    result = torch.empty(sizes, dtype=x.dtype)
    for index in itertools.product(*map(range, sizes)):
        found = dict(axis_map.fixed)
        for component, i in zip(axis_map.outputs, index, strict=True):
            digits: dict[int, dict[int, int]] = {}
            _digits(component, i, digits)
            for axis, parts in digits.items():
                found[axis] = found.get(axis, 0) + sum(i * stride for stride, i in parts.items())
        result[index] = x[tuple(found.get(axis, 0) for axis in range(x.dim()))]
    return result


def _digits(component: Any, index: int, digits: dict[int, dict[int, int]]) -> None:
    match component:
        case Changed(axis, _, slice() as how):
            digits.setdefault(axis, {})[1] = range(10**6)[how][index]
        case Axis(axis):
            digits.setdefault(axis, {})[1] = index
        case Merged(parts):
            for part in reversed(parts):
                _digits(part, index % part.size, digits)
                index //= part.size
        case Piece(Axis(axis), sizes, at):
            digits.setdefault(axis, {})[math.prod(sizes[at + 1 :])] = index


@pytest.mark.parametrize(
    ("axis_map", "function"),
    [
        (AxisMap.channel_shuffled((3, 6, 2), 2), lambda x: torch.channel_shuffle(x, 2)),
        (AxisMap.reordered((3, 6, 2), (2, 0, None, 1)), lambda x: x.permute(2, 0, 1)[:, :, None]),
        (AxisMap.taken((3, 6, 2), (slice(None), slice(1, 6, 2), 1)), lambda x: x[:, 1:6:2, 1]),
        (
            AxisMap.reshaped(reshape_blocks((3, 6, 2), (3, 2, 3, 2)), (3, 6, 2), (3, 2, 3, 2)),
            lambda x: x.reshape(3, 2, 3, 2),
        ),
        (
            AxisMap.reshaped(reshape_blocks((3, 6, 2), (18, 2)), (3, 6, 2), (18, 2)),
            lambda x: x.reshape(18, 2),
        ),
    ],
)
def test_a_map_says_what_the_operation_does(
    axis_map: AxisMap, function: Callable[[Tensor], Tensor]
) -> None:
    given = torch.arange(36).reshape(3, 6, 2)
    assert torch.equal(carried_out(axis_map, given), function(given))


# ------------------------------------------------------------------------------- the batch


def test_the_batch_moves_with_its_axis() -> None:
    axis_map = AxisMap.reordered((13, 8, 5), (2, 0, None, 1))
    assert axis_map.batch_after(BatchAxis(0)) == BatchAxis(1)
    assert axis_map.batch_after(BatchAxis(1, 2, 1)) == BatchAxis(3, 2, 1)


@pytest.mark.parametrize(
    ("before", "batch", "after", "expected"),
    [
        ((13, 4, 5), BatchAxis(0), (52, 5), BatchAxis(0, inner=4)),
        ((4, 13, 5), BatchAxis(1), (52, 5), BatchAxis(0, outer=4)),
        ((2, 13, 3, 5), BatchAxis(1), (78, 5), BatchAxis(0, 2, 3)),
        ((52, 5), BatchAxis(0, inner=4), (13, 4, 5), BatchAxis(0)),
        ((52, 5), BatchAxis(0, inner=4), (26, 2, 5), BatchAxis(0, inner=2)),
        ((52, 5), BatchAxis(0, inner=4), (13, 2, 2, 5), BatchAxis(0)),
        ((52, 5), BatchAxis(0, outer=4), (4, 13, 5), BatchAxis(1)),
        ((52, 5), BatchAxis(0, outer=4), (2, 26, 5), BatchAxis(1, outer=2)),
        ((52, 4), BatchAxis(0, inner=4), (13, 16), BatchAxis(0)),
        # a piece that takes some of the images, or comes from between them
        ((52, 5), BatchAxis(0, inner=4), (4, 13, 5), None),
        ((52, 5), BatchAxis(0, outer=4), (13, 4, 5), None),
        ((13, 4), BatchAxis(0), (4, 13), None),
        ((13, 4), BatchAxis(0), (2, 26), None),
    ],
)
def test_the_batch_in_a_reshape(
    before: tuple[int, ...], batch: BatchAxis, after: tuple[int, ...], expected: BatchAxis | None
) -> None:
    axis_map = AxisMap.reshaped(reshape_blocks(before, after), before, after)
    if expected is not None:
        assert axis_map.batch_after(batch) == expected
        return
    with pytest.raises(MixesImages):
        axis_map.batch_after(batch)


@pytest.mark.parametrize(
    "axis_map",
    [
        AxisMap.changed((13, 8), {0: "flip"}),
        AxisMap.changed((13, 8), {0: "repeat"}, (26, 8)),
        AxisMap.taken((13, 8), (slice(1), slice(None))),
        AxisMap.taken((13, 8), (0, slice(None))),
        AxisMap.reordered((13, 8), (1,)),
    ],
)
def test_what_changes_the_batch_mixes_images(axis_map: AxisMap) -> None:
    with pytest.raises(MixesImages):
        axis_map.batch_after(BatchAxis(0))
