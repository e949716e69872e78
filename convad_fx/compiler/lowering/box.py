"""From the masked graph to one that runs on boxes: the part of every grid that is switched on.

Where every operation that mixes positions reads gated input, all is zero outside the active cells,
and zero padding around a box stands for it. A grid that is S times coarser than the image has its
box at 1/S of the image's, if that is aligned; so boxes start at multiples of the product of the
strides. They end anywhere where all strided windows are padded by as much as they reach: a box of
E positions is then one of E / S cells, rounded up, at every level; otherwise at such multiples.
Activities are computed on whole masks and cut, so they follow every policy.

An operation keeps boxes (a convolution), reduces them to one value (a mean over the grid is scaled,
a maximum stays what it is), or is given whole grids again, zero around the box: then everything
after it is as before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx

from convad_fx.compiler.analysis.plan import Tracked
from convad_fx.compiler.capture.node_facts import facts
from convad_fx.compiler.kernels import box
from convad_fx.compiler.lowering.cost_model import CostModel
from convad_fx.compiler.lowering.grid_map import Geometry, GridMap, GridStep
from convad_fx.compiler.lowering.part_writer import PartWriter
from convad_fx.compiler.lowering.subgraph import (
    NoPlan,
    activity_graph,
    activity_shapes,
    check_sizes,
    shapes_of,
)
from convad_fx.compiler.passes.node_roles import decided, inserted, is_gate, role_of

Node = torch.fx.Node

#: With less of the network's arithmetic on boxes, finding boxes costs more than it saves.
MIN_SHARE_ON_BOXES = 0.5


@dataclass(frozen=True, slots=True)
class BoxPlan:
    """How a network runs on boxes, if it does.

    Attributes:
        values: graph of ``(x, *cells, *activities) -> answer``; None where it does not.
        activities: graph of ``(x, mask) -> activities``, on whole masks.
        cells: the grid axis and the stride of each of the cells that ``values`` takes.
        levels: where the grids of activities lie that gates on boxes read; None for the others.
        tile: boxes start at multiples of this, in image positions.
        granularity: their sizes are multiples of this.
        image_size: the only supported image size.
        work: multiplications per mask.
        leaves: operations that are given whole grids again, and why.
        why: why it does not run on boxes, or "".
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


def plan_boxes(geometry: Geometry) -> tuple[BoxPlan, BoxWriter]:
    """Decide whether, and from where to where, a simplified masked graph runs on boxes.

    Returns:
        The plan, and what wrote its graphs: tiles go on from there.
    """
    writer = BoxWriter(geometry)
    try:
        writer.walk()
        return writer.plan(), writer
    except NoPlan as why:
        one = (1,) * len(geometry.traced.grid)
        grid = geometry.traced.grid
        return BoxPlan(None, None, (), (), one, one, grid, CostModel(), why=str(why)), writer


