"""From the masked graph to one that runs on boxes: the part of every grid that is switched on.

Where every operation that mixes positions reads gated input, all is zero outside the active cells,
and zero padding around a box stands for it. A grid that is S times coarser than the image has its
box at 1/S of the image's, if that is aligned; so boxes start at multiples of the product of the
strides. They end anywhere where all strided windows are padded by as much as they reach: a box of
E positions is then one of E / S cells, rounded up, at every level; otherwise at such multiples.
Activities are computed on whole masks and cut, so that whatever the policy says of them stays true.

The walk gives every tensor a `GridMap`: which axes are the image's, how much coarser, and what
explicit padding has added. An operation keeps boxes (a convolution), ends them by itself (a mean
over the grid is put into proportion, a maximum is what it is), or is given whole grids again, zero
around the
box: then everything after it is as before.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.plan import NodePlan, Plan, Tracked
from convad_fx.compiler.capture.op_schema import OpView, TensorView
from convad_fx.compiler.capture.trace import META, Facts, Trace, facts
from convad_fx.compiler.kernels import box as crop
from convad_fx.compiler.kernels.activity import gate, same_padding
from convad_fx.compiler.lowering.cost_model import CostModel, OpCost
from convad_fx.compiler.passes.insert_gates import Inserted, inside_of_zeros, padding_of, zeroes

Node = torch.fx.Node

#: Less of the network's arithmetic on boxes than this, and finding boxes is not worth its while.
WORTHWHILE = 0.5


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

    @property
    def aligned(self) -> bool:
        """Nothing has been added: cell i covers the image's positions from stride * i on."""
        return not any(map(any, self.extra))


@dataclass(frozen=True, slots=True)
class BoxPlan:
    """How a network runs on boxes, if it does.

    Attributes:
        values: graph of ``(x, *cells, *activities) -> answer``; None where it does not.
        activities: graph of ``(x, mask) -> activities``, on whole masks.
        cells: the grid axis and the stride of those that values takes.
        levels: of those activities that gates of boxes read; None for the others.
        tile: boxes start at multiples of this.
        grain: their sizes are multiples of this.
        canvas: the image size this holds for.
        work: what each mask multiplies.
        leaves: operations that are given whole grids again, and why.
        why: what keeps it from running on boxes, or "".
    """

    values: torch.fx.Graph | None
    activities: torch.fx.Graph | None
    cells: tuple[tuple[int, int], ...]
    levels: tuple[GridMap | None, ...]
    tile: tuple[int, ...]
    granularity: tuple[int, ...]
    image_size: tuple[int, ...]
    work: CostModel
    leaves: tuple[tuple[str, str], ...] = ()
    why: str = ""

    @property
    def ok(self) -> bool:
        """It runs on boxes."""
        return not self.why

    def __str__(self) -> str:
        if not self.ok:
            return f"runs on whole images only: {self.why}"
        tile, unit = (" x ".join(map(str, sides)) for sides in (self.tile, self.granularity))
        sizes = (
            "any size" if set(self.granularity) == {1} else f"sizes that are multiples of {unit}"
        )
        text = (
            f"runs on boxes at multiples of {tile} positions, of {sizes} "
            f"({self.work.on_boxes:.0%} of its arithmetic)"
        )
        ends = [f"{path} ({why})" for path, why in self.leaves]
        return text + (f"; whole grids again at {'; '.join(ends)}" if ends else "")


class Unsupported(Exception):
    """Nothing of this network can run on boxes."""


class Leaves(Exception):
    """This operation cannot run on a box."""


@dataclass(frozen=True, slots=True)
class Passes:
    """What an operation does to a box.

    Attributes:
        level: of its result, one each for several, None where it has no grid.
        append: zeros after its operand, so that the result is as large as the box at its stride.
        fit: the result may be larger than that, and has to be cut.
        mean_of: the number of cells of the whole grid, where it takes a mean over it.
    """

    level: GridMap | tuple[GridMap | None, ...] | None
    append: tuple[int, ...] = ()
    fit: bool = False
    mean_of: tuple[int, ...] = ()


