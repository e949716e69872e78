"""Steps that keep every element at its place: same-cell operations and normalisations."""

from __future__ import annotations

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.plan import Tracked
from convad_fx.compiler.analysis.transfer.table import (
    Context,
    Operands,
    Outcome,
    Refusal,
    mixes_images,
    transfer,
)
from convad_fx.compiler.capture.op_schema import OpView


@transfer.register(steps.SameCell)
def same_cell(step: steps.SameCell, op: OpView, operands: Operands, context: Context) -> Outcome:
    return Outcome(operands[0].tracked)


@transfer.register(steps.Statistic)
def statistic(step: steps.Statistic, op: OpView, operands: Operands, context: Context) -> Outcome:
    (operand,) = operands
    activity = context.table[operand.row]
    if activity.batch.axis in step.axes:
        raise mixes_images()
    if not any(activity.full[axis] for axis in step.axes):
        return Outcome(operand.tracked)
    if step.refuse_full:
        raise Refusal(step.refuse_full, "ConvAD is defined for convolutional networks")
    return Outcome(Tracked(operand.row), step.identity)
