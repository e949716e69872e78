"""Normalisation by numbers computed from the sample itself."""

from __future__ import annotations

from convad_fx.compiler.analysis.rules.registry import rule
from convad_fx.compiler.analysis.steps import Refused, SameCell, Statistic, Step
from convad_fx.compiler.capture.op_schema import OpView

_ATTENTION = (
    "a softmax over positions is attention: weights over what is visible, which no window bounds"
)


@rule("layer_norm")
def layer_norm(op: OpView) -> Step:
    count = len(op.normalized_shape)
    return Statistic(tuple(range(op.input.rank - count, op.input.rank)))


@rule("group_norm")
def group_norm(op: OpView) -> Step:
    return Statistic(tuple(range(1, op.input.rank)))


@rule("instance_norm", "native_instance_norm")
def instance_norm(op: OpView) -> Step:
    # a module without running statistics, a function with use_input_stats
    by_sample = op.get("use_input_stats", op.get("running_mean") is None)
    if not by_sample:
        return SameCell()
    return Statistic(tuple(range(2, op.input.rank)))


@rule("local_response_norm")
def local_response_norm(op: OpView) -> Step:
    return Statistic((1,))


@rule("normalize")
def normalize(op: OpView) -> Step:
    axes = op.dim if isinstance(op.dim, tuple) else (op.dim,)
    return Statistic(tuple(axis % op.input.rank for axis in axes))


@rule("softmax", "softmax2d")
def softmax(op: OpView) -> Step:
    dim = 1 if op.kind == "softmax2d" else op.dim
    if dim is None:
        return Refused("softmax without dim chooses its axis by the rank", "pass dim")
    return Statistic((dim % op.input.rank,), refuse_full=_ATTENTION)


@rule("glu")
def glu(op: OpView) -> Step:
    # one half of the axis gates the other: no element stays where it was along it
    return Statistic(
        (op.dim % op.input.rank,), refuse_full="a GLU over positions multiplies distant elements"
    )
