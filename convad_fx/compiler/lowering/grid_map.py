"""How the grid of every tensor lies over the image's, and what each operation does to it.

One analysis for all strategies: box, patch and tile lowering read its records and write graphs. A
record depends on nothing but the operation and where the grids of its operands lie, so it is
computed once, however many strategies read it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch.fx

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.plan import NodePlan, Plan
from convad_fx.compiler.capture.node_facts import facts
from convad_fx.compiler.capture.op_schema import OpView, TensorView
from convad_fx.compiler.capture.trace import Trace
from convad_fx.compiler.kernels.padding import same_padding
from convad_fx.compiler.kernels.patch import Reach
from convad_fx.compiler.passes.node_roles import (
    decided,
    inserted,
    inside_of_zeros,
    is_gate,
    is_original,
    original_of,
    padding_of,
    role_of,
    zeroes,
)

Node = torch.fx.Node

#: Roles of inserted nodes that pass a value on.
GATES = ("gate", "refill", "per_mask")


@dataclass(frozen=True, slots=True)
class GridMap:
    """How the grid of a tensor lies over the image's.

    Attributes:
        axes: of the tensor, one for each grid axis of the image, in the image's order.
        strides: image positions per cell.
        extra: cells that explicit padding has added, (before, after).
    """

    axes: tuple[int, ...]
    strides: tuple[int, ...]
    extra: tuple[tuple[int, int], ...]

    @classmethod
    def of_image(cls, dims: int) -> GridMap:
        """The image's own.

        >>> GridMap.of_image(2)
        GridMap(axes=(2, 3), strides=(1, 1), extra=((0, 0), (0, 0)))
        """
        return cls(tuple(range(2, 2 + dims)), (1,) * dims, ((0, 0),) * dims)

    @property
    def aligned(self) -> bool:
        """Nothing has been added: cell i covers the image's positions from stride * i on."""
        return not any(map(any, self.extra))


#: Of what an operation gives: one tensor, several, or nothing on a grid.
Grids = GridMap | tuple[GridMap | None, ...] | None


