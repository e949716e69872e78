"""From the masked graph to one that recomputes only what a mask changes.

Where a mask hides little, most of every grid is what it is without a mask, and that is known from
one run on the whole image. What a hidden box can change is the box itself, and with every window a
little more around it: how much more is known from the graph alone. A tensor's ``reach`` says how
far beyond the hidden box it may change; a window that reads beyond what has changed is given what
surrounds it, so it needs no padding. From some operation on nearly everything has changed: there
the patches go back to their places in whole grids, and the rest runs on these.

Explicit padding is nothing on a patch, which has what surrounds it: cells outside the grid are zero
as soon as they are gated. So the padding of the window that reads it is larger by as much; nothing
but windows and further padding may read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.fx

from convad_fx.compiler.capture.node_facts import facts
from convad_fx.compiler.kernels import patch
from convad_fx.compiler.kernels.patch import Reach
from convad_fx.compiler.lowering.cost_model import CostModel, OpCost
from convad_fx.compiler.lowering.grid_map import Geometry, GridMap, GridStep
from convad_fx.compiler.lowering.part_writer import PartWriter, call_window
from convad_fx.compiler.lowering.subgraph import (
    NoPlan,
    activity_graph,
    activity_shapes,
    check_sizes,
    extract,
    shapes_of,
)
from convad_fx.compiler.passes.node_roles import INSERTED, original_of, padded_by

Node = torch.fx.Node

#: The side of the hidden box that plans are made for, as a share of the image's: what a sliding
#: window hides.
HIDDEN_SIDE = 1 / 7
#: With more of a network's arithmetic recomputed for such a box, copies cost more than it saves.
MAX_SHARE_RECOMPUTED = 0.75


@dataclass(frozen=True, slots=True)
class PatchPlan:
    """How a network recomputes what a mask changes, if it does.

    Attributes:
        values: graph of ``(x, *places, *activities, *kept) -> answer``; None where it does not.
        activities: graph of ``(x, mask) -> activities``, on whole masks.
        kept: graph of ``(x, mask=None) -> tensors`` that values reads, without a mask.
        tile: hidden boxes start at, and have the size of, multiples of this, in image positions.
        image_size: the only supported image size.
        work: multiplications per mask.
        until: path of the operation that is given whole grids again.
        why: why it reuses nothing, or "".
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
    """The size of the hidden box that plans are made for, in whole tiles."""
    return tuple(-(-round(n * HIDDEN_SIDE) // t) * t for n, t in zip(grid, tile, strict=True))


def plan_patches(geometry: Geometry) -> PatchPlan:
    """Decide whether, and until where, a simplified masked graph recomputes changes only."""
    try:
        everywhere = PatchWriter(geometry)
        everywhere.walk()
        until = everywhere.best_end()
        if until is None:
            raise NoPlan("a small hidden box changes nearly everything at once")
        patches = PatchWriter(geometry, until)
        patches.walk()
        return patches.plan()
    except NoPlan as why:
        grid = geometry.traced.grid
        one = (1,) * len(grid)
        return PatchPlan(None, None, None, one, grid, CostModel(), why=str(why))


class PatchWriter(PartWriter):
    """Writes operations before `until` on patches, and all others on whole grids."""

    def __init__(self, geometry: Geometry, until: Node | None = None) -> None:
        super().__init__(geometry)
        self.until, self.ended = until, False
        self.places: tuple[Node, ...] = ()  # where hidden boxes lie
        self._reaches: dict[Node, Reach] = {}
        self._kept: dict[Node, Node] = {}  # node -> placeholder of what it is without a mask
        self._surrounded: dict[tuple[Node, Reach, float], Node] = {}

    def write(self, node: Node) -> None:
        """Write one node."""
        self.ended |= node is self.until
        super().write(node)
        if node is self.geometry.image:
            axes = range(len(self.geometry.traced.grid))
            self.places = tuple(self.placeholder("head", f"places_{axis}") for axis in axes)

    # ------------------------------------------------------------------------ where to stop

    def best_end(self) -> Node | None:
        """The first operation that is best given whole grids; None where all are."""
        grid = self.geometry.traced.grid
        total = sum(work for _, work, _ in self.costs)
        best, least = None, MAX_SHARE_RECOMPUTED * total
        on_patches: list[tuple[float, OpCost]] = []
        tile, before = (1,) * len(grid), 0.0
        for node, work, cost in self.costs:
            size = np.array([hidden_size(grid, tile)])
            now = total - before + float(CostModel.of(on_patches).multiplied(size)[0])
            if on_patches and now < least:
                best, least = node, now
            if cost is None:
                break  # whole grids from here on
            on_patches.append((work, cost))
            tile = tuple(math.lcm(a, b) for a, b in zip(tile, cost.strides, strict=True))
            before += work
        return best

    def plan(self) -> PatchPlan:
        """The plan, once all is written. Raises `NoPlan`."""
        self.graph.eliminate_dead_code(_is_boundary)
        self.graph.lint()
        assert self.until is not None
        plan = PatchPlan(
            self.graph,
            activity_graph(self.geometry, self.activities),
            extract(self.geometry.graph, tuple(self._kept))[0],
            self.alignment(),
            self.geometry.traced.grid,
            self.cost_model(),
            "the end" if self.until.op == "output" else facts(self.until).path,
        )
        self._check_sizes(plan)
        return plan

    def _check_sizes(self, plan: PatchPlan) -> None:
        """Run it without values, on hidden boxes of two tiles: is every patch as large?"""
        sizes = tuple(2 * n for n in plan.tile)
        written = set(self.graph.nodes)
        parts = {node: part for node, part in self.parts.items() if part in written}
        on_patches, copies = extract(self.graph, tuple(parts.values()))
        assert plan.activities is not None
        activities = activity_shapes(self.geometry, plan.activities)

        def inputs(x: torch.Tensor) -> list[torch.Tensor]:
            return [
                x,
                *(x.new_zeros((2, 2, n), dtype=torch.long) for n in plan.tile),
                *(x.new_ones(shape, dtype=torch.bool) for shape in activities),
                *(x.new_empty((1, *facts(original_of(n)).shape[1:])) for n in self._kept),
            ]

        shapes = shapes_of(self.geometry.traced, on_patches, inputs)
        checked = (
            (copies[part], grid, self.reach(node))
            for node, part in parts.items()
            if isinstance(grid := self.grids[node], GridMap)
        )
        check_sizes(shapes, checked, sizes)

    # ------------------------------------------------------------------------------ operations

    def _why_whole(self, node: Node, record: GridStep, on_parts: bool) -> str:
        if not on_parts:
            return record.no_patch
        if self.ended or record.grid is None:
            return "patches end here"
        for operand in node.all_input_nodes:
            if operand in self.parts or isinstance(self.grids.get(operand), GridMap):
                continue
            if operand in self.wholes and operand not in self.geometry.unmasked:
                return "it is joined with what has changed everywhere"
        return record.no_patch or (record.ungated if self.geometry.pads(node) else "")

    def _on_parts(self, node: Node, record: GridStep) -> Node:
        """An operation on patches: a window on wider ones, all others on those of equal reach."""
        if self._is_padding(node):
            return self.parts[padded_by(node)]
        reach = self.reach(node)
        if record.window is None:
            return self.copy(node, lambda source: self._operand(source, reach))
        source = next(n for n in node.all_input_nodes if self.grids.get(n) is not None)
        fill = record.window.step.identity
        assert fill is not None
        z = self._widened(source, record.window.reads(reach), fill)
        return call_window(self.graph, node, record.window, z, self.whole)

    def _operand(self, source: Node, reach: Reach) -> Node:
        on_grid = isinstance(self.grids.get(source), GridMap)
        return self._widened(source, reach) if on_grid else self.operand(source)

    def reach(self, node: Node) -> Reach:
        """How far beyond the hidden box a mask changes a tensor."""
        if node not in self._reaches:
            self._reaches[node] = self._reach(node)
        return self._reaches[node]

    def _reach(self, node: Node) -> Reach:
        if node is self.geometry.image:
            return ((0, 0),) * len(self.geometry.traced.grid)
        if INSERTED in node.meta:
            return self.reach(node.all_input_nodes[0])
        known = [self.reach(n) for n in node.all_input_nodes if self.grids.get(n) is not None]
        by_axis = zip(*known, strict=True)
        widest = tuple((max(a for a, _ in axis), max(b for _, b in axis)) for axis in by_axis)
        record = self.geometry.at(node, self.grids)
        assert record is not None
        return widest if record.window is None else record.window.changes(widest)

    def _extra(self, node: Node) -> Reach:
        return self.reach(node)

    def _is_padding(self, node: Node) -> bool:
        return self.geometry.pads_grid(node, self.grids.get(node))

    # ----------------------------------------------------------------- patches and whole grids

    def _gated_part(
        self, gated: Node, value: Node, activity: Node, grid: GridMap
    ) -> tuple[Node, Node]:
        full, reach = self.geometry.full(gated), self.reach(value)
        kept = [i for i, axis in enumerate(grid.axes) if full[axis]]
        every: tuple[tuple[Any, ...], ...] = (self.places, grid.axes, grid.strides, reach)
        args = (self.activity(activity), *(tuple(each[i] for i in kept) for each in every))
        cut = self.call(patch.cut_activity_patch, args, f"{activity.name}_patch")
        return self.part(value), cut

    def _cut(self, node: Node, grid: GridMap) -> Node:
        """The patch of a tensor that no mask has changed."""
        args = (self._unmasked(node), self.places, grid.axes, grid.strides, self.reach(node))
        return self.call(patch.cut_patch, args, f"{node.name}_patch")

    def _put_back(self, node: Node, grid: GridMap) -> Node:
        """A patch in its place on the unmasked grid."""
        where = (self.places, grid.axes, grid.strides, self.reach(node))
        args = (self.parts[node], self._unmasked(node), *where)
        return self.call(patch.paste_patch, args, f"{node.name}_whole")

    def _widened(self, node: Node, wanted: Reach, fill: float = 0.0) -> Node:
        part, reach = self.part(node), self.reach(node)
        if reach == wanted:
            return part
        key = (node, wanted, fill)
        if key not in self._surrounded:
            grid = self.grids[node]
            assert isinstance(grid, GridMap)
            where = (self.places, grid.axes, grid.strides, reach, wanted)
            args = (part, self._unmasked(node), *where, fill)
            self._surrounded[key] = self.call(patch.widen_patch, args, f"{node.name}_wider")
        return self._surrounded[key]

    def _unmasked(self, node: Node) -> Node:
        """A tensor without a mask, and without padding, as an input."""
        while self._is_padding(node):
            node = padded_by(node)
        if node.op == "placeholder":
            return self.wholes[node]
        if node not in self._kept:
            self._kept[node] = self.placeholder("kept", f"{node.name}_unmasked")
        return self._kept[node]


def _is_boundary(node: Node) -> bool:
    return node.op in ("placeholder", "output")
