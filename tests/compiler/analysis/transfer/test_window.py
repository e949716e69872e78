"""Windows without a graph: the step and an activity in; the activity and what is read out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from convad_fx import Policy
from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.axis_map import BatchAxis
from convad_fx.compiler.analysis.plan import Tracked
from convad_fx.compiler.analysis.transfer import Refusal
from tests.compiler.analysis.transfer.bench import Bench

SAME = steps.Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), groups=1, channels=8)
STRIDED = replace(SAME, stride=(2, 2))
POOL = steps.Window((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), channels=8, reads="max")
RECEPTIVE = Policy(attribution="receptive")


@pytest.mark.parametrize(
    ("step", "policy", "how", "identity"),
    [
        (SAME, Policy(), "None", 0.0),  # positional: the activity stays where it is
        (SAME, RECEPTIVE, "window_activity(kernel=(3, 3), stride=(1, 1), padding=((1, 1), (1, 1)),"
         " dilation=(1, 1))", 0.0),
        (STRIDED, Policy(tau=0.5), "window_activity(kernel=(3, 3), stride=(2, 2),"
         " padding=((1, 1), (1, 1)), dilation=(1, 1), tau=0.5)", 0.0),
        (POOL, Policy(), "window_activity(kernel=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)),"
         " dilation=(1, 1))", -math.inf),
        (replace(POOL, kernel=(1, 1), stride=(1, 1)), RECEPTIVE, "None", None),
        (replace(POOL, kernel=(1, 1)), Policy(), "window_activity(kernel=(1, 1), stride=(2, 2),"
         " padding=((0, 0), (0, 0)), dilation=(1, 1))", None),
        (replace(POOL, kernel=(10, 12)), Policy(), "anywhere(axes=(2, 3))", -math.inf),
    ],
)  # fmt: skip
def test_the_mask_through_a_window(
    step: steps.Window, policy: Policy, how: str, identity: float | None
) -> None:
    bench = Bench(policy)
    outcome = bench.run(step, 0)
    assert isinstance(outcome.result, Tracked)
    assert str(bench.table[outcome.result.row].how) == how
    assert outcome.identity == identity


def test_channels_that_differ_are_combined_by_groups() -> None:
    bench = Bench()
    row = bench.add(".xxx")
    dense = bench.result(replace(SAME, kernel=(1, 1), padding=((0, 0), (0, 0))), row)
    assert dense.full == (False, False, True, True)
    grouped = bench.result(replace(SAME, groups=4, channels=16), row)
    assert grouped.full == (False, True, True, True)
    depthwise = bench.run(replace(SAME, groups=8), row)
    assert depthwise.result == Tracked(row)


def test_strict_input_asks_for_whole_windows_once() -> None:
    bench = Bench(Policy(input="strict"))
    first = bench.result(SAME, 0, image_level=True)
    assert first.how is not None
    assert ("whole", True) in first.how.options
    assert bench.run(SAME, 0).result == Tracked(0)


def test_explicit_padding_right_before_a_window_is_its_padding() -> None:
    bench = Bench()
    pad = steps.Pad(((0, 0), (0, 0), (0, 1), (2, 0)))
    padded = bench.run(pad, 0, output=(13, 8, 11, 14)).result
    assert isinstance(padded, Tracked)
    result = bench.result(POOL, padded.row, shape=(13, 8, 11, 14))
    assert result.of == (0,)
    assert result.how is not None
    assert dict(result.how.options)["padding"] == ((0, 1), (2, 0))


def test_renormalised_means_name_their_window() -> None:
    mean = replace(POOL, reads="mean")
    assert Bench().run(mean, 0).renormalise is None
    outcome = Bench(Policy(pool="renormalize")).run(mean, 0)
    assert outcome.renormalise is not None
    assert outcome.renormalise.function == "window_renormalise"


@pytest.mark.parametrize(
    ("size", "how", "axes"),
    [
        ((5, 6), "adaptive_activity", ".."),
        ((1, 1), "anywhere", ".."),
        ((None, 1), "share_activity", "x."),
        ((None, None), None, "xx"),
    ],
)
def test_adaptive_pooling(size: tuple[int | None, ...], how: str | None, axes: str) -> None:
    result = Bench().result(steps.AdaptivePool(size, "mean"), 0)
    assert (result.how and result.how.function) == how
    if how != "adaptive_activity":
        assert result.full[2:] == tuple(mark == "x" for mark in axes)


def test_interpolation_reads_zero() -> None:
    bench = Bench(Policy(tau=0.25))
    outcome = bench.run(steps.Resize("bilinear"), 0, output=(13, 8, 20, 24))
    assert outcome.identity == 0.0
    assert str(bench.table[1].how) == "resize_activity(mode=bilinear, axes=(2, 3), tau=0.25)"


def test_windows_of_the_image_in_axis_0_are_samples_to_a_window() -> None:
    bench = Bench()
    windows = BatchAxis(inner=4)
    row = bench.add("x.xx", windows)
    result = bench.result(STRIDED, row)
    assert result.full == (True, False, True, True)
    assert result.batch == windows


@pytest.mark.parametrize("step", [SAME, POOL, steps.AdaptivePool((5, 6), "max"), steps.Resize("x")])
def test_a_batch_on_another_axis_is_refused(step: steps.Step) -> None:
    bench = Bench()
    with pytest.raises(Refusal, match="to be axis 0"):
        bench.run(step, bench.add("..xx", BatchAxis(1)))


def test_a_window_of_two_ranks_is_no_window() -> None:
    with pytest.raises(ValueError, match="different ranks"):
        steps.Window((2, 2), (2, 2), ((0, 0), (0, 0)), (1,))
