"""Two operands, element by element."""

from __future__ import annotations

from convad_fx.compiler.analysis.rules.registry import rule
from convad_fx.compiler.analysis.steps import Join, Refused, Step
from convad_fx.compiler.capture.op_schema import OpView, TensorView


@rule("add")
def add(op: OpView) -> Step:
    return Join("sum")


@rule("mul")
def mul(op: OpView) -> Step:
    # a zero factor wins; and what divides by a hidden element is hidden
    return Join("product")


@rule("pow", "compare", "logical", "masked_fill")
def pairwise(op: OpView) -> Step:
    # of two masked operands both must be visible for the result to mean anything
    return Join("product")


@rule("addcmul")
def addcmul(op: OpView) -> Step:
    # input + value * other * third
    masked = {name for name, _ in op.masked()}
    if len(masked) > 2:
        return Refused(
            "it adds and multiplies three tensors that depend on the image at once",
            "write it as a sum and a product",
        )
    return Join("product" if masked == {"other", "third"} else "sum")


@rule("where", "lerp")
def choose(op: OpView) -> Step:
    if sum(1 for _ in op.masked()) > 2:
        return Refused(
            "it joins three tensors that depend on the image at once",
            "write it as sums and products",
        )
    # as a product: where one operand is hidden, neither the choice nor the mix means anything
    return Join("product")


@rule("maximum")
def maximum(op: OpView) -> Step:
    return Join("max")


@rule("minimum")
def minimum(op: OpView) -> Step:
    return Join("min")


def is_tensor(value: object) -> bool:
    """A tensor operand, and not a number."""
    return isinstance(value, TensorView)
