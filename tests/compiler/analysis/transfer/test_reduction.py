"""Reductions without a graph."""

from __future__ import annotations

import math

import pytest

from convad_fx import Policy
from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.axis_map import BatchAxis
from convad_fx.compiler.analysis.plan import Tracked
from convad_fx.compiler.analysis.transfer import Refusal
from tests.compiler.analysis.transfer.bench import Bench

INNER = BatchAxis(inner=4)


@pytest.mark.parametrize(
    ("step", "full", "how", "identity", "refill"),
    [
        (steps.Reduce((2, 3), True, "mean"), "....", "anywhere(axes=(2, 3))", 0.0, False),
        (steps.Reduce((2, 3), False), "..", "rearrange(axes=(0, None))", 0.0, False),
        (steps.Reduce((3,), True, "max"), "..x.", "share_activity(axes=(3,), tau=0.5)", -math.inf,
         False),
        (steps.Reduce((1, 2, 3), True, "min"), "....", "anywhere(axes=(2, 3))", math.inf, True),
        (steps.Reduce((1,), True, "max"), "..xx", "None", None, False),  # channels do not differ
    ],
)  # fmt: skip
def test_the_mask_reduced(
    step: steps.Reduce, full: str, how: str, identity: float | None, refill: bool
) -> None:
    bench = Bench(Policy(tau=0.5))
    outcome = bench.run(step, 0)
    assert isinstance(outcome.result, Tracked)
    activity = bench.table[outcome.result.row]
    assert activity.full == tuple(mark == "x" for mark in full)
    assert str(activity.how) == how
    assert (outcome.identity, outcome.refill) == (identity, refill)


def test_an_extremum_with_indices_gives_two_results() -> None:
    step = steps.Reduce((3,), True, "max", results=2, refuse_full="because")
    with pytest.raises(Refusal, match="because"):
        Bench().run(step, 0)
    result = Bench(first_output_only=True).run(step, 0).result
    assert isinstance(result, tuple)
    assert len(set(result)) == 1


def test_means_are_renormalised_by_what_is_left_of_the_axes() -> None:
    outcome = Bench(Policy(pool="renormalize")).run(steps.Reduce((2, 3), False, "mean"), 0)
    assert str(outcome.renormalise) == "mean_renormalise(axes=(2, 3), kept=(0, 1))"


def test_windows_in_axis_0_are_not_the_whole_image() -> None:
    bench = Bench(Policy(tau=0.5))
    result = bench.result(steps.Reduce((2, 3), True), bench.add("x.xx", INNER))
    assert str(result.how) == "share_activity(axes=(2, 3), tau=0.5)"
    assert (result.full, result.batch) == ((True, False, False, False), INNER)


@pytest.mark.parametrize(("axes", "batch"), [((0,), BatchAxis()), ((2, 3), BatchAxis(3))])
def test_images_are_not_combined(axes: tuple[int, ...], batch: BatchAxis) -> None:
    bench = Bench()
    with pytest.raises(Refusal, match="images"):
        bench.run(steps.Reduce(axes, True), bench.add("..x.", batch))


def test_a_batch_in_front_of_reduced_axes_moves_up() -> None:
    bench = Bench()
    row = bench.add("xx..", BatchAxis(2))
    result = bench.result(steps.Reduce((0, 1), False), row, shape=(10, 12, 13, 8))
    assert (result.full, result.batch) == ((False, False), BatchAxis(0))
