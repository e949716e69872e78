"""Windows: convolution, pooling, adaptive pooling, interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.plan import Derivation, Tracked
from convad_fx.compiler.analysis.transfer.reduction import reduce
from convad_fx.compiler.analysis.transfer.table import (
    ActivityTable,
    Context,
    Operands,
    Outcome,
    batch_first,
    transfer,
)
from convad_fx.compiler.capture.op_schema import OpView

Options = tuple[tuple[str, Any], ...]


@transfer.register(steps.Window)
def window(step: steps.Window, op: OpView, operands: Operands, context: Context) -> Outcome:
    (operand,) = operands
    activity, shape = context.table[operand.row], operand.view.shape
    batch_first(activity)
    samples, channel, *grid = activity.full
    combines = channel and step.groups > 0 and not (step.groups == shape[1] == step.channels)
    if not any(grid) and not combines:
        return Outcome(Tracked(operand.row))
    if step.covers(shape[2:]):
        axes = tuple(range(2, 2 + len(grid)))
        whole = reduce(steps.Reduce(axes, keepdim=True, reads=step.reads), op, operands, context)
        return replace(whole, size_bound="kernel_size" not in op.sized)
    bound = bool(op.sized & {"kernel_size", "stride", "padding", "dilation"})
    identity = step.identity
    if step.one_cell and not combines:
        identity = None
        if set(step.stride) == {1}:
            return Outcome(Tracked(operand.row), size_bound=bound)
    strict = context.reads_strictly(operand.tracked)
    in_place = step.keeps_grid and context.policy.attribution == "positional" and not strict
    row = operand.row
    if combines or not in_place:
        geometry = _geometry(step, [full and not in_place for full in grid])
        if not in_place and not step.transposed:
            geometry, row = _fold_padding(geometry, row, step, context.table)
        how = _derivation(step, geometry, context, strict=strict, combines=combines)
        channel = step.groups > 1 if combines else channel
        row = context.table.intern(how, (row,), (samples, channel, *grid))
    mean = None
    if step.reads == "mean" and context.policy.pool == "renormalize":
        ceil: Options = (("ceil_mode", True),) if step.ceil_mode else ()
        mean = Derivation("window_renormalise", (*_geometry(step, grid), *ceil))
    return Outcome(Tracked(row), identity, renormalise=mean, size_bound=bound)


def _derivation(
    step: steps.Window, geometry: Options, context: Context, *, strict: bool, combines: bool
) -> Derivation:
    """``combines``: channels that differ in activity are combined."""
    options: Options = (*geometry, ("tau", context.policy.tau))
    if strict:
        options += (("whole", True),)
    if step.ceil_mode:
        options += (("ceil_mode", True),)
    if step.mode != "constant":
        options += (("mode", step.mode),)
    if combines:
        options += (("groups", step.groups), ("channels", step.channels))
    return Derivation("transposed_activity" if step.transposed else "window_activity", options)


def _geometry(step: steps.Window, keep: Sequence[bool]) -> Options:
    """The window along the axes to keep; along the others one of a single element."""

    def where(values: tuple[Any, ...], otherwise: Any) -> tuple[Any, ...]:
        return tuple(v if k else otherwise for v, k in zip(values, keep, strict=True))

    return (
        ("kernel", where(step.kernel, 1)),
        ("stride", where(step.stride, 1)),
        ("padding", where(step.padding, (0, 0))),
        ("dilation", where(step.dilation, 1)),
    )


def _fold_padding(
    geometry: Options, row: int, step: steps.Window, table: ActivityTable
) -> tuple[Options, int]:
    """Explicit padding right before a window is padding: neither exists for Phi."""
    how, of = table[row].how, table[row].of
    if how is None or how.function != "pad_activity" or step.ceil_mode:
        return geometry, row
    explicit = dict(how.options)
    source = of[0]
    if (
        source is None
        or table[source].padded
        or explicit["mode"] != "constant"
        or step.mode != "constant"
        or steps.SAME in step.padding
        or len(explicit["padding"]) > len(step.kernel)
        or any(n < 0 for pair in explicit["padding"] for n in pair)  # elements cut off are not read
    ):
        return geometry, row
    missing = len(step.kernel) - len(explicit["padding"])
    pairs = ((0, 0),) * missing + explicit["padding"]
    options = dict(geometry)
    options["padding"] = tuple(
        (a + c, b + d) for (a, b), (c, d) in zip(options["padding"], pairs, strict=True)
    )
    return tuple(options.items()), source


@transfer.register(steps.AdaptivePool)
def adaptive_pool(
    step: steps.AdaptivePool, op: OpView, operands: Operands, context: Context
) -> Outcome:
    (operand,) = operands
    activity, policy = context.table[operand.row], context.policy
    batch_first(activity)
    first = operand.view.rank - len(step.output_size)
    sizes = dict(enumerate(step.output_size, start=first))
    axes = tuple(axis for axis, n in sizes.items() if activity.full[axis] and n is not None)
    if not axes:
        return Outcome(Tracked(operand.row))
    reduced = tuple(axis for axis in axes if sizes[axis] == 1)
    if reduced == axes:
        return reduce(steps.Reduce(axes, keepdim=True, reads=step.reads), op, operands, context)
    is_tuple = isinstance(op.output[0], tuple)  # aten's maximum returns its indices as well
    options: Options = (("axes", axes), ("tau", policy.tau))
    if context.reads_strictly(operand.tracked):
        options += (("whole", True),)
    how = Derivation(
        "adaptive_activity",
        options,
        ((op.node, 0) if is_tuple else op.node,),
        (op.output[0][1:] if is_tuple else op.output[1:],),
    )
    full = tuple(wide and axis not in reduced for axis, wide in enumerate(activity.full))
    mean = None
    if step.reads == "mean" and policy.pool == "renormalize":
        mean = Derivation("adaptive_renormalise", (("axes", axes),))
    row = context.table.intern(how, (operand.row,), full)
    return Outcome(Tracked(row), step.identity, renormalise=mean)


@transfer.register(steps.Resize)
def resize(step: steps.Resize, op: OpView, operands: Operands, context: Context) -> Outcome:
    (operand,) = operands
    activity = context.table[operand.row]
    batch_first(activity)
    axes = tuple(axis for axis in range(2, len(activity.full)) if activity.full[axis])
    if not axes:
        return Outcome(Tracked(operand.row))
    options: Options = (
        ("mode", step.mode),
        ("axes", axes),
        ("tau", context.policy.tau),
        ("align_corners", step.align_corners),
        ("scale_factor", step.scale_factor),
    )
    if step.antialias:
        options += (("antialias", True),)
    if context.reads_strictly(operand.tracked):
        options += (("whole", True),)
    how = Derivation(
        "resize_activity",
        options,
        (op.node, operand.view.node),
        (op.output[1:], operand.view.shape[1:]),
    )
    row = context.table.intern(how, (operand.row,), activity.full)
    return Outcome(Tracked(row), step.identity)
