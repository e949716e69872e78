"""Axes combined into one value."""

from __future__ import annotations

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.plan import Derivation, Tracked
from convad_fx.compiler.analysis.transfer.table import (
    Context,
    Operands,
    Outcome,
    Refusal,
    mixes_images,
    transfer,
)
from convad_fx.compiler.capture.op_schema import OpView


@transfer.register(steps.Reduce)
def reduce(step: steps.Reduce, op: OpView, operands: Operands, context: Context) -> Outcome:
    (operand,) = operands
    table, policy, row = context.table, context.policy, operand.row
    full = table[row].full
    if table[row].batch.axis in step.axes:
        raise mixes_images()
    axes = tuple(axis for axis in step.axes if full[axis])
    kept = step.order or tuple(
        axis for axis in range(len(full)) if step.keepdim or axis not in step.axes
    )
    if not axes:
        tracked = Tracked(table.rearrange(row, kept), operand.tracked.image_level)
        return Outcome(_results(step, tracked))
    if step.refuse_full and not context.first_output_only:
        raise Refusal(step.refuse_full, "reduce over channels, or use amax")
    left = tuple(wide and axis not in axes for axis, wide in enumerate(full))
    is_global = not any(left)
    if is_global:  # tau is not applied: it would switch off the whole network
        row = table.anywhere(row, axes)
    else:
        how = Derivation("share_activity", (("axes", axes), ("tau", policy.tau)))
        row = table.intern(how, (row,), left)
    mean = None
    if step.reads == "mean" and policy.pool == "renormalize":
        mean = Derivation("mean_renormalise", (("axes", axes), ("kept", kept)))
    return Outcome(
        _results(step, Tracked(table.rearrange(row, kept))),
        step.identity,
        refill=step.reads in ("max", "min") and is_global,
        renormalise=mean,
    )


def _results(step: steps.Reduce, result: Tracked) -> Tracked | tuple[Tracked, ...]:
    return (result,) * step.results if step.results else result
