"""Two operands, cell by cell."""

from __future__ import annotations

from convad_fx.compiler.ops import OpView, TensorView
from convad_fx.compiler.rules.registry import rule
from convad_fx.compiler.steps import Join, Step


@rule("add")
def add(op: OpView) -> Step:
    return Join("sum")


@rule("mul")
def mul(op: OpView) -> Step:
    # a zero factor wins; and what divides by a hidden cell is hidden
    return Join("product")


@rule("pow", "compare")
def pairwise(op: OpView) -> Step:
    # of two masked operands both must be visible for the result to mean anything
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
