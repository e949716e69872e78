"""Operations in which every output element reads its own input element."""

from __future__ import annotations

from convad_fx.compiler.analysis.rules.registry import rule
from convad_fx.compiler.analysis.steps import Constant, Refused, SameCell, Step
from convad_fx.compiler.capture.op_schema import OpView


@rule("elementwise")
def elementwise(op: OpView) -> Step:
    return SameCell()


@rule("constant_like")
def constant_like(op: OpView) -> Step:
    return Constant()


@rule("rrelu")
def rrelu(op: OpView) -> Step:
    if op.training:
        return Refused("it draws its slopes at random", "call model.eval()")
    return SameCell()


@rule("dropout", "stochastic_depth")
def dropout(op: OpView) -> Step:
    if op.training and op.p > 0:
        dropped = "elements" if op.kind == "dropout" else "whole branches"
        return Refused(f"it drops {dropped} at random", "call model.eval(), or pass training=False")
    return SameCell()


@rule("batch_norm", "native_batch_norm")
def batch_norm(op: OpView) -> Step:
    # without running statistics it uses those of the batch, in eval mode too
    if op.training or op.running_mean is None:
        return Refused(
            "it normalises by statistics of the batch, so images (and masks) change each other",
            "call model.eval() on a BatchNorm with running statistics",
        )
    return SameCell()
