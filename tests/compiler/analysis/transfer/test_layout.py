"""Relabellings, padding and concatenation without a graph."""

from __future__ import annotations

from typing import Any

import pytest

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.axis_map import BatchAxis, reshape_blocks
from convad_fx.compiler.analysis.plan import Tracked
from convad_fx.compiler.analysis.transfer import Refusal
from convad_fx.compiler.capture.op_schema import TensorView
from tests.compiler.analysis.transfer.bench import SHAPE, Bench

ALL = slice(None)


def reshape(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[steps.Step, dict[str, Any]]:
    step = steps.Reshape(reshape_blocks(before, after))
    return step, {"shape": before, "output": after}


@pytest.mark.parametrize(
    ("step", "output", "full", "how"),
    [
        (steps.Rearrange((0, 2, 3, 1)), (13, 10, 12, 8), ".xx.", "rearrange(axes=(0, 2, 3, None))"),
        (steps.Rearrange((0, None, 2, 3)), SHAPE, "..xx", "None"),
        (steps.Expand((1,)), (13, 16, 10, 12), "..xx", "None"),
        (steps.Flip((1, 3)), SHAPE, "..xx", "flip(dims=(3,))"),
        (steps.Flip((1,)), SHAPE, "..xx", "None"),
        (steps.ChannelShuffle(2), SHAPE, "..xx", "None"),
        (steps.PixelShuffle(2), (13, 2, 20, 24), "..xx", "upsampled(factor=2, axes=(2, 3))"),
        (steps.PixelShuffle(2, down=True), (13, 32, 5, 6), ".xxx", "pixel_unshuffle(factor=2)"),
        (steps.Take((ALL, slice(2), ALL, ALL)), (13, 2, 10, 12), "..xx", "None"),
        (steps.Take((ALL, 3, ALL, slice(0, 6))), (13, 10, 6), ".xx",
         f"take(index=({ALL}, 0, {ALL}, {slice(0, 6)}))"),
        (steps.Pad(((0, 0), (1, 0), (0, 0), (0, 0))), (13, 9, 10, 12), "..xx", "None"),
        (steps.Pad(((0, 0), (0, 0), (0, 0), (1, 2))), (13, 8, 10, 15), "..xx",
         "pad_activity(padding=((1, 2),), mode=constant)"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "__slots__") else "",
)  # fmt: skip
def test_the_mask_relabelled(
    step: steps.Step, output: tuple[int, ...], full: str, how: str
) -> None:
    result = Bench().result(step, 0, output=output)
    assert result.full == tuple(mark == "x" for mark in full)
    assert str(result.how) == how


@pytest.mark.parametrize(
    ("before", "after", "full", "how"),
    [
        ((13, 8, 10, 12), (13, 8, 120), "..x",
         "reshaped(spread=(2, 3), full=(False, False, True))"),
        ((13, 8, 10, 12), (13, 2, 4, 10, 12), "...xx", "rearrange(axes=(0, None, None, 2, 3))"),
        ((13, 8, 10, 12), (13, 960), ".x", "reshaped(spread=(1, 2, 3), full=(False, True))"),
        # the batch merged with channels, with positions, and on axis 1
        ((13, 8, 10, 12), (104, 1, 10, 12), "..xx",
         "reshaped(spread=(0, 1), full=(True, False, True, True), batch=(0, 0))"),
        ((13, 8, 10, 12), (1, 104, 10, 12), "..xx",
         "reshaped(spread=(0, 1), full=(False, True, True, True), batch=(0, 1))"),
    ],
)  # fmt: skip
def test_the_mask_reshaped(
    before: tuple[int, ...], after: tuple[int, ...], full: str, how: str
) -> None:
    step, shapes = reshape(before, after)
    result = Bench().result(step, 0, **shapes)
    assert result.full == tuple(mark == "x" for mark in full)
    assert str(result.how) == how


def test_a_reshape_that_mixes_axes_of_positions_with_others_is_refused() -> None:
    step, shapes = reshape((13, 8, 10, 12), (13, 10, 8, 12))
    with pytest.raises(Refusal, match="spatial and non-spatial"):
        Bench().run(step, 0, **shapes)


def test_there_and_back_is_no_step() -> None:
    bench = Bench()
    windows = bench.add("x.xx", BatchAxis(inner=4))
    step, shapes = reshape((52, 8, 5, 6), (13, 4, 8, 5, 6))
    apart = bench.run(step, windows, **shapes)
    assert isinstance(apart.result, Tracked)
    assert bench.table[apart.result.row].full == (False, True, False, True, True)
    assert apart.size_bound
    step, shapes = reshape((13, 4, 8, 5, 6), (52, 8, 5, 6))
    assert bench.run(step, apart.result.row, **shapes).result == Tracked(windows)
    moved = bench.run(steps.Rearrange((1, 0, 3, 2)), 0).result
    assert isinstance(moved, Tracked)
    assert bench.table[moved.row].batch == BatchAxis(1)
    assert bench.run(steps.Rearrange((1, 0, 3, 2)), moved.row).result == Tracked(0)


@pytest.mark.parametrize(
    "step",
    [
        steps.Flip((0,)),
        steps.Expand((0,)),
        steps.Take((0, ALL, ALL, ALL)),
        steps.Take((slice(1), ALL, ALL, ALL)),
        steps.Pad(((1, 0), (0, 0), (0, 0), (0, 0))),
        steps.Concat(0),
        steps.Reshape(reshape_blocks(SHAPE, (8, 13, 10, 12))),
    ],
    ids=lambda step: type(step).__name__,
)
def test_images_must_not_mix(step: steps.Step) -> None:
    with pytest.raises(Refusal, match="images"):
        Bench().run(step, 0, output=(8, 13, 10, 12))


def test_positions_must_not_be_repeated() -> None:
    with pytest.raises(Refusal, match="repeats a position"):
        Bench().run(steps.Expand((2,)), 0)


def test_a_list_in_the_graph_is_taken_last() -> None:
    bench = Bench()
    places = TensorView((5,), node="places")
    result = bench.result(steps.Take((ALL, 0, places, slice(0, 6))), 0, output=(13, 5, 6))
    assert str(result.how) == "index_activity(axis=1)"
    assert result.how is not None
    assert result.how.tensors == ("places",)
    before = bench.table[1].how
    assert before is not None
    assert before.function == "take"


def test_only_slices_of_positions_bind_to_the_size() -> None:
    sized = frozenset({"index"})
    assert Bench().run(steps.Take((ALL, ALL, ALL, slice(0, 6))), 0, sized=sized).size_bound
    assert not Bench().run(steps.Take((ALL, slice(0, 6), ALL, ALL)), 0, sized=sized).size_bound
    assert not Bench().run(steps.Take((ALL, ALL, ALL, slice(0, 6))), 0).size_bound


def test_pieces_give_one_activity_each() -> None:
    bench = Bench()
    takes = tuple(steps.Take((ALL, ALL, ALL, slice(i, i + 6))) for i in (0, 6))
    assert bench.run(steps.Pieces(takes), 0).result == (Tracked(1), Tracked(2))
    channels = tuple(steps.Take((ALL, slice(i, i + 4), ALL, ALL)) for i in (0, 4))
    assert bench.run(steps.Pieces(channels), 0).result == (Tracked(0), Tracked(0))


def test_copying_padding_adds_nothing_that_does_not_exist() -> None:
    pairs = ((0, 0), (0, 0), (1, 1), (1, 1))
    assert Bench().result(steps.Pad(pairs), 0).padded
    assert not Bench().result(steps.Pad(pairs, "reflect"), 0).padded


def test_concatenation() -> None:
    bench = Bench()
    other = bench.add("..xx")
    assert bench.run(steps.Concat(1), 0, 0).result == Tracked(0)
    both = bench.result(steps.Concat(1), 0, other, output=(13, 16, 10, 12))
    assert (both.full, both.of) == ((False, True, True, True), (0, other))
    constant = TensorView(SHAPE, node="constant")
    padded = bench.result(steps.Concat(1), 0, constants=(constant,), output=(13, 16, 10, 12))
    assert (padded.of, padded.padded) == ((0, None), True)


def test_a_stack_before_the_batch_moves_it() -> None:
    bench = Bench()
    stacked = bench.result(steps.Concat(0, new=True), 0, bench.add("..xx"), output=(2, *SHAPE))
    assert stacked.batch == BatchAxis(1)
    assert stacked.full == (True, False, False, True, True)
