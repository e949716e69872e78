"""From the masked graph to one that recomputes only what a mask changes.

Where a mask hides little, most of every grid is what it is without a mask, and that is known from
one run on the whole image. What a hidden box can change is the box itself, and with every window a
little more around it: how much more is known from the graph alone. The walk of `region` gives every
tensor its `GridMap`; here each also has a ``reach``, and a window that reads beyond what was
changed is given what surrounds it. From some operation on nearly everything has changed: there the
patches go back to their places in whole grids, and the rest runs as ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.fx
from torch._subclasses.fake_tensor import FakeTensorMode

from convad_fx.compiler.analysis.plan import Plan
from convad_fx.compiler.capture.trace import Trace, facts
from convad_fx.compiler.kernels import patch
from convad_fx.compiler.kernels.activity import gate
from convad_fx.compiler.lowering.box import GridMap, Leaves, Passes, Shapes, Unsupported
from convad_fx.compiler.lowering.cost_model import CostModel, OpCost
from convad_fx.compiler.lowering.patch_windows import PatchLowering, read_by, sides
from convad_fx.compiler.passes.roles import INSERTED, inserted, role_of

Node = torch.fx.Node
Reach = patch.Reach

#: The side of the hidden box that the graph is made for, as a share of the image's: what a sliding
#: window hides.
HIDDEN = 1 / 7
#: More of a network's arithmetic than this on a mask that hides so little, and reuse is not worth
#: its copies.
WORTHWHILE = 0.75


@dataclass(frozen=True, slots=True)
class PatchPlan:
    """How a network recomputes what a mask changes, if it does.

    Attributes:
        values: graph of ``(x, *places, *activities, *kept) -> answer``; None where it does not.
        activities: graph of ``(x, mask) -> activities``, on whole masks.
        kept: graph of ``(x, mask=None) -> tensors`` that values reads, without a mask.
        tile: hidden boxes start at, and have the size of, multiples of this.
        canvas: the image size this holds for.
        work: what each mask multiplies.
        until: path of the operation that is given whole grids again.
        why: what keeps it from reusing anything, or "".
    """

    values: torch.fx.Graph | None
    activities: torch.fx.Graph | None
    kept: torch.fx.Graph | None
    tile: tuple[int, ...]
    image_size: tuple[int, ...]
    work: CostModel
    until: str = ""
    why: str = ""

    @property
    def ok(self) -> bool:
        """It recomputes only what a mask changes."""
        return not self.why

    def __str__(self) -> str:
        if not self.ok:
            return f"reuses nothing of the unmasked image: {self.why}"
        size = hidden_size(self.image_size, self.tile)
        return (
            f"recomputes what a mask changes until {self.until}: {self.work.share(size):.0%} "
            f"of its arithmetic where {' x '.join(map(str, size))} positions are hidden"
        )


def hidden_size(grid: tuple[int, ...], tile: tuple[int, ...]) -> tuple[int, ...]:
    """The size of the hidden box that counts, of whole tiles."""
    return tuple(-(-round(n * HIDDEN) // t) * t for n, t in zip(grid, tile, strict=True))


def plan_patches(traced: Trace, plan: Plan, graph: torch.fx.Graph) -> PatchPlan:
    """Decide whether, and until where, a simplified masked graph recomputes changes only."""
    roles = {role_of(node) for node in graph.nodes}
    none = PatchPlan(None, None, None, (1,) * len(traced.grid), traced.grid, CostModel())
    for role, why in (
        ("renormalise", "means are divided by the active count"),
        ("fill", "inactive cells read as their neighbours"),
    ):
        if role in roles:
            return replace(none, why=why)
    try:
        everywhere = Patches(traced, plan, graph, None)
        everywhere.walk()
        until = everywhere.best_end()
        if until is None:
            return replace(none, why="a small hidden box changes nearly everything at once")
        patches = Patches(traced, plan, graph, until)
        patches.walk()
        return patches.built()
    except Unsupported as unsupported:
        return replace(none, why=str(unsupported))


class Patches(PatchLowering):
    """Writes operations before `until` on patches, and all others on whole grids."""

    def __init__(
        self, traced: Trace, plan: Plan, graph: torch.fx.Graph, until: Node | None
    ) -> None:
        super().__init__(traced, plan, graph)
        self.until = until
        self.ended = False
        self.places: tuple[Node, ...] = ()  # where hidden boxes lie
        self.reaches: dict[Node, Reach] = {}
        self.kept: dict[Node, Node] = {}  # node -> placeholder of what it is without a mask
        self.surroundings: dict[tuple[Node, Reach, float], Node] = {}

    def walk(self) -> None:
        """Write every node."""
        for node in self.old.nodes:
            self.ended |= node is self.until
            self._write(node)

    # --------------------------------------------------------------------- where to stop

    def best_end(self) -> Node | None:
        """The first operation that had better be given whole grids; None where all had."""
        total = sum(work for _, work, _ in self.done)
        best, least = None, WORTHWHILE * total
        on_patches: list[tuple[float, OpCost]] = []
        strides, before = (1,) * len(self.traced.grid), 0.0
        for node, work, cost in self.done:
            tile = tuple(
                math.lcm(a, b)
                for a, b in zip(strides, cost.strides if cost else strides, strict=True)
            )
            size = hidden_size(self.traced.grid, strides)
            patched = CostModel.of(on_patches).multiplied(np.array([size]))
            now = total - before + float(patched[0])
            if on_patches and now < least:
                best, least = node, now
            if cost is None:
                if work:
                    break  # whole grids from here on
                continue
            on_patches.append((work, cost))
            strides, before = tile, before + work
        return best

    def last_end(self) -> Node | None:
        """The output, if anything before it is on patches and anything at all multiplies."""
        on_patches = len(self.boxes) > 1  # more than the image's
        on_patches &= any(work for _, work, _ in self.done)
        return next(n for n in self.old.nodes if n.op == "output") if on_patches else None

    def built(self) -> PatchPlan:
        """The result, if every tensor has the size that its reach says."""
        self.graph.eliminate_dead_code(_is_boundary)
        self.graph.lint()
        known = [self.levels[node] for node in self.boxes]
        strides = [level.strides for level in known if isinstance(level, GridMap)]
        assert self.until is not None
        reuse = PatchPlan(
            self.graph,
            self._activities(),
            self._kept_graph(),
            tuple(math.lcm(*column) for column in zip(*strides, strict=True)),
            self.traced.grid,
            CostModel.of((work, cost) for _, work, cost in self.done),
            "the end" if self.until.op == "output" else facts(self.until).path,
        )
        wrong = self._wrong_shapes(reuse)
        return reuse if not wrong else replace(reuse, values=None, kept=None, why=wrong)

    # --------------------------------------------------------------------------- the walk

    def _write(self, node: Node) -> None:
        super()._write(node)
        if role_of(node) == "per_mask" and node.args[0] in self.reaches:
            self.reaches[node] = self.reaches[node.args[0]]  # type: ignore[index]

    def _write_input(self, node: Node) -> None:
        super()._write_input(node)
        if node in self.levels:
            axes = range(len(self.traced.grid))
            self.places = tuple(self.graph.placeholder(f"places_{axis}") for axis in axes)
            self.heads |= {place.name: place for place in self.places}
            self.reaches[node] = ((0, 0),) * len(self.traced.grid)

    def _write_gate(self, node: Node) -> None:
        value, activity, *fill = node.args
        assert isinstance(value, Node)
        assert isinstance(activity, Node)
        level = self.levels.get(value)
        if not isinstance(level, GridMap):
            super()._write_gate(node)
            return
        self.levels[node], reach = level, self.reaches[value]
        self.reaches[node] = reach
        full = self.plan.activities[inserted(node).row].full
        on_grid = [i for i, axis in enumerate(level.axes) if full[axis]]
        where: tuple[Any, ...] = (
            tuple(self.places[i] for i in on_grid),
            *(tuple(values[i] for i in on_grid) for values in (level.axes, level.strides, reach)),
        )
        known = (self._activity(activity), *where)
        cut = self._call(patch.active, known, f"{activity.name}_patch")
        self.boxes[node] = self._call(gate, (self._box(value), cut, *fill), node.name)

    def _write_operation(self, node: Node) -> None:
        decided = self.plan.nodes.get(facts(node).name)
        operands = [n for n in node.all_input_nodes if n in self.boxes or n in self.wholes]
        patched = any(n in self.boxes for n in operands)
        passes: Passes | None = None
        if decided is not None and not (patched and self.ended):
            try:
                passes = self._through(node, decided)
                if patched and passes is not None:
                    self._check_all_are_patches(operands)
            except Leaves:
                passes = None
        level = self.levels[node] = passes.level if passes else None
        if set(operands) <= self.unmasked:
            self.unmasked.add(node)
        if level is not None:
            self.reaches[node] = self._reach(node)
        patched = patched and level is not None
        self._tell(node, boxed=patched)
        if not patched:
            self.wholes[node] = self._copy(node, whole=True)
        elif self._is_padding(node):
            self.boxes[node] = self.boxes[self._padded(node)]
        elif node in self.windows:
            self.boxes[node] = self._on_window(node)
        else:
            self.boxes[node] = self._on_patch(node)

    def _check_all_are_patches(self, operands: list[Node]) -> None:
        for operand in operands:
            if operand in self.boxes or isinstance(self.levels.get(operand), GridMap):
                continue
            if operand not in self.unmasked:
                raise Leaves("it is joined with what has changed everywhere")

    def _reach(self, node: Node) -> Reach:
        """How far beyond the hidden box a mask changes the result."""
        known = [self.reaches[n] for n in node.all_input_nodes if n in self.reaches]
        by_axis = zip(*known, strict=True)
        widest = tuple((max(a for a, _ in axis), max(b for _, b in axis)) for axis in by_axis)
        if node not in self.windows:
            return widest
        found = []
        for (before, after), side in zip(widest, sides(self.windows[node][0]), strict=True):
            # the first and the last window that read a changed cell
            first = (before + side.span - side.pad) // side.stride
            found.append((first, (after - 1 + side.pad) // side.stride + 1))
        return tuple(found)

    def _on_patch(self, node: Node) -> Node:
        """An operation cell by cell: on patches of equal reach."""
        reach = self.reaches[node]

        def operand(source: Node) -> Node:
            if isinstance(self.levels.get(source), GridMap):
                return self._widened(source, reach)
            return self._as_operand(source)

        copied = self.graph.node_copy(node, operand)
        copied.meta = {}
        return copied

    def _on_window(self, node: Node) -> Node:
        """A window, without padding, on patches with what surrounds them."""
        source = next(n for n in node.all_input_nodes if n in self.boxes or n in self.reaches)
        step, _ = self.windows[node]
        fill = -math.inf if step.reads == "max" else 0.0
        z = self._widened(source, read_by(step, self.reaches[node]), fill)
        return self._call_window(node, z, self._whole)

    # ------------------------------------------------------------------ patches and whole grids

    def _box(self, node: Node) -> Node:
        if node not in self.boxes:
            level = self.levels[node]
            assert isinstance(level, GridMap)
            where = (self.places, level.axes, level.strides, self.reaches[node])
            args = (self._unmasked(node), *where)
            self.boxes[node] = self._call(patch.around, args, f"{node.name}_patch")
        return self.boxes[node]

    def _widened(self, node: Node, wanted: Reach, fill: float = 0.0) -> Node:
        box, reach = self._box(node), self.reaches[node]
        if reach == wanted:
            return box
        key = (node, wanted, fill)
        if key not in self.surroundings:
            level = self.levels[node]
            assert isinstance(level, GridMap)
            where = (self.places, level.axes, level.strides, reach, wanted)
            args = (box, self._unmasked(node), *where, fill)
            self.surroundings[key] = self._call(patch.surrounded, args, f"{node.name}_wider")
        return self.surroundings[key]

    def _whole(self, node: Node) -> Node:
        level = self.levels.get(node)
        known = node in self.wholes or node not in self.boxes or self._is_padding(node)
        if known or not isinstance(level, GridMap):
            return super()._whole(node)
        where = (self.places, level.axes, level.strides, self.reaches[node])
        args = (self.boxes[node], self._unmasked(node), *where)
        self.wholes[node] = self._call(patch.restored, args, f"{node.name}_whole")
        return self.wholes[node]

    def _unmasked(self, node: Node) -> Node:
        """What a tensor is without a mask, and without padding, handed in."""
        while self._is_padding(node):
            node = self._padded(node)
        if node.op == "placeholder":
            return self.wholes[node]
        if node not in self.kept:
            name = f"{node.name}_unmasked"
            self.kept[node] = self._placeholder(name, self.heads, self.inputs, self.kept)
        return self.kept[node]

    def _more(self, node: Node) -> Reach:
        return self.reaches[node]

    # -------------------------------------------------------------------------- the other graph

    def _kept_graph(self) -> torch.fx.Graph:
        """What computes, for one image, the unmasked tensors that patches are put amid."""
        graph, copies = torch.fx.Graph(), dict[Node, Node]()
        graph.graph_copy(self.old, copies)
        graph.output(tuple(copies[node] for node in self.kept))
        for node in graph.nodes:
            node.meta = {}
        graph.eliminate_dead_code(_is_boundary)
        graph.lint()
        return graph

    def _wrong_shapes(self, reuse: PatchPlan) -> str:
        """Run it without values, on boxes of two tiles: every patch must be as large as said."""
        sizes = tuple(2 * n for n in reuse.tile)
        assert reuse.values is not None
        assert reuse.activities is not None
        assert reuse.kept is not None
        root = self.traced.module
        until = torch.fx.Graph()  # what is on patches, and no more
        copies = dict[Node, Node]()
        until.graph_copy(self.graph, copies)
        until.output(tuple(copies[box] for box in self.boxes.values() if box in copies))
        until.eliminate_dead_code(_is_boundary)
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            x = self._image()
            mask = torch.ones(2, 1, *self.traced.grid, dtype=torch.bool, device=x.device)
            places = (torch.zeros(2, 2, n, dtype=torch.long, device=x.device) for n in reuse.tile)
            try:
                given = torch.fx.Interpreter(root, graph=reuse.activities).run(x, mask)
                kept = (x.new_empty((1, *_shape(node)[1:])) for node in self.kept)
                run = Shapes(root, until)
                run.run(x, *places, *given, *kept)
            except Exception as error:  # noqa: BLE001 - whatever a model does with sizes
                return f"it does not run on another size than the example's ({error})"
        for node, box in self.boxes.items():
            level = self.levels[node]
            if not isinstance(level, GridMap) or box not in copies:
                continue
            shape = run.shapes[copies[box]]
            rows = zip(level.axes, level.strides, self.reaches[node], sizes, strict=True)
            if any(shape[a] != n // stride + sum(more) for a, stride, more, n in rows):
                return f"{box.name} has another size on a patch than its windows say"
        return ""


def _shape(node: Node) -> tuple[int, ...]:
    """Of a value, or of a gate's."""
    while INSERTED in node.meta:
        node = node.args[0]  # type: ignore[assignment]
    shape: tuple[int, ...] = facts(node).shape
    return shape


def _is_boundary(node: Node) -> bool:
    return node.op in ("placeholder", "output")