@dataclass(frozen=True, slots=True)
class WindowMap:
    """A window that reads more than its own cell, with all its padding in numbers.

    Attributes:
        step, op: the window, with explicit padding before it included, and its parameters.
        span: cells from the first to the last that it reads, along each grid axis.
        pad: cells of padding before the grid.
    """

    step: steps.Window
    op: OpView
    span: tuple[int, ...]
    pad: tuple[int, ...]

    def reads(self, reach: Reach) -> Reach:
        """Cells before and after a part that are read for so many cells around its result."""
        rows = zip(reach, self.span, self.step.stride, self.pad, strict=True)
        return tuple(
            (before * stride + pad, (after - 1) * stride - pad + span + 1)
            for (before, after), span, stride, pad in rows
        )

    def changes(self, reach: Reach) -> Reach:
        """Cells around a part whose windows read any of so many cells around it."""
        rows = zip(reach, self.span, self.step.stride, self.pad, strict=True)
        return tuple(
            ((before + span - pad) // stride, (after - 1 + pad) // stride + 1)
            for (before, after), span, stride, pad in rows
        )


@dataclass(frozen=True, slots=True)
class GridStep:
    """What an operation does to the grids of its operands. Reasons are "" where there is none.

    Attributes:
        grid: of the result.
        no_box: why it cannot run on boxes.
        ungated: why it cannot, if its operand is a box: that may hold more than the grid.
        no_patch: why it cannot run on patches.
        no_tile: why it cannot run on tiles.
        window: None where it works cell by cell.
        append: zeros after a box, so that the result is as large as the box at its stride.
        crop: of a box, the result may be larger than that.
        granularity: image positions of whose multiples boxes must be.
        mean_of: the size of the whole grid, where it takes a mean over it.
    """

    grid: Grids
    no_box: str = ""
    ungated: str = ""
    no_patch: str = ""
    no_tile: str = ""
    window: WindowMap | None = None
    append: tuple[int, ...] = ()
    crop: bool = False
    granularity: tuple[int, ...] = ()
    mean_of: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Operand:
    """The operand of an operation: its grid, and whether inactive cells read as a constant."""

    item: TensorView
    grid: GridMap
    gated: bool


class NoGridMap(Exception):
    """The result has no known grid map, or none for one of the strategies."""


class Geometry:
    """The records of a simplified masked graph.

    Attributes:
        image: the node of the image.
        unmasked: values that are the same for every mask.
    """

    def __init__(self, traced: Trace, plan: Plan, graph: torch.fx.Graph) -> None:
        self.traced, self.plan, self.graph = traced, plan, graph
        self.image = next(n for n in graph.nodes if n.op == "placeholder" and n.name != "mask")
        self.unmasked = {self.image}
        for node in graph.nodes:
            if self.is_value(node):
                values = (n for n in node.all_input_nodes if self.is_value(n) or role_of(n))
                if self.unmasked.issuperset(values):
                    self.unmasked.add(node)
        self._steps: dict[tuple[Node, tuple[Grids, ...], tuple[Grids, ...]], GridStep | None] = {}

    def is_value(self, node: Node) -> bool:
        """Whether it is the image, or an operation or parameter of the model with a tensor."""
        if node.op in ("placeholder", "output") or not is_original(node):
            return node is self.image
        known = facts(node)
        depends = known.name in self.plan.nodes or not any(map(is_original, node.all_input_nodes))
        return depends and known.has_tensors

    def work(self, node: Node) -> int:
        """Multiplications of a convolution or linear layer that is recomputed for every mask.

        One per weight and cell of the result. torch.utils.flop_counter has another formula for each
        operator, and for transposed convolutions counts cells of the operand.
        """
        known = decided(node, self.plan)
        if known is None or known.op is None or node in self.unmasked:
            return 0
        weight, shape = known.op.params.get("weight"), known.op.output
        if not (isinstance(weight, TensorView) and isinstance(shape, tuple) and shape):
            return 0
        if not isinstance(known.step, steps.Window | steps.Reduce):
            return 0
        channels = shape[1 if isinstance(known.step, steps.Window) else -1]
        return int(math.prod(shape[1:]) // max(channels, 1) * math.prod(weight.shape))

    def pads(self, node: Node) -> bool:
        """Whether it is explicit padding, of whatever axes."""
        return padding_of(node, self.plan) is not None

    def pads_grid(self, node: Node, grid: Grids) -> bool:
        """Whether it is explicit padding of the grid: nothing on a patch, nor on a tile."""
        return isinstance(grid, GridMap) and not grid.aligned and self.pads(node)

    def full(self, gated: Node) -> tuple[bool, ...]:
        """For each axis of a gate's activity, whether it may differ along it."""
        return self.plan.activities[inserted(gated).row].full

    def size(self, node: Node, grid: GridMap) -> tuple[int, ...]:
        """Cells along each grid axis, for the image of the example."""
        shape = facts(original_of(node)).shape
        return tuple(shape[axis] for axis in grid.axes)

    # ---------------------------------------------------------------------------- the records

    def at(self, node: Node, grids: Mapping[Node, Grids]) -> GridStep | None:
        """The record of an operation; None where no operand has a grid.

        Args:
            grids: of the operands, None for those on whole grids from which no parts are cut.
        """
        direct = tuple(map(grids.get, node.all_input_nodes))
        sources = [original_of(n) for n in node.all_input_nodes]
        key = node, direct, tuple(map(grids.get, sources))
        if key not in self._steps:
            known = decided(node, self.plan)
            by_name = {facts(n).name: grids.get(n) for n in sources}
            try:
                record = None if known is None else self._through(node, known, direct, by_name)
            except NoGridMap as error:
                why = str(error)
                record = GridStep(None, no_box=why, no_patch=why, no_tile=why)
            self._steps[key] = record
        return self._steps[key]

    def _through(
        self, node: Node, known: NodePlan, direct: Sequence[Grids], by_name: Mapping[str, Grids]
    ) -> GridStep | None:
        step, op = known.step, known.op
        padded = any(isinstance(grid, GridMap) and not grid.aligned for grid in direct)
        if padded and not isinstance(step, steps.Window | steps.Pad):
            # elsewhere zeros are ordinary values, and a box has only those next to it
            raise NoGridMap("only windows and further padding may read explicit padding")
        if direct and isinstance(direct[0], tuple):
            return GridStep(_picked(node, direct[0]))
        if step is None or op is None:
            raise NoGridMap("no rule describes it")
        if op.sized and not isinstance(step, steps.Reshape | steps.Expand):
            raise NoGridMap("it uses the size of the grid")
        on_grid = []
        for _, item in op.masked():
            grid = by_name.get(item.node)
            if isinstance(grid, tuple):
                grid = None if item.item is None else grid[item.item]
            if grid is not None:
                on_grid.append((item, grid))
        if not on_grid:
            return None
        item, grid = on_grid[0]
        if any(other != grid for _, other in on_grid[1:]):
            raise NoGridMap("it joins grids that lie differently over the image")
        if len({tuple(each.shape[a] for a in grid.axes) for each, _ in on_grid}) > 1:
            raise NoGridMap("it joins grids of different size")  # of one cell, for every other
        if isinstance(step, steps.Join | steps.Concat | steps.SameCell):
            _check_others(op, grid, [each for each, _ in on_grid])
        operand = _Operand(item, grid, any(name == item.node for name, _ in known.reads))
        match step:
            case steps.Window():
                return self._window(node, step, op, operand)
            case steps.Pad():
                return self._pad(node, step, grid)
            case steps.AdaptivePool(sizes, reads):
                if set(sizes) != {1} or not operand.gated:
                    raise NoGridMap("it pools to a grid of fixed size")
                return _reduced(reads, item, grid)
            case steps.Reduce():
                return _reduce(step, op, operand)
        return _relabelled(step, op, item, grid)

    def _window(self, node: Node, step: steps.Window, op: OpView, operand: _Operand) -> GridStep:
        grid, gated, dims = operand.grid, operand.gated, len(step.kernel)
        if grid.axes != tuple(range(2, 2 + dims)):
            raise NoGridMap("its grid is not the image's")
        if step.transposed or step.mode != "constant":
            raise NoGridMap("no box is known for transposed convolutions and copying padding")
        strides = tuple(a * b for a, b in zip(grid.strides, step.stride, strict=True))
        result = GridMap(grid.axes, strides, ((0, 0),) * dims)
        cell_by_cell = step.one_cell and grid.aligned
        window = None
        if not (cell_by_cell and set(step.stride) == {1}):
            window = _window_map(step, op, operand)
        ungated = "it reads cells that are not gated"
        no_patch = self._no_patch(node, op, step, grid, window)
        record = GridStep(
            result,
            ungated="" if gated or step.one_cell else ungated,
            no_patch=no_patch,
            no_tile=no_patch or ("" if gated or cell_by_cell else ungated),
            window=window,
        )
        try:
            return _on_box(record, strides, step, op, operand)
        except NoGridMap as error:
            return replace(record, no_box=str(error))

    def _no_patch(
        self, node: Node, op: OpView, step: steps.Window, grid: GridMap, window: WindowMap | None
    ) -> str:
        if op.kind == "standardised_conv_same":
            return "only a call of it makes its weight"
        if op.kind not in ("conv", "conv_same", "max_pool", "max_pool_same", "avg_pool"):
            return f"no patch is known for {op.spelling}"
        if step.reads == "max" and not grid.aligned:
            return "its maximum would read explicit padding"
        if op.kind == "avg_pool" and (op.get("divisor_override") or _counts_cells(step, op)):
            return "it divides by another number of cells at the border"
        if window is not None and node.op == "call_module":
            module = self.traced.module.get_submodule(str(node.target))
            if module._forward_hooks or module._forward_pre_hooks:
                return "hooks make its weight, and only a call of it runs them"
        return ""

    def _pad(self, node: Node, step: steps.Pad, grid: GridMap) -> GridStep:
        pairs = [step.padding[axis] for axis in grid.axes]
        gated = zeroes(inside_of_zeros(node, self.plan))
        ungated = ""
        if any(map(any, pairs)):
            if not step.zeros:
                raise NoGridMap("it pads with something other than zeros")
            if any(n < 0 for pair in pairs for n in pair):
                raise NoGridMap("it crops positions")
            if not gated:
                ungated = "what it pads is not gated: a box may hold more than the grid"
            extra = tuple((a + c, b + d) for (a, b), (c, d) in zip(grid.extra, pairs, strict=True))
            grid = replace(grid, extra=extra)
        no_patch = ""
        if not grid.aligned:
            if any(map(is_gate, node.users)):
                no_patch = "its padding is gated"
            elif any(any(pair) for axis, pair in enumerate(step.padding) if axis not in grid.axes):
                no_patch = "it pads more than the grid"
        no_tile = no_patch or ("" if gated or grid.aligned else "what it pads is not gated")
        return GridStep(grid, ungated=ungated, no_patch=no_patch, no_tile=no_tile)


def _picked(node: Node, grids: tuple[GridMap | None, ...]) -> GridMap:
    if node.target is operator.getitem and isinstance(node.args[1], int):
        picked = grids[node.args[1]]
        if picked is not None:
            return picked
    raise NoGridMap("it takes one of several tensors other than by a constant index")


def _check_others(op: OpView, grid: GridMap, on_grid: list[TensorView]) -> None:
    """Operands without a `GridMap` must not have a grid either."""
    seen = {(item.node, item.item) for item in on_grid}
    for value in op.params.values():
        for item in value if isinstance(value, tuple) else (value,):
            if not isinstance(item, TensorView) or (item.node, item.item) in seen:
                continue
            shape = (1,) * (on_grid[0].rank - item.rank) + item.shape
            if item.rank > 1 and any(shape[axis] > 1 for axis in grid.axes):
                raise NoGridMap("it is joined with a grid of which no box is known")


# ------------------------------------------------------------------------------ axes and cells


def _relabelled(step: steps.Step, op: OpView, item: TensorView, grid: GridMap) -> GridStep:
    """Operations that compute nothing from neighbours: cell by cell, or axes renamed."""
    match step:
        case steps.SameCell() | steps.Join() | steps.ChannelShuffle():
            return GridStep(grid)
        case steps.Statistic(axes):
            if set(axes) & set(grid.axes):
                raise NoGridMap("its statistics are those of the whole grid")
            return GridStep(grid)
        case steps.Rearrange(axes):
            return GridStep(_moved(grid, {a: i for i, a in enumerate(axes) if a is not None}))
        case steps.Reshape(blocks):
            single = [b for b in blocks if len(b.inputs) == len(b.outputs) == 1]
            return GridStep(_moved(grid, {b.inputs[0]: b.outputs[0] for b in single}))
        case steps.Expand(repeated):
            if set(repeated) & set(grid.axes):
                raise NoGridMap("it repeats positions")
            more = len(op.output) - item.rank
            return GridStep(replace(grid, axes=tuple(a + more for a in grid.axes)))
        case steps.Take() | steps.Pieces():
            takes = (step,) if isinstance(step, steps.Take) else step.takes
            taken = tuple(_taken(take, grid) for take in takes)
            strided = any(piece.strides != grid.strides for piece in taken)
            why = "it takes a strided slice" if strided else ""
            if isinstance(step, steps.Take):
                return GridStep(taken[0], no_patch=why, no_tile=why, crop=strided)
            return GridStep(taken, no_patch=why, no_tile=why)
        case steps.Flip(axes):
            if set(axes) & set(grid.axes):
                raise NoGridMap("it reverses positions")
            return GridStep(grid)
        case steps.Concat(axis, new):
            if axis in grid.axes and not new:
                raise NoGridMap("it concatenates along positions")
            return GridStep(replace(grid, axes=tuple(a + (new and a >= axis) for a in grid.axes)))
    raise NoGridMap(f"no box is known for a {type(step).__name__}")


def _moved(grid: GridMap, where: Mapping[int, int]) -> GridMap:
    if not set(grid.axes) <= set(where):
        raise NoGridMap("it merges positions with other axes")
    return replace(grid, axes=tuple(where[a] for a in grid.axes))


def _taken(step: steps.Take, grid: GridMap) -> GridMap:
    axes, strides = list(grid.axes), list(grid.strides)
    before = after = 0  # axes of the operand and of the result so far
    for index in step.index:
        if index is None:
            after += 1
            continue
        if before in grid.axes:
            i = grid.axes.index(before)
            if (
                not isinstance(index, slice)
                or index.start not in (None, 0)
                or index.stop is not None
            ):
                raise NoGridMap("it crops positions")
            by = index.step or 1
            if by != 1 and not grid.aligned:
                raise NoGridMap("it takes a strided slice of a padded grid")
            axes[i], strides[i] = after, strides[i] * by
        before, after = before + 1, after + (not isinstance(index, int))
    rest = {a: a - before + after for a in grid.axes if a >= before}
    axes = [rest.get(a, axes[i]) for i, a in enumerate(grid.axes)]
    return replace(grid, axes=tuple(axes), strides=tuple(strides))


# ----------------------------------------------------------------------------------- reductions


def _reduced(reads: str, item: TensorView, grid: GridMap) -> GridStep:
    if reads == "mean":
        return GridStep(None, mean_of=tuple(item.shape[axis] for axis in grid.axes))
    if reads in ("max", "min"):
        return GridStep(None)
    raise NoGridMap("it combines all positions in a way that zeros around a box may change")


def _reduce(step: steps.Reduce, op: OpView, operand: _Operand) -> GridStep:
    item, grid = operand.item, operand.grid
    mixed = set(step.axes) & set(grid.axes)
    if not mixed:
        kept = [a for a in range(item.rank) if step.keepdim or a not in step.axes]
        moved = _moved(grid, {a: i for i, a in enumerate(kept)})
        return GridStep((moved,) * step.results if step.results else moved)
    if mixed != set(grid.axes) or step.results or not operand.gated:
        raise NoGridMap("it combines positions along some axes only, or ungated")
    return GridStep(None) if op.kind == "sum" else _reduced(step.reads, item, grid)


# -------------------------------------------------------------------------------------- windows


def _window_map(step: steps.Window, op: OpView, operand: _Operand) -> WindowMap:
    """The window with padding in numbers, of this grid, explicit padding before it included."""
    sizes, extra = operand.item.shape[2:], operand.grid.extra
    rows = zip(sizes, step.kernel, step.stride, step.dilation, step.padding, extra, strict=True)
    padding, span = [], []
    for size, kernel, stride, dilation, pair, (before, after) in rows:
        low, high = same_padding(size, kernel, stride, dilation) if pair is steps.SAME else pair
        padding.append((low + before, high + after))
        span.append(dilation * (kernel - 1))
    step = replace(step, padding=tuple(padding))
    return WindowMap(step, op, tuple(span), tuple(low for low, _ in padding))


def _on_box(
    record: GridStep, strides: tuple[int, ...], step: steps.Window, op: OpView, operand: _Operand
) -> GridStep:
    """The record of a window, with what it needs on boxes."""
    grid = operand.grid
    if step.reads == "max" and not grid.aligned:
        raise NoGridMap("its maximum would read explicit padding")
    if step.ceil_mode if step.reads == "sum" else step.reads == "mean" and _counts_cells(step, op):
        raise NoGridMap("it divides by the number of cells at the border")
    append, crop = [], set(step.stride) != {1}
    granularity = [1] * len(step.kernel)
    for i, (kernel, stride, pair) in enumerate(
        zip(step.kernel, step.stride, step.padding, strict=True)
    ):
        span, size = step.dilation[i] * (kernel - 1), operand.item.shape[2 + i]
        if span >= size and span:
            raise NoGridMap("its window is as large as the grid")
        if pair is steps.SAME:
            same = {same_padding(n, span + 1, stride, 1)[0] for n in (size, stride)}
            if not grid.aligned or len(same) > 1:
                raise NoGridMap("its padding depends on the size of the grid")
            append.append(0)
            granularity[i] = strides[i] if stride > 1 else 1
            continue
        # Of a box of n * stride cells the result has n + 1 + floor(surplus / stride) cells
        # (with ceil_mode: ceil); n are wanted.
        surplus = sum(grid.extra[i]) + sum(pair) - span - 1
        least = 1 - 2 * stride if step.ceil_mode else -stride
        append.append(max(0, least - surplus))
        crop |= surplus > (-stride if step.ceil_mode else -1)
        # Where a box ends with only one cell of a stride, the result has n + floor((1 +
        # surplus) / stride) cells.
        if stride > 1 and 1 + surplus <= (-stride if step.ceil_mode else -1):
            granularity[i] = strides[i]
    return replace(record, append=tuple(append), crop=crop, granularity=tuple(granularity))


def _counts_cells(step: steps.Window, op: OpView) -> bool:
    """Whether it divides by the number of cells that a window has, which padding changes."""
    if op.kind not in ("avg_pool", "avg_pool_same") or op.get("divisor_override"):
        return False
    padded = any(pair is steps.SAME or any(pair) for pair in step.padding)
    return step.ceil_mode or (padded and not op.get("count_include_pad", True))
