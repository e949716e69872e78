"""Two operands, element by element."""

from __future__ import annotations

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.plan import Derivation, Tracked
from convad_fx.compiler.analysis.transfer.table import (
    Context,
    Operand,
    Operands,
    Outcome,
    Refusal,
    mixes_images,
    transfer,
)
from convad_fx.compiler.capture.op_schema import OpView


@transfer.register(steps.Join)
def join(step: steps.Join, op: OpView, operands: Operands, context: Context) -> Outcome:
    ranks = {operand.view.rank for operand in operands}
    if len(ranks) > 1 or len(op.output) not in ranks:
        raise Refusal(
            "its operands have different ranks, so their axes do not correspond",
            "reshape the smaller one to (N, C, 1, 1)",
        )
    if len(operands) == 1:
        return _with_constant(operands[0], op, context)
    a, b = (operand.tracked for operand in operands)
    first, second = (context.table[tracked.row] for tracked in (a, b))
    level = a.image_level and b.image_level
    if a.row == b.row:
        return Outcome(Tracked(a.row, level))
    if first.batch != second.batch:
        raise mixes_images()
    if first.is_global != second.is_global:
        return Outcome(Tracked(b.row if first.is_global else a.row, level))
    both_global = first.is_global
    if step.reads == "product":
        how = Derivation("intersection")
    else:
        tau = 0.0 if both_global else context.policy.tau
        how = Derivation("sum_activity", (("tau", tau),))
    low, high = sorted((a.row, b.row))
    full = tuple(x or y for x, y in zip(first.full, second.full, strict=True))
    row = context.table.intern(how, (low, high), full, padded=first.padded and second.padded)
    return Outcome(Tracked(row, level), None if both_global else step.identity)


def _with_constant(operand: Operand, op: OpView, context: Context) -> Outcome:
    """The other operand does not depend on the image."""
    activity = context.table[operand.row]
    axes = zip(activity.full, operand.view.shape, op.output, strict=True)
    if any(full and before != after for full, before, after in axes):
        raise Refusal("it repeats a position along an axis", "use interpolate")
    return Outcome(operand.tracked)