class BoxLowering:
    """Decides whether, and from where to where, a simplified masked graph runs on boxes."""

    def __init__(self, traced: Trace, plan: Plan, graph: torch.fx.Graph) -> None:
        self.traced, self.plan, self.old = traced, plan, graph
        self.graph = torch.fx.Graph()
        self.boxes: dict[Node, Node] = {}
        self.wholes: dict[Node, Node] = {}
        self.numbers: dict[tuple[Node, bool], Node] = {}  # sizes: of the box, of the whole
        self.levels: dict[Node, GridMap | tuple[GridMap | None, ...] | None] = {}
        self.heads: dict[str, Node] = {}  # the first placeholders, by name
        self.cells: dict[tuple[int, int], Node] = {}  # axis and stride -> placeholder
        self.inputs: dict[Node, Node] = {}  # activity -> placeholder
        self.cuts: dict[tuple[Node, GridMap], Node] = {}
        self.asked: dict[Node, GridMap | None] = {}
        self.shapes: list[tuple[int, ...]] = []  # of these activities, of two masks
        self.leaves: list[tuple[str, str]] = []
        self.done: list[
            tuple[Node, float, OpCost | None]
        ] = []  # operations, and what they multiply
        self.whole_cells: list[tuple[int, ...]] = []  # strides at whose multiples boxes must end
        self.unmasked: set[Node] = set()  # the same for every mask: computed once
        self.at: Node | None = None  # the operation at hand
        self.on_box = False  # whether it is given boxes

    def build(self) -> BoxPlan:
        """The result; `boxes` and `asked` say where each tensor and activity is in it."""
        roles = {role_of(node) for node in self.old.nodes}
        if "renormalise" in roles:
            return self._none("means are divided by the active count, which a box does not know")
        if "fill" in roles:
            return self._none(
                "inactive cells read as their neighbours, so a box is not all there is"
            )
        try:
            for node in self.old.nodes:
                self._write(node)
        except Unsupported as unsupported:
            return self._none(str(unsupported))
        self.graph.lint()
        strides = [level.strides for level in self._of_boxes()]
        if not strides:
            return self._none("nothing in it is read through gates on the image's grid")
        work = CostModel.of((whole, cost) for _, whole, cost in self.done)
        if work.on_boxes < WORTHWHILE:
            where = f"; {self.leaves[0][0]}: {self.leaves[0][1]}" if self.leaves else ""
            share = f"{work.on_boxes:.0%}"
            return self._none(f"only {share} of its arithmetic could run on boxes{where}")
        one = (1,) * len(self.traced.grid)
        tile = tuple(math.lcm(*column) for column in zip(*strides, strict=True))
        granularity = tuple(
            math.lcm(*column) for column in zip(one, *self.whole_cells, strict=True)
        )
        levels = tuple(self.asked.values())
        region = BoxPlan(
            self.graph, self._activities(), tuple(self.cells), levels, tile, granularity,
            self.traced.grid, work, tuple(dict(self.leaves).items()),
        )  # fmt: skip
        wrong = self._wrong_shape(region)
        return self._none(wrong) if wrong else region

    def _none(self, why: str) -> BoxPlan:
        one = (1,) * len(self.traced.grid)
        return BoxPlan(None, None, (), (), one, one, self.traced.grid, CostModel(), why=why)

    def _of_boxes(self) -> Iterator[GridMap]:
        for node in self.boxes:
            known = self.levels.get(node)
            yield from (k for k in (known if isinstance(known, tuple) else (known,)) if k)

    # -------------------------------------------------------------------------------- the walk

    def _write(self, node: Node) -> None:
        role = role_of(node)
        if node.op == "placeholder":
            self._write_input(node)
        elif node.op == "output":
            self.graph.output(torch.fx.map_arg(node.args[0], self._whole))
        elif role in ("gate", "refill"):
            self._write_gate(node)
        elif role == "per_mask":
            x, mask = node.args
            args = (self._whole(x), self._activity(mask))  # type: ignore[arg-type]
            self.wholes[node] = self._call(node.target, args, f"{node.name}")
            self.levels[node] = self.levels[x]  # type: ignore[index]
        elif role or META not in node.meta:
            pass  # activities: they have a graph of their own
        elif facts(node).has_tensors and self._is_value(node):
            self._write_operation(node)
        # numbers and sizes are written where they are asked for: of the box, or of the whole

    def _write_input(self, node: Node) -> None:
        if node.name == "mask":
            return
        self.wholes[node] = self.heads["x"] = self.graph.placeholder("x")
        self.unmasked.add(node)
        dims = len(self.traced.grid)
        self.levels[node] = GridMap(tuple(range(2, 2 + dims)), (1,) * dims, ((0, 0),) * dims)

    def _write_gate(self, node: Node) -> None:
        value, activity, *fill = node.args
        assert isinstance(value, Node)
        assert isinstance(activity, Node)
        level = self.levels.get(value)
        if isinstance(level, GridMap) and not (
            level.aligned or (zeroes(node) and self._pads(value))
        ):
            level = None  # what padding has become is not known around a box
        self.levels[node] = level
        if not isinstance(level, GridMap):
            args = (self._whole(value), self._activity(activity), *fill)
            self.wholes[node] = self._call(gate, args, node.name)
            return
        known = node.meta[META]
        full = self.plan.activities[known.row].full
        args = (self._box(value), self._cut_activity(activity, level, full), *fill)
        self.boxes[node] = self._call(gate, args, node.name)

    def _is_value(self, node: Node) -> bool:
        """It depends on the image's values, or is a parameter."""
        return facts(node).name in self.plan.nodes or not any(
            isinstance(n.meta.get(META), Facts) for n in node.all_input_nodes
        )

    def _write_operation(self, node: Node) -> None:
        decided = self.plan.nodes.get(facts(node).name)
        operands = [n for n in node.all_input_nodes if n in self.boxes or n in self.wholes]
        boxed = self.on_box = any(n in self.boxes for n in operands)
        passes: Passes | None
        try:
            passes = None if decided is None else self._through(node, decided)
        except Leaves as leaves:
            passes = None
            if boxed:
                self.leaves.append((facts(node).path, str(leaves)))
        boxed = boxed and passes is not None
        if set(operands) <= self.unmasked:
            self.unmasked.add(node)
        self.levels[node] = passes.level if passes else None
        self._tell(node, boxed=boxed)
        if not boxed:
            self.wholes[node] = self._copy(node, whole=True)
            return
        assert passes is not None
        copied = self._copy(node, whole=False, append=passes.append)
        if passes.fit:
            assert isinstance(passes.level, GridMap)
            wanted = (copied, self._cells_of(passes.level), passes.level.axes)
            copied = self._call(crop.fitted, wanted, f"{node.name}_fitted")
        if passes.mean_of:
            source = next(n for n in operands if n in self.boxes)
            level = self.levels[source]
            assert isinstance(level, GridMap)
            args = (copied, self.boxes[source], level.axes, passes.mean_of)
            copied = self._call(crop.of_whole, args, f"{node.name}_of_whole")
        (self.boxes if passes.level else self.wholes)[node] = copied

    def _copy(self, node: Node, *, whole: bool, append: tuple[int, ...] = ()) -> Node:
        def operand(source: Node) -> Node:
            given = self._whole(source) if whole else self._as_operand(source)
            if any(append) and source in self.boxes:
                pads = [n for more in reversed(append) for n in (0, more)]
                fill = source.args[2] if source.target is gate and len(source.args) > 2 else 0.0
                args = (given, pads, "constant", fill)
                given = self._call(torch.nn.functional.pad, args, f"{source.name}_wider")
            return given

        copied = self.graph.node_copy(node, operand)
        copied.meta = {}
        return copied

    # -------------------------------------------------------------------- boxes and whole grids

    def _as_operand(self, node: Node) -> Node:
        """What an operation on boxes is given: boxes, and what has no grid as it is."""
        if node in self.boxes or isinstance(self.levels.get(node), GridMap):
            return self._box(node)
        if node in self.wholes:
            return self.wholes[node]
        return self._number(node, whole=False)

    def _box(self, node: Node) -> Node:
        if node not in self.boxes:
            level = self.levels[node]
            assert isinstance(level, GridMap)
            args = (self.wholes[node], self._cells_of(level), level.axes, level.extra)
            self.boxes[node] = self._call(crop.cut, args, f"{node.name}_box")
        return self.boxes[node]

    def _whole(self, node: Node) -> Node:
        if node in self.wholes:
            return self.wholes[node]
        if node not in self.boxes:
            return self._number(node, whole=True)
        level = self.levels[node]
        # several tensors are taken apart once more, of whole grids; these are padded, too
        if not isinstance(level, GridMap) or self._pads(node):
            self.wholes[node] = self._copy(node, whole=True)
            return self.wholes[node]
        source = node.args[0] if node.target is gate else node
        while isinstance(source.meta.get(META), Inserted):  # type: ignore[union-attr]
            source = source.args[0]  # type: ignore[union-attr]
        if node.target is not gate:
            self._hold_active_cells(node, level)
        shape = facts(source).shape  # type: ignore[arg-type]
        image_size = tuple(shape[axis] for axis in level.axes)
        fill = node.args[2:3] if node.target is gate else ()
        args = (self.boxes[node], self._cells_of(level), level.axes, image_size, *fill)
        self.wholes[node] = self._call(crop.placed, args, f"{node.name}_whole")
        return self.wholes[node]

    def _hold_active_cells(self, node: Node, level: GridMap) -> None:
        """An ungated value goes back to whole grids: the box must hold its active cells."""
        decided = self.plan.nodes[facts(node).name].result
        assert isinstance(decided, Tracked)
        if self.plan.activities[decided.row].is_global:
            return
        for known in self.old.nodes:
            about = known.meta.get(META)
            if (
                isinstance(about, Inserted)
                and about.role in ("mask", "activity")
                and about.row == decided.row
            ):
                self._activity(known)
                self.asked[known] = level
                return
        raise Unsupported(f"{facts(node).path} leaves boxes, and nothing reads its activity")

    def _number(self, node: Node, *, whole: bool) -> Node:
        """A size, or what is made from sizes or parameters alone."""
        if (node, whole) not in self.numbers:
            of = self._whole if whole else self._as_operand
            copied = self.graph.node_copy(node, of)
            copied.meta = {}
            self.numbers[node, whole] = copied
        return self.numbers[node, whole]

    def _activity(self, node: Node) -> Node:
        """A whole activity, handed in."""
        if node not in self.inputs:
            self.asked.setdefault(node, None)
            name = node.name if node.name.endswith("activity") else f"{node.name}_activity"
            name += "_" * any(name == given.target for given in self.inputs.values())
            self.inputs[node] = self._placeholder(name, self.heads, self.cells, self.inputs)
        return self.inputs[node]

    def _cells_of(self, level: GridMap) -> tuple[Node, ...]:
        """Where boxes lie in such a grid, handed in before the activities."""
        keys = tuple(enumerate(level.strides))
        for key in keys:
            if key not in self.cells:
                name = "cells_{}_{}".format(*key)
                self.cells[key] = self._placeholder(name, self.heads, self.cells)
        return tuple(self.cells[key] for key in keys)

    def _placeholder(self, name: str, *behind: dict[Any, Node]) -> Node:
        """A new one, behind the last of those."""
        last = [node for known in behind for node in known.values()][-1]
        with self.graph.inserting_after(last):
            return self.graph.placeholder(name)

    def _cut_activity(self, node: Node, level: GridMap, full: tuple[bool, ...]) -> Node:
        if (node, level) not in self.cuts:
            given = self._activity(node)
            self.asked[node] = level
            kept = [i for i, axis in enumerate(level.axes) if full[axis]]
            every = (self._cells_of(level), level.axes, level.extra)
            args = (given, *(tuple(each[i] for i in kept) for each in every))
            self.cuts[node, level] = self._call(crop.cut_activity, args, f"{node.name}_box")
        return self.cuts[node, level]

    def _call(self, function: Any, args: tuple[Any, ...], name: str) -> Node:
        return self.graph.create_node("call_function", function, args, {}, name=name)

    # -------------------------------------------------------------------- what operations do

    def _through(self, node: Node, decided: NodePlan) -> Passes | None:
        """What becomes of boxes at this operation. Raises `Leaves`."""
        self.at = node
        if self.plan.moves_batch(decided):
            raise Unsupported(f"{decided.path} moves the batch axis or merges it with others")
        given_levels = (self.levels.get(source) for source in node.all_input_nodes)
        padded = any(isinstance(level, GridMap) and not level.aligned for level in given_levels)
        if padded and not isinstance(decided.step, steps.Window | steps.Pad):
            # to all others zeros are cells like any other, and a box has only those next to it
            raise Leaves("only windows and further padding may read explicit padding")
        picked = self._picked(node)
        if picked is not None:
            return Passes(picked)
        step, op = decided.step, decided.op
        if step is None or op is None:
            raise Leaves("nothing is known of it")
        if op.sized and not isinstance(step, steps.Reshape | steps.Expand):
            raise Leaves("it uses the size of the grid")
        given = {facts(n).name: self.levels.get(n) for n in self._sources(node)}
        levels = [(item, given.get(item.node)) for _, item in op.masked()]
        levels = [
            (
                item,
                known[item.item] if isinstance(known, tuple) and item.item is not None else known,
            )
            for item, known in levels
        ]
        on_grid = [(item, level) for item, level in levels if isinstance(level, GridMap)]
        if not on_grid:
            return None
        item, level = on_grid[0]
        if any(other != level for _, other in on_grid[1:]):
            raise Leaves("it joins grids that lie differently over the image")
        if len({tuple(each.shape[a] for a in level.axes) for each, _ in on_grid}) > 1:
            raise Leaves("it joins grids of different size")  # of one cell, for every other
        if isinstance(step, steps.Join | steps.Concat | steps.SameCell):
            self._check_others(op, level, on_grid)
        return self._step_through(step, op, item, level, decided)

    def _sources(self, node: Node) -> Iterator[Node]:
        """The model's nodes that its operands are, or are gates of."""
        for operand in node.all_input_nodes:
            while isinstance(operand.meta.get(META), Inserted):
                operand = operand.args[0]  # type: ignore[assignment]
            yield operand

    def _picked(self, node: Node) -> GridMap | None:
        """One of several tensors."""
        source = node.args[0] if node.args else None
        known = self.levels.get(source) if isinstance(source, Node) else None
        if not isinstance(known, tuple):
            return None
        if node.target is operator.getitem and isinstance(node.args[1], int):
            picked = known[node.args[1]]
            if picked is not None:
                return picked
        raise Leaves("it takes several tensors apart in another way than by number")

    @staticmethod
    def _check_others(
        op: OpView, level: GridMap, on_grid: list[tuple[TensorView, GridMap]]
    ) -> None:
        """Operands without a level must not have a grid either."""
        rank = on_grid[0][0].rank
        seen = {(item.node, item.item) for item, _ in on_grid}
        for value in op.params.values():
            for item in value if isinstance(value, tuple) else (value,):
                if not isinstance(item, TensorView) or (item.node, item.item) in seen:
                    continue
                shape = (1,) * (rank - item.rank) + item.shape
                if item.rank > 1 and any(shape[axis] > 1 for axis in level.axes):
                    raise Leaves("it is joined with a grid that is not cut")

    def _step_through(
        self, step: steps.Step, op: OpView, item: TensorView, level: GridMap, decided: NodePlan
    ) -> Passes:
        match step:
            case steps.SameCell() | steps.Join() | steps.ChannelShuffle():
                return Passes(level)
            case steps.Window():
                return self._window(step, op, item, level, decided)
            case steps.AdaptivePool(sizes, reads):
                if set(sizes) != {1} or not self._gated(item, decided):
                    raise Leaves("it pools to a grid of fixed size")
                return self._reduced(reads, item, level)
            case steps.Reduce():
                return self._reduce(step, op, item, level, decided)
            case steps.Statistic(axes):
                if set(axes) & set(level.axes):
                    raise Leaves("its statistics are those of the whole grid")
                return Passes(level)
            case steps.Rearrange(axes):
                return Passes(
                    self._moved(level, {a: i for i, a in enumerate(axes) if a is not None})
                )
            case steps.Reshape(blocks):
                single = [b for b in blocks if len(b.inputs) == len(b.outputs) == 1]
                return Passes(self._moved(level, {b.inputs[0]: b.outputs[0] for b in single}))
            case steps.Expand(repeated):
                if set(repeated) & set(level.axes):
                    raise Leaves("it repeats positions")
                more = len(op.output) - item.rank
                return Passes(replace(level, axes=tuple(a + more for a in level.axes)))
            case steps.Take():
                taken = self._take(step, level)
                return Passes(taken, fit=taken.strides != level.strides)
            case steps.Pieces(takes):
                return Passes(tuple(self._take(take, level) for take in takes))
            case steps.Flip(axes):
                if set(axes) & set(level.axes):
                    raise Leaves("it turns positions round")
                return Passes(level)
            case steps.Pad():
                return Passes(self._pad(step, level))
            case steps.Concat(axis, new):
                if axis in level.axes and not new:
                    raise Leaves("it puts grids side by side")
                moved = tuple(a + (new and a >= axis) for a in level.axes)
                return Passes(replace(level, axes=moved))
        raise Leaves(f"no box is known for a {type(step).__name__}")

    @staticmethod
    def _gated(item: TensorView, decided: NodePlan) -> bool:
        return any(name == item.node for name, _ in decided.reads)

    @staticmethod
    def _moved(level: GridMap, where: dict[int, int]) -> GridMap:
        if not set(level.axes) <= set(where):
            raise Leaves("it merges positions with other axes")
        return replace(level, axes=tuple(where[a] for a in level.axes))

    @staticmethod
    def _take(step: steps.Take, level: GridMap) -> GridMap:
        axes, strides = list(level.axes), list(level.strides)
        before = after = 0
        for index in step.index:
            if index is None:
                after += 1
                continue
            if before in level.axes:
                i = level.axes.index(before)
                if (
                    not isinstance(index, slice)
                    or index.start not in (None, 0)
                    or index.stop is not None
                ):
                    raise Leaves("it cuts positions off")
                by = index.step or 1
                if by != 1 and not level.aligned:
                    raise Leaves("it takes every so many cells of a padded grid")
                axes[i], strides[i] = after, strides[i] * by
            before, after = before + 1, after + (not isinstance(index, int))
        rest = {a: a - before + after for a in level.axes if a >= before}
        axes = [rest.get(a, axes[i]) for i, a in enumerate(level.axes)]
        return replace(level, axes=tuple(axes), strides=tuple(strides))

    def _pads(self, node: Node) -> bool:
        """It is explicit padding, of whatever axes."""
        return padding_of(node, self.plan) is not None

    def _padded(self, node: Node) -> Node:
        """What this padding has been put around."""
        return next(n for n in node.all_input_nodes if n in self.levels)

    def _pad(self, step: steps.Pad, level: GridMap) -> GridMap:
        pairs = [step.padding[axis] for axis in level.axes]
        if not any(map(any, pairs)):
            return level
        if not step.zeros:
            raise Leaves("it pads with something other than zeros")
        if any(n < 0 for pair in pairs for n in pair):
            raise Leaves("it cuts positions off")
        assert self.at is not None
        if self._padded(self.at) in self.boxes and not zeroes(inside_of_zeros(self.at, self.plan)):
            raise Leaves("what it pads is not gated: a box may hold more than the grid")
        extra = tuple((a + c, b + d) for (a, b), (c, d) in zip(level.extra, pairs, strict=True))
        return replace(level, extra=extra)

    @staticmethod
    def _reduced(reads: str, item: TensorView, level: GridMap) -> Passes:
        image_size = tuple(item.shape[axis] for axis in level.axes)
        if reads == "mean":
            return Passes(None, mean_of=image_size)
        if reads in ("max", "min"):
            return Passes(None)
        raise Leaves("it combines all positions in a way that zeros around a box may change")

    def _reduce(
        self, step: steps.Reduce, op: OpView, item: TensorView, level: GridMap, decided: NodePlan
    ) -> Passes:
        mixed = set(step.axes) & set(level.axes)
        if not mixed:
            kept = [a for a in range(item.rank) if step.keepdim or a not in step.axes]
            moved = self._moved(level, {a: i for i, a in enumerate(kept)})
            return Passes((moved,) * step.results if step.results else moved)
        if mixed != set(level.axes) or step.results or not self._gated(item, decided):
            raise Leaves("it combines positions along some axes only, or ungated")
        if op.kind == "sum":
            return Passes(None)
        return self._reduced(step.reads, item, level)

    def _window(
        self, step: steps.Window, op: OpView, item: TensorView, level: GridMap, decided: NodePlan
    ) -> Passes:
        dims = len(step.kernel)
        if level.axes != tuple(range(2, 2 + dims)):
            raise Leaves("its grid is not the image's")
        if step.transposed or step.mode != "constant":
            raise Leaves("no box is known for transposed convolutions and copying padding")
        if self.on_box and not (self._gated(item, decided) or step.one_cell):
            raise Leaves("it reads cells that are not gated")
        if step.reads == "max" and not level.aligned:
            raise Leaves("a maximum over padding is not a maximum over nothing")
        if step.reads == "mean" and self._counts_cells(step, op):
            raise Leaves("it divides by the number of cells at the border")
        if step.reads == "sum" and step.ceil_mode:
            raise Leaves("it divides by the number of cells at the border")
        append, strides, fit = [], [], False
        whole = [1] * dims  # strides of which a box must not hold a part
        for i in range(dims):
            reach, stride = step.dilation[i] * (step.kernel[i] - 1), step.stride[i]
            size = item.shape[2 + i]
            pair, before = step.padding[i], sum(level.extra[i])
            if reach >= size and reach:
                raise Leaves("its window is as large as the grid")
            strides.append(level.strides[i] * stride)
            if pair is steps.SAME:
                same = (same_padding(n, reach + 1, stride, 1)[0] for n in (size, stride))
                if not level.aligned or len(set(same)) > 1:
                    raise Leaves("its padding depends on the size of the grid")
                append.append(0)
                whole[i] = strides[i] if stride > 1 else 1
                continue
            # Of a box of n * stride cells the result has n + 1 + floor(surplus / stride) cells
            # (with ceil_mode: ceil); n are wanted.
            surplus = before + sum(pair) - reach - 1
            least = 1 - 2 * stride if step.ceil_mode else -stride
            append.append(max(0, least - surplus))
            fit |= surplus > (-stride if step.ceil_mode else -1)
            # Where a box ends with only one cell of a stride, the result has n + floor((1 +
            # surplus) / stride) cells.
            if stride > 1 and 1 + surplus <= (-stride if step.ceil_mode else -1):
                whole[i] = strides[i]
        if self.on_box:
            self.whole_cells.append(tuple(whole))
        plain = ((0, 0),) * dims
        level = GridMap(level.axes, tuple(strides), plain)
        return Passes(level, tuple(append), fit or set(step.stride) != {1})

    @staticmethod
    def _counts_cells(step: steps.Window, op: OpView) -> bool:
        if op.kind not in ("avg_pool", "avg_pool_same") or op.get("divisor_override"):
            return False
        padded = any(pair is steps.SAME or any(pair) for pair in step.padding)
        return step.ceil_mode or (padded and not op.get("count_include_pad", True))

    # -------------------------------------------------------------------------- the other graph

    def _activities(self) -> torch.fx.Graph:
        """What computes the activities asked for, on whole masks; of values only shapes."""
        graph, copies = torch.fx.Graph(), dict[Node, Node]()
        image = next(n for n in self.old.nodes if n.op == "placeholder")

        def of(node: Node) -> Node:
            known = node.meta.get(META)
            # the parameter that the image must be like, or an index
            if node not in copies and (known is None or node.op == "get_attr"):
                copies[node] = graph.node_copy(node)
            if node not in copies and isinstance(known, Facts):
                args = (copies[image], tuple(facts(node).shape[1:]))
                copies[node] = graph.call_function(crop.shape_only, args)
            return copies[node]

        wanted, queue = set(self.asked), list(self.asked)
        while queue:
            for source in queue.pop().all_input_nodes:
                if source not in wanted and isinstance(source.meta.get(META), Inserted):
                    wanted.add(source)
                    queue.append(source)
        for node in self.old.nodes:
            if node.op == "placeholder" or node in wanted:
                known = node.meta.get(META)
                if isinstance(known, Inserted) and known.role == "piece":
                    whole = next(n for n in self.old.nodes if n is node.args[0])
                    args = (copies[image], tuple(facts(whole).shape[node.args[1]][1:]))
                    copies[node] = graph.call_function(crop.shape_only, args)
                    continue
                copies[node] = graph.node_copy(node, of)
                copies[node].meta = {}
        graph.output(tuple(copies[node] for node in self.asked))
        graph.lint()
        return graph

    # --------------------------------------------------------------------------------- checks

    def _tell(self, node: Node, *, boxed: bool) -> None:
        """Note what an operation multiplies, on a box or not."""
        work, level = self._work(node), self.levels[node]
        if not work:
            return
        cost = None
        if boxed and isinstance(level, GridMap):
            cells = math.prod(facts(node).shape[axis] for axis in level.axes)
            cost = OpCost(work / cells, level.strides, tuple(map(sum, self._more(node))))
        self.done.append((node, work, cost))

    def _more(self, node: Node) -> tuple[tuple[int, int], ...]:
        """Cells of an operation's result beyond the box, (before, after)."""
        level = self.levels[node]
        return level.extra if isinstance(level, GridMap) else ()

    def _work(self, node: Node) -> int:
        """Multiplications of a convolution or linear layer, if they are done for each mask."""
        decided = self.plan.nodes.get(facts(node).name)
        if decided is None or not isinstance(decided.step, steps.Window | steps.Reduce):
            return 0
        if node in self.unmasked:
            return 0
        op = decided.op
        weight = None if op is None else op.params.get("weight")
        if not (
            op is not None
            and isinstance(weight, TensorView)
            and isinstance(op.output, tuple)
            and op.output
        ):
            return 0
        channel = 1 if isinstance(decided.step, steps.Window) else -1
        cells = math.prod(op.output[1:]) // max(op.output[channel], 1)
        return int(cells * math.prod(weight.shape))

    def _wrong_shape(self, region: BoxPlan) -> str:
        """Run it without values, on boxes of little more than a tile: is every level as large?"""
        sizes = tuple(n + more for n, more in zip(region.tile, region.granularity, strict=True))
        assert region.values is not None
        assert region.activities is not None
        back = {new: old for old, new in self.boxes.items()}
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            x = self._image()
            mask = torch.ones(2, 1, *region.image_size, dtype=torch.bool, device=x.device)
            try:
                given = torch.fx.Interpreter(self._root(), graph=region.activities).run(x, mask)
                self.shapes = [tuple(activity.shape) for activity in given]
                run = Shapes(self._root(), region.values)
                shapes = ((2, -(-sizes[axis] // stride)) for axis, stride in region.cells)
                cells = (torch.zeros(n, dtype=torch.long, device=x.device) for n in shapes)
                run.run(x, *cells, *given)
            except Exception as error:  # noqa: BLE001 - whatever a model does with sizes
                return f"it does not run on another size than the example's ({error})"
        for new, shape in run.shapes.items():
            level = self.levels.get(back[new]) if new in back else None
            if not isinstance(level, GridMap):
                continue
            for axis, stride, extra, size in zip(
                level.axes, level.strides, level.extra, sizes, strict=True
            ):
                if shape[axis] != -(-size // stride) + sum(extra):
                    return f"{new.name} has another size on a box than its strides say"
        return ""

    def _root(self) -> nn.Module:
        return self.traced.module

    def _image(self) -> torch.Tensor:
        """One that the network takes."""
        parameter = next(self.traced.module.parameters(), torch.zeros(()))
        shape = (1, self.traced.channels, *self.traced.grid)
        return torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)


class Shapes(torch.fx.Interpreter):
    """Keeps the shape of every tensor, and spares what takes torch longest to say the same of."""

    def __init__(self, module: nn.Module, graph: torch.fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.shapes: dict[Node, torch.Size] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n] = result.shape
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.fetch_attr(target), _BatchNorm):
            return args[0]
        return super().call_module(target, args, kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is gate:
            value, activity = args[:2]
            shape = torch.broadcast_shapes(value.shape, activity.shape)  # type: ignore[no-untyped-call]
            return value if shape == value.shape else value.expand(shape)
        return super().call_function(target, args, kwargs)


def role_of(node: Node) -> str:
    known = node.meta.get(META)
    return known.role if isinstance(known, Inserted) else ""


__all__ = ["BoxLowering", "BoxPlan", "GridMap"]
