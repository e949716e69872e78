"""Literal tables: what a reshape does to axes."""

from __future__ import annotations

import pytest

from convad_fx.compiler.analysis.axis_map import Block, merge_blocks, reshape_blocks, split_blocks


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
    with pytest.raises(ValueError, match="different numbers of cells"):
        reshape_blocks((2, 3), (2, 4))