class BoxWriter(PartWriter):
    """Writes operations on boxes.

    Attributes:
        leaves: operations that are given whole grids again, and why.
        activity_shapes: of the activities in their order, for two masks.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.leaves: dict[str, str] = {}
        self.activity_shapes: list[tuple[int, ...]] = []
        self._cells: dict[tuple[int, int], Node] = {}  # axis and stride -> placeholder
        self._cuts: dict[tuple[Node, GridMap], Node] = {}
        self._levels: dict[Node, GridMap] = {}  # of activities that are cut
        self._granularity: list[tuple[int, ...]] = []

    def plan(self) -> BoxPlan:
        """The plan, once all is written. Raises `NoPlan`."""
        self.graph.lint()
        tile, work = self.alignment(), self.cost_model()
        if not tile:
            raise NoPlan("no operation reads gated input on the image's grid")
        if work.on_boxes < MIN_SHARE_ON_BOXES:
            where = "".join(f"; {path}: {why}" for path, why in list(self.leaves.items())[:1])
            raise NoPlan(f"only {work.on_boxes:.0%} of its arithmetic could run on boxes{where}")
        one = (1,) * len(tile)
        plan = BoxPlan(
            self.graph,
            activity_graph(self.geometry, self.activities),
            tuple(self._cells),
            tuple(map(self._levels.get, self.activities)),
            tile,
            tuple(math.lcm(*column) for column in zip(one, *self._granularity, strict=True)),
            self.geometry.traced.grid,
            work,
            tuple(self.leaves.items()),
        )
        self._check_sizes(plan)
        return plan

    def _check_sizes(self, plan: BoxPlan) -> None:
        """Run it without values, on boxes of little more than a tile: is every grid as large?"""
        sizes = tuple(n + more for n, more in zip(plan.tile, plan.granularity, strict=True))
        assert plan.activities is not None
        self.activity_shapes = activity_shapes(self.geometry, plan.activities)

        def inputs(x: torch.Tensor) -> list[torch.Tensor]:
            cells = [(2, -(-sizes[axis] // stride)) for axis, stride in plan.cells]
            return [x, *(x.new_zeros(shape, dtype=torch.long) for shape in cells)] + [
                x.new_ones(shape, dtype=torch.bool) for shape in self.activity_shapes
            ]

        shapes = shapes_of(self.geometry.traced, self.graph, inputs)
        parts = (
            (part, grid, grid.extra)
            for node, part in self.parts.items()
            if isinstance(grid := self.grids.get(node), GridMap) and part in shapes
        )
        check_sizes(shapes, parts, sizes)

    # ------------------------------------------------------------------------------ operations

    def _why_whole(self, node: Node, record: GridStep, on_parts: bool) -> str:
        why = (record.ungated if on_parts else "") or record.no_box
        if why and on_parts:
            self.leaves[facts(node).path] = why
        return why

    def _on_parts(self, node: Node, record: GridStep) -> Node:
        """An operation on boxes: with more zeros behind them, cropped, scaled as it needs."""
        if record.granularity:
            self._granularity.append(record.granularity)
        copied = self.copy(node, lambda source: self._widened(source, record.append))
        args: tuple[Any, ...]
        if record.crop:
            assert isinstance(record.grid, GridMap)
            args = (copied, self._cells_of(record.grid), record.grid.axes)
            copied = self.call(box.fit_to_box, args, f"{node.name}_fitted")
        if record.mean_of:
            source = next(n for n in node.all_input_nodes if n in self.parts)
            grid = self.grids[source]
            assert isinstance(grid, GridMap)
            args = (copied, self.parts[source], grid.axes, record.mean_of)
            copied = self.call(box.mean_over_grid, args, f"{node.name}_of_whole")
        return copied

    def _widened(self, source: Node, append: tuple[int, ...]) -> Node:
        given = self.operand(source)
        if not any(append) or source not in self.parts:
            return given
        pads = [n for more in reversed(append) for n in (0, more)]
        fill = source.args[2] if is_gate(source) and len(source.args) > 2 else 0.0
        args = (given, pads, "constant", fill)
        return self.call(torch.nn.functional.pad, args, f"{source.name}_wider")

    def _extra(self, node: Node) -> tuple[tuple[int, int], ...]:
        grid = self.grids[node]
        assert isinstance(grid, GridMap)
        return grid.extra

    # ------------------------------------------------------------------- boxes and whole grids

    def _gated_part(
        self, gated: Node, value: Node, activity: Node, grid: GridMap
    ) -> tuple[Node, Node]:
        part = self.part(value)
        if (activity, grid) not in self._cuts:
            whole = self.activity(activity)
            self._levels[activity] = grid
            full = self.geometry.full(gated)
            kept = [i for i, axis in enumerate(grid.axes) if full[axis]]
            every = (self._cells_of(grid), grid.axes, grid.extra)
            args = (whole, *(tuple(each[i] for i in kept) for each in every))
            self._cuts[activity, grid] = self.call(
                box.cut_activity_box, args, f"{activity.name}_box"
            )
        return part, self._cuts[activity, grid]

    def _cut(self, node: Node, grid: GridMap) -> Node:
        args = (self.wholes[node], self._cells_of(grid), grid.axes, grid.extra)
        return self.call(box.cut_box, args, f"{node.name}_box")

    def _put_back(self, node: Node, grid: GridMap) -> Node:
        if not is_gate(node):
            self._hold_active_cells(node, grid)
        fill = node.args[2:3] if is_gate(node) else ()
        size = self.geometry.size(node, grid)
        args = (self.parts[node], self._cells_of(grid), grid.axes, size, *fill)
        return self.call(box.paste_box, args, f"{node.name}_whole")

    def _hold_active_cells(self, node: Node, grid: GridMap) -> None:
        """An ungated value is pasted into whole grids: the box must hold its active cells."""
        known = decided(node, self.geometry.plan)
        assert known is not None
        assert isinstance(known.result, Tracked)
        row = known.result.row
        if self.geometry.plan.activities[row].is_global:
            return
        nodes = self.geometry.graph.nodes
        known_activities = (n for n in nodes if role_of(n) in ("mask", "activity"))
        activity = next((n for n in known_activities if inserted(n).row == row), None)
        if activity is None:
            raise NoPlan(f"{facts(node).path} leaves boxes, and nothing reads its activity")
        self.activity(activity)
        self._levels[activity] = grid

    def _cells_of(self, grid: GridMap) -> tuple[Node, ...]:
        """Where boxes lie in such a grid, as an input before the activities."""
        keys = tuple(enumerate(grid.strides))
        for key in keys:
            if key not in self._cells:
                self._cells[key] = self.placeholder("cells", "cells_{}_{}".format(*key))
        return tuple(self._cells[key] for key in keys)
