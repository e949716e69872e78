"""Rules without a graph: a view in, a step out, compared by ``==``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.axis_map import Block
from convad_fx.compiler.analysis.rules import REGISTRY, rule, step_of
from convad_fx.compiler.capture.op_schema import OpView, TensorView
from convad_fx.compiler.capture.spellings import SPELLINGS

GRID = TensorView((13, 8, 10, 12), masked=True, node="z")
SAMPLE = TensorView((8, 10, 12), masked=True, node="z")


def op(kind: str, output: Any = (13, 8, 10, 12), **params: Any) -> OpView:
    return OpView(kind, "some.path", kind, {"input": GRID, **params}, output)


POOL = op("max_pool", kernel_size=2, stride=None, padding=0, dilation=1, ceil_mode=False)


def conv(**params: Any) -> OpView:
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | params
    return op("conv", weight=TensorView((16, 8, 3, 5)), bias=None, **given)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (
            conv(stride=(2, 1), padding=(1, 2)),
            steps.Window((3, 5), (2, 1), ((1, 1), (2, 2)), (1, 1), groups=1, channels=16),
        ),
        (
            conv(padding="same", dilation=2),
            steps.Window((3, 5), (1, 1), ((2, 2), (4, 4)), (2, 2), groups=1, channels=16),
        ),
        (
            conv(padding=1, padding_mode="reflect"),
            steps.Window(
                (3, 5), (1, 1), ((1, 1), (1, 1)), (1, 1), groups=1, channels=16, mode="reflect"
            ),
        ),
        (
            op(
                "max_pool", kernel_size=3, stride=None, padding=1, dilation=1, ceil_mode=True,
                return_indices=False,
            ),
            steps.Window(
                (3, 3), (3, 3), ((1, 1), (1, 1)), (1, 1), channels=8, reads="max", ceil_mode=True
            ),
        ),
        (
            op("adaptive_avg_pool", output_size=(None, 1)),
            steps.AdaptivePool((None, 1), "mean"),
        ),
        (op("mean", dim=(-1, -2), keepdim=False), steps.Reduce((2, 3), False, "mean")),
        (op("amax", dim=(), keepdim=True), steps.Reduce((0, 1, 2, 3), True, "max")),
        (op("linear", weight=TensorView((5, 12))), steps.Reduce((3,), keepdim=True)),
        (op("layer_norm", normalized_shape=(10, 12)), steps.Statistic((2, 3))),
        (op("transpose", dim0=1, dim1=-1), steps.Rearrange((0, 3, 2, 1))),
        (op("movedim", source=1, destination=-1), steps.Rearrange((0, 2, 3, 1))),
        (op("unsqueeze", dim=-1), steps.Rearrange((0, 1, 2, 3, None))),
        (
            op("flatten", start_dim=2, end_dim=-1, output=(13, 8, 120)),
            steps.Reshape((Block((0,), (0,)), Block((1,), (1,)), Block((2, 3), (2,)))),
        ),
        (
            op("getitem", index=(Ellipsis, slice(None, None, 2))),
            steps.Take((slice(None), slice(None), slice(None), slice(None, None, 2))),
        ),
        (
            op("pad", pad=(0, 1, 2, 0), mode="constant", value=None),
            steps.Pad(((0, 0), (0, 0), (2, 0), (0, 1))),
        ),
        (op("add", other=1.0, alpha=1), steps.Join("sum")),
        (op("mul", other=GRID), steps.Join("product")),
    ],
    ids=lambda value: value.kind if isinstance(value, OpView) else "",
)  # fmt: skip
def test_step(view: OpView, expected: steps.Step) -> None:
    assert step_of(view) == expected


@pytest.mark.parametrize(
    ("view", "why"),
    [
        (op("dropout", p=0.5, training=True), "drops elements at random"),
        (op("stochastic_depth", p=0.5, training=True), "drops whole branches at random"),
        (op("pixel_shuffle", input=SAMPLE, upscale_factor=2), "one sample without a batch"),
        (op("pixel_unshuffle", input=SAMPLE, downscale_factor=2), "one sample without a batch"),
        (op("batch_norm", running_mean=None, training=False), "statistics of the batch"),
        (op("roll", shifts=1), "across the border"),
        (op("data_dependent"), "by value"),
        (op("getitem", index=(slice(None), GRID)), "than a list of indices"),
        (op("max_pool", kernel_size=2, return_indices=True), "argmax indices"),
        (op("unknown"), "no rule says"),
        (replace(POOL, spelling="MaxPool3d"), "as one sample without a batch"),
        (replace(POOL, spelling="avg_pool1d.default"), "as one sample without a batch"),
    ],
)
def test_refusal(view: OpView, why: str) -> None:
    step = step_of(view)
    assert isinstance(step, steps.Refused)
    assert why in step.why
    assert step.hint


def test_every_kind_has_exactly_one_rule() -> None:
    assert {row.kind for row in SPELLINGS} == set(REGISTRY)


def test_a_second_rule_for_a_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="conv already has a rule"):
        rule("conv")(lambda view: steps.SameCell())
