"""Relabellings, padding and concatenation: elements under other axes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, get_args

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.axis_map import (
    Axis,
    AxisMap,
    BatchAxis,
    Changed,
    Component,
    Merged,
    MixesImages,
    Piece,
)
from convad_fx.compiler.analysis.plan import Activity, Derivation, Tracked
from convad_fx.compiler.analysis.transfer.table import (
    ActivityTable,
    Context,
    Operand,
    Operands,
    Outcome,
    Refusal,
    batch_first,
    mixes_images,
    transfer,
)
from convad_fx.compiler.capture.op_schema import OpView, TensorView


def relabel(step: steps.Relabelling, op: OpView, operands: Operands, context: Context) -> Outcome:
    (operand,) = operands
    table, activity = context.table, context.table[operand.row]
    axis_map = steps.axis_map_of(step, operand.view.shape, op.output)
    try:
        batch = axis_map.batch_after(activity.batch)
    except MixesImages:
        raise mixes_images() from None
    bound = False
    match step:
        case steps.Rearrange(axes):
            row = table.rearrange(operand.row, axes)
        case steps.Reshape():
            row = _Layout(activity, batch, axis_map).row(operand, op, table)
            bound = activity.batch.is_merged and batch != activity.batch
        case steps.Take():
            row = _taken(step, axis_map, batch, operand.row, table)
            bound = bool(op.sized) and any(activity.full[axis] for axis in _changed(axis_map))
        case steps.PixelShuffle():
            row = _pixel_shuffled(step, operand, table)
        case _:
            row = _in_place(step, axis_map, operand.row, table)
    return Outcome(Tracked(row, operand.tracked.image_level), size_bound=bound)


for _step in get_args(steps.Relabelling):
    transfer.register(_step, relabel)


def _changed(axis_map: AxisMap) -> list[int]:
    """Input axes of which elements are taken, reversed or repeated."""
    changed = [component.axis for component in axis_map.outputs if isinstance(component, Changed)]
    return changed + [axis for axis, _ in axis_map.fixed]


def _in_place(
    step: steps.Expand | steps.Flip | steps.ChannelShuffle,
    axis_map: AxisMap,
    row: int,
    table: ActivityTable,
) -> int:
    """Steps that keep the order of axes."""
    activity = table[row]
    full = activity.full
    if isinstance(step, steps.ChannelShuffle):
        batch_first(activity)
        how = Derivation("channel_shuffle", (("groups", step.groups),))
        return table.relabel(how, row, full) if full[1] else row
    changed = tuple(axis for axis in _changed(axis_map) if full[axis])
    if not changed:
        return row
    if isinstance(step, steps.Expand):
        raise Refusal(
            "it repeats a position along an axis, so an element appears at several positions",
            "use interpolate(mode='nearest')",
        )
    return table.relabel(Derivation("flip", (("dims", changed),)), row, full)


def _pixel_shuffled(step: steps.PixelShuffle, operand: Operand, table: ActivityTable) -> int:
    row, activity = operand.row, table[operand.row]
    batch_first(activity)
    samples, channels, *grid = activity.full
    options = (("factor", step.factor),)
    if step.down or channels:
        full = (samples, True, True, True)
        shape = operand.view.shape[1:]
        row = table.relabel(Derivation("spread_as", (), (operand.view.node,), (shape,)), row, full)
        name = "pixel_unshuffle" if step.down else "pixel_shuffle"
        return table.relabel(Derivation(name, options), row, full)
    axes = tuple(axis for axis, differs in enumerate(grid, 2) if differs)
    how = Derivation("upsampled", (*options, ("axes", axes)))
    return table.relabel(how, row, activity.full) if axes else row


def _taken(
    step: steps.Take, axis_map: AxisMap, batch: BatchAxis, row: int, table: ActivityTable
) -> int:
    """The index that does to an activity what the step does to its tensor."""
    full = table[row].full
    result = tuple(any(full[axis] for axis in component.axes) for component in axis_map.outputs)
    index = list[Any]()
    axis = 0
    for item in step.index:
        if item is None:
            index.append(None)
            continue
        if isinstance(item, int):
            index.append(item if full[axis] else 0)
        else:
            index.append(item if full[axis] and not isinstance(item, TensorView) else slice(None))
        axis += 1
    if any(item != slice(None) for item in index):
        row = table.relabel(Derivation("take", (("index", tuple(index)),)), row, result, batch)
    for at, component in enumerate(axis_map.outputs):  # a list in the graph: taken last
        if isinstance(component, Changed) and isinstance(component.how, TensorView) and result[at]:
            node = (component.how.node,)
            row = table.relabel(
                Derivation("index_activity", (("axis", at),), node, node), row, result
            )
    return row


@transfer.register(steps.Pieces)
def pieces(step: steps.Pieces, op: OpView, operands: Operands, context: Context) -> Outcome:
    taken = [relabel(take, op, operands, context) for take in step.takes]
    results = tuple(each.result for each in taken if isinstance(each.result, Tracked))
    return Outcome(results, size_bound=any(each.size_bound for each in taken))


# ---------------------------------------------------------------------------------- reshape


@dataclass(slots=True)
class _Layout:
    """How an activity is stored after a reshape.

    Attributes:
        axes: for every output axis the input axis that it is, None where nothing differs along it.
        full: output axes along which activity may differ.
        spread: input axes merged with others or cut: to be written out before the reshape.
    """

    activity: Activity
    batch: BatchAxis
    axis_map: AxisMap
    axes: list[int | None] = field(default_factory=list)
    full: list[bool] = field(default_factory=list)
    spread: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        for component in self.axis_map.outputs:
            self._append(component)

    def _append(self, component: Component) -> None:
        full, shape = self.activity.full, self.axis_map.shape
        has_batch = len(self.full) == self.batch.axis
        is_batch = has_batch and not self.batch.is_merged
        differs = not is_batch and any(full[axis] for axis in component.axes)
        self.axes.append(None)
        self.full.append(differs)
        if not differs and not has_batch:
            return
        old = self.activity.batch.axis
        longer = [axis for axis in component.axes if shape[axis] > 1 or full[axis] or axis == old]
        is_cut_anew = isinstance(component, Piece) and len(longer) > 1
        if differs and is_cut_anew and (old not in longer or not _is_aligned(component, shape)):
            raise Refusal(
                "the reshape mixes spatial and non-spatial axes",
                "permute first, and reshape whole axes",
            )
        if isinstance(component, Axis | Merged) and len(longer) == 1:
            self.axes[-1] = longer[0]
        else:
            self.spread.update(component.axes)

    def row(self, operand: Operand, op: OpView, table: ActivityTable) -> int:
        """The activity of the result."""
        if not self.spread:
            return table.rearrange(operand.row, tuple(self.axes))
        before, after, batch = operand.view.shape, op.output, self.activity.batch
        stored = self.full
        sizes, options = (before[1:], after[1:]), tuple[tuple[str, Any], ...]()
        if not (batch.is_first and self.batch.is_first):
            how, base = self.activity.how, self.activity.of[:1]
            if how is not None and how.function == "reshaped" and how.sizes == (after, before):
                assert base[0] is not None
                return base[0]  # inverse of the previous reshape
            stored = [
                differs or bool(self.spread.intersection(component.axes))
                for differs, component in zip(self.full, self.axis_map.outputs, strict=True)
            ]
            collapsed = tuple(
                axis
                for axis, pair in enumerate(zip(stored, self.full, strict=True))
                if pair == (True, False) and axis != self.batch.axis
            )
            sizes = (before, after)
            options = (("batch", (batch.axis, self.batch.axis)), ("collapsed", collapsed))
        how = Derivation(
            "reshaped",
            (("spread", tuple(sorted(self.spread))), ("full", tuple(stored)), *options),
            (operand.view.node, op.node),
            sizes,
        )
        return table.relabel(how, operand.row, tuple(self.full), self.batch)


def _is_aligned(component: Component, shape: tuple[int, ...]) -> bool:
    """Every output axis is made of whole digits of input axes: none straddles two."""
    assert isinstance(component, Piece)
    inside = [
        {math.prod(sizes[i:]) for i in range(len(sizes))}
        for sizes in (tuple(shape[a] for a in component.axes), component.sizes)
    ]
    strides = sorted(set[int]().union(*inside))
    return all(high % low == 0 for low, high in itertools.pairwise(strides))


# --------------------------------------------------------------------- padding, concatenation


@transfer.register(steps.Pad)
def pad(step: steps.Pad, op: OpView, operands: Operands, context: Context) -> Outcome:
    (operand,) = operands
    activity = context.table[operand.row]
    if step.padding[activity.batch.axis] != (0, 0):
        raise mixes_images()
    batch_first(activity)
    padding = tuple(
        pair if full else (0, 0) for pair, full in zip(step.padding, activity.full, strict=True)
    )
    first = next((axis for axis, pair in enumerate(padding) if pair != (0, 0)), None)
    if first is None:
        return Outcome(operand.tracked)
    adds = step.mode == "constant" and any(lo > 0 or hi > 0 for lo, hi in padding)
    row = context.table.intern(
        Derivation("pad_activity", (("padding", padding[first:]), ("mode", step.mode))),
        (operand.row,),
        activity.full,
        padded=adds or activity.padded,
    )
    return Outcome(Tracked(row, operand.tracked.image_level), size_bound=bool(op.sized))


@transfer.register(steps.Concat)
def concat(step: steps.Concat, op: OpView, operands: Operands, context: Context) -> Outcome:
    table = context.table
    level = all(operand.tracked.image_level for operand in operands)
    given = [_with_new_axis(operand, step, table) for operand in operands]
    batches = {table[row].batch for row in given}
    if len(batches) > 1 or table[given[0]].batch.axis == step.axis:
        raise mixes_images()
    if len(given) == len(op.input) and len(set(given)) == 1 and not table[given[0]].full[step.axis]:
        return Outcome(Tracked(given[0], level))
    known = iter(given)
    rows = tuple(next(known) if item.masked else None for item in op.input)
    full = [any(column) for column in zip(*(table[row].full for row in given), strict=True)]
    full[step.axis] = True
    how = Derivation(
        "concatenated",
        (("axis", step.axis),),
        tuple(None if step.new else (item.node, item.item) for item in op.input),
        tuple(item.shape[1:] for item in op.input),
    )
    padded = None in rows or any(table[row].padded for row in given)
    return Outcome(Tracked(table.intern(how, rows, tuple(full), padded=padded), level))


def _with_new_axis(operand: Operand, step: steps.Concat, table: ActivityTable) -> int:
    """The row of an operand, which ``stack`` gives a new axis."""
    if not step.new:
        return operand.row
    axes: list[int | None] = list(range(operand.view.rank))
    axes.insert(step.axis, None)
    return table.rearrange(operand.row, tuple(axes))
