"""From the masked graph to stages on tiles that equal masks share.

What a cell is depends on the mask only within its receptive field. Masks of one search differ in
few places each, so in the first layers most tiles (squares of cells) of one mask are those of
others, too: each different tile is computed once. A stage computes tiles of one tensor from patches
(tiles and what windows read around them) of the one before; between stages patches are put together
from the tiles that each mask has. Tensors between stages are those that everything later depends on
alone: dominators of the graph. The rest runs on boxes from the last of them on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import networkx as nx
import torch
import torch.fx

from convad_fx.compiler.capture.node_facts import facts
from convad_fx.compiler.kernels import box
from convad_fx.compiler.kernels.gating import gate, materialised
from convad_fx.compiler.kernels.patch import Reach
from convad_fx.compiler.lowering.box import BoxPlan, BoxWriter
from convad_fx.compiler.lowering.cost_model import CostModel
from convad_fx.compiler.lowering.grid_map import GATES, Geometry, GridMap, Grids, WindowMap
from convad_fx.compiler.lowering.part_writer import call, call_window, copied
from convad_fx.compiler.lowering.subgraph import NoPlan, check_sizes, extract, shapes_of
from convad_fx.compiler.passes.node_roles import is_gate, is_original, padded_by, role_of

Node = torch.fx.Node
Reaches = Mapping[Node, Reach]

#: The side of a tile, as a share of the image's, rounded to a multiple of the strides.
TILE_SIDE = 1 / 7
#: What copying a value costs, in multiplications.
MULTIPLICATIONS_PER_COPY = 100.0
#: What boxes multiply of the whole image's, on average over a search.
MEAN_BOX_SHARE = 0.55
#: Maximum number of candidate end tensors per stage.
MAX_CANDIDATES_PER_STAGE = 12
#: Below this share of the network's arithmetic, finding equal tiles costs more than it saves.
MIN_SHARE_SAVED = 0.05


@dataclass(frozen=True, slots=True)
class TileRead:
    """The patch of an activity that a tile depends on.

    Attributes:
        activity: its index among those of `BoxPlan`.
        axes: of the activity, those on the image's grid.
        grid: which axis of the image each of them is.
        strides: image positions per cell.
        reach: cells before and after the tile, for each of them.
    """

    activity: int
    axes: tuple[int, ...]
    grid: tuple[int, ...]
    strides: tuple[int, ...]
    reach: Reach


@dataclass(frozen=True, slots=True)
class TileStage:
    """Tiles of one tensor from patches of the one before.

    Attributes:
        values: graph of ``(patch, *activities) -> tile``.
        strides: image positions per cell of the patch's tensor.
        grid: its cells along each axis.
        reach: cells of the patch around the tile.
        cuts: the activities that ``values`` reads.
        depends: all activities that a tile depends on, from the image on.
        result: image positions per cell of the tile's tensor.
        cells: its cells along each axis.
        channels: of that tensor.
        copied: values of a patch and of a tile.
        work: multiplications for a tile.
    """

    values: torch.fx.Graph | None
    strides: tuple[int, ...]
    grid: tuple[int, ...]
    reach: Reach
    cuts: tuple[TileRead, ...]
    depends: tuple[TileRead, ...]
    result: tuple[int, ...]
    cells: tuple[int, ...]
    channels: int
    copied: int
    work: float


@dataclass(frozen=True, slots=True)
class TilePlan:
    """How masks share tiles, if they do.

    Attributes:
        stages: from the image on.
        rest: graph of ``(box, *cells, *activities) -> answer``, activities as in `BoxPlan`.
        tile: image positions of a tile.
        image_size: the only supported image size.
        work: what the rest multiplies on a box, as a share of the whole network.
        until: path of the operation whose tiles are shared last.
        why: why masks share nothing, or "".
    """

    stages: tuple[TileStage, ...]
    rest: torch.fx.Graph | None
    tile: tuple[int, ...]
    image_size: tuple[int, ...]
    work: CostModel
    until: str = ""
    why: str = ""

    @property
    def ok(self) -> bool:
        """Masks share tiles."""
        return not self.why

    @property
    def counts(self) -> tuple[int, ...]:
        """Tiles along each axis, of the largest grid: padding may make it larger than the image."""
        grids = [
            (self.image_size, (1,) * len(self.image_size)),
            *((s.cells, s.result) for s in self.stages),
        ]
        return tuple(
            max(-(-cells[axis] * strides[axis] // tile) for cells, strides in grids)
            for axis, tile in enumerate(self.tile)
        )

    def __str__(self) -> str:
        if not self.ok:
            return f"masks share nothing: {self.why}"
        tile = " x ".join(map(str, self.tile))
        return f"masks share tiles of {tile} positions that they keep alike, until {self.until}"


def plan_tiles(geometry: Geometry, boxes: BoxWriter, box_plan: BoxPlan) -> TilePlan:
    """Decide whether, and until where, masks share tiles of a simplified masked graph."""
    grid = geometry.traced.grid
    none = TilePlan((), None, (1,) * len(grid), grid, CostModel())
    if not box_plan.ok:
        return replace(none, why="it runs on no boxes")
    try:
        tensors = TileTensors(geometry)
        chain = best_chain(tensors, boxes)
        tile = tensors.tile_of(chain[-1])
        activities = {node: i for i, node in enumerate(boxes.activities)}
        stages = tuple(
            _Stage(tensors, activities, start, end).plan(tile, boxes.activity_shapes)
            for start, end in itertools.pairwise(chain)
        )
    except NoPlan as why:
        return replace(none, why=str(why))
    shared = set(tensors.between(geometry.image, chain[-1]))
    left = ((work, cost) for node, work, cost in boxes.costs if node not in shared)
    work = replace(CostModel.of(left), total=tensors.total)
    rest = extract(boxes.graph, boxes.graph.output_node().args[0], start=boxes.parts[chain[-1]])[0]
    for node in rest.nodes:
        _allow_any_order(node)
    return TilePlan(stages, rest, tile, grid, work, facts(chain[-1]).path)


class TileTensors:
    """The tensors of a graph of which tiles can be computed, and what these read of one another.

    Attributes:
        grids: of these; None for tensors that depend on the image and have no tiles.
        windows: operations that read more than their own cell.
        works: multiplications per cell.
        total: multiplications of the whole network.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.grids: dict[Node, Grids] = {}
        self.windows: dict[Node, WindowMap] = {}
        self.works: dict[Node, float] = {}
        self.total = 0.0
        self._index = {node: i for i, node in enumerate(geometry.graph.nodes)}
        self._needs: dict[Node, dict[Node, Reach]] = {}  # of tiles of a tensor, down to the image
        for node in geometry.graph.nodes:
            if node is geometry.image:
                self.grids[node] = GridMap.of_image(len(geometry.traced.grid))
            elif role_of(node) in GATES:
                self.grids[node] = self.grids.get(node.args[0])
            elif geometry.is_value(node):
                self._add(node)

    def _add(self, node: Node) -> None:
        record = self.geometry.at(node, self.grids)
        grid = None if record is None or record.no_tile else record.grid
        depends = [n for n in node.all_input_nodes if n in self.grids]
        if any(self.grids[n] is None for n in depends):
            grid = None
        if depends:
            self.grids[node] = grid
        work = self.geometry.work(node)
        self.total += work
        if record is not None and record.window is not None:
            self.windows[node] = record.window
        if isinstance(grid, GridMap):
            self.works[node] = work / math.prod(self.geometry.size(node, grid))

    def grid(self, node: Node) -> GridMap:
        """The grid of a tensor that has one."""
        grid = self.grids[node]
        assert isinstance(grid, GridMap)
        return grid

    def size(self, node: Node) -> tuple[int, ...]:
        """Cells of the whole grid, along each axis."""
        return self.geometry.size(node, self.grid(node))

    def operands(self, node: Node) -> list[Node]:
        """Operands of a value, without activities."""
        if role_of(node) in GATES:
            return node.all_input_nodes[:1]
        known = node.op == "output" or node in self.grids or is_original(node)
        return node.all_input_nodes if known else []

    def reads(self, node: Node, reach: Reach) -> Reach:
        """The reach in its operands, for a result with this reach."""
        return self.windows[node].reads(reach) if node in self.windows else reach

    def between(self, start: Node, end: Node) -> dict[Node, Reach]:
        """Cells before and after that tiles of `end` read, of each tensor down to `start`."""
        if end not in self._needs:
            self._needs[end] = self._needed(end)
        # all else that comes later depends on start: it is a dominator
        first = self._index[start]
        return {n: reach for n, reach in self._needs[end].items() if self._index[n] >= first}

    def _needed(self, end: Node) -> dict[Node, Reach]:
        reaches: dict[Node, Reach] = {end: ((0, 0),) * len(self.geometry.traced.grid)}
        for node in reversed(list(self._index)[: self._index[end] + 1]):
            if node not in reaches:
                continue
            reads = self.reads(node, reaches[node])
            for operand in self.operands(node):
                if self.grids.get(operand) is None:
                    continue
                known = reaches.get(operand, reads)
                reaches[operand] = tuple(
                    (max(a, c), max(b, d)) for (a, b), (c, d) in zip(known, reads, strict=True)
                )
        return reaches

    # ---------------------------------------------------------------------------------- costs

    def tile_of(self, end: Node) -> tuple[int, ...]:
        """Image positions of a tile: a multiple of the strides, about a seventh of the image."""
        return tuple(
            s * max(1, round(n * TILE_SIDE / s))
            for n, s in zip(self.geometry.traced.grid, self.grid(end).strides, strict=True)
        )

    def channels(self, node: Node) -> int:
        """Channels of a tensor."""
        return int(facts(node).shape[1])

    def copied(self, start: Node, end: Node, tile: tuple[int, ...]) -> int:
        """Values of a patch and its tile."""
        reaches = self.between(start, end)
        return sum(self.channels(n) * self._cells(n, reaches[n], tile) for n in (start, end))

    def work(self, start: Node, end: Node, tile: tuple[int, ...]) -> float:
        """Multiplications for a tile."""
        reaches = self.between(start, end)
        some = [node for node in reaches if node in self.works and node is not start]
        return sum(self.works[node] * self._cells(node, reaches[node], tile) for node in some)

    def _cells(self, node: Node, reach: Reach, tile: tuple[int, ...]) -> int:
        rows = zip(tile, self.grid(node).strides, reach, strict=True)
        return math.prod(t // s + a + b for t, s, (a, b) in rows)


# -------------------------------------------------------------------------------- where to cut


def candidates(tensors: TileTensors, boxes: BoxWriter) -> list[Node]:
    """Tensors on the grid that everything later depends on alone, from the image on."""
    graph, image = tensors.geometry.graph, tensors.geometry.image
    values = nx.DiGraph((n, node) for node in graph.nodes for n in tensors.operands(node))
    output = graph.output_node()
    if image not in values:
        return []
    above = nx.immediate_dominators(values, image)
    if output not in above:  # it returns a tuple that one operation makes
        return []
    chain = [output]
    while chain[-1] is not image:
        chain.append(above[chain[-1]])
    return [image] + [
        n for n in chain[-2:0:-1]
        if isinstance(grid := tensors.grids.get(n), GridMap) and grid.aligned
        and grid.axes == tensors.grid(image).axes and n in boxes.parts
        and not is_gate(n) and role_of(n) != "per_mask"
        and not tensors.geometry.pads(n)  # the gate is before the padding
    ]  # fmt: skip


def best_chain(tensors: TileTensors, boxes: BoxWriter) -> list[Node]:
    """Where to cut: what stages give, the image first. Raises `NoPlan` where nothing is saved."""
    image, grid = tensors.geometry.image, tensors.geometry.traced.grid
    known = candidates(tensors, boxes)
    best: dict[Node, tuple[float, Node | None]] = {image: (0.0, None)}
    gains: dict[Node, float] = {}
    for k, end in enumerate(known[1:], 1):
        tile, needs = tensors.tile_of(end), tensors.between(image, end)
        size = zip(tile, needs[image], grid, strict=True)
        different = min(1.0, math.prod((t + a + b) / n for t, (a, b), n in size))
        if different >= 1:
            break
        per_image = math.prod(-(-n // t) for n, t in zip(grid, tile, strict=True))
        options = []
        for start in known[max(0, k - MAX_CANDIDATES_PER_STAGE) : k]:
            copies = MULTIPLICATIONS_PER_COPY * tensors.copied(start, end, tile)
            cost = tensors.work(start, end, tile) + copies
            options.append((best[start][0] + cost * per_image * different, start))
        best[end] = min(options, key=lambda option: option[0])
        on_grid = (node for node in needs if node in tensors.works)
        work = sum(tensors.works[node] * math.prod(tensors.size(node)) for node in on_grid)
        values = tensors.channels(end) * math.prod(tensors.size(end))
        copies = MULTIPLICATIONS_PER_COPY * MEAN_BOX_SHARE * values
        gains[end] = MEAN_BOX_SHARE * work - best[end][0] - copies
    last = max(gains, key=gains.__getitem__, default=None)
    if last is None or gains[last] < MIN_SHARE_SAVED * tensors.total:
        raise NoPlan("too little of its arithmetic has a small receptive field")
    chain = [last]
    while (before := best[chain[-1]][1]) is not None:
        chain.append(before)
    return chain[::-1]


# ---------------------------------------------------------------------------------- the graphs


class _Stage:
    """Writes tiles of one tensor from patches of another."""

    def __init__(
        self, tensors: TileTensors, activities: Mapping[Node, int], start: Node, end: Node
    ) -> None:
        self.tensors, self.activities, self.start, self.end = tensors, activities, start, end
        self.reaches = tensors.between(start, end)
        self.graph = torch.fx.Graph()
        self.tiles = {start: self.graph.placeholder("patch")}
        self.narrowed: dict[tuple[Node, Reach], Node] = {}
        after = {node: reach for node, reach in self.reaches.items() if node is not start}
        self.gates = {
            read: self.graph.placeholder(f"activity_{i}")
            for i, read in enumerate(self._reads_of_gates(after))
        }
        for node in tensors.geometry.graph.nodes:
            if node in after:
                self.tiles[node] = self._on_tile(node, after[node])
        self.graph.output(self.tiles[end])
        self.graph.lint()

    def plan(self, tile: tuple[int, ...], activity_shapes: list[tuple[int, ...]]) -> TileStage:
        """The stage, if its tiles are as large as their grid map says. Raises `NoPlan`."""
        tensors, start, end = self.tensors, self.start, self.end
        behind = tensors.between(tensors.geometry.image, end)
        stage = TileStage(
            values=self.graph,
            strides=tensors.grid(start).strides,
            grid=tensors.size(start),
            reach=self.reaches[start],
            cuts=tuple(self.gates),
            depends=widest(self._reads_of_gates(behind)),
            result=tensors.grid(end).strides,
            cells=tensors.size(end),
            channels=tensors.channels(end),
            copied=tensors.copied(start, end, tile),
            work=tensors.work(start, end, tile),
        )

        def inputs(x: torch.Tensor) -> list[torch.Tensor]:
            rows = zip(tile, stage.strides, stage.reach, strict=True)
            patch = (2, tensors.channels(start), *(t // s + a + b for t, s, (a, b) in rows))
            cuts = [list(activity_shapes[read.activity]) for read in stage.cuts]
            for read, shape in zip(stage.cuts, cuts, strict=True):
                for axis, grid, stride, reach in zip(
                    read.axes, read.grid, read.strides, read.reach, strict=True
                ):
                    shape[axis] = tile[grid] // stride + sum(reach)
            return [x.new_empty(patch), *(x.new_empty(cut, dtype=torch.bool) for cut in cuts)]

        shapes = shapes_of(tensors.geometry.traced, self.graph, inputs)
        no_extra = ((0, 0),) * len(tile)
        check_sizes(shapes, [(self.tiles[end], tensors.grid(end), no_extra)], tile)
        return stage

    def _reads_of_gates(self, reaches: Reaches) -> list[TileRead]:
        gates = (n for n in self.tensors.geometry.graph.nodes if n in reaches and is_gate(n))
        return list(dict.fromkeys(self._read_of(node, reaches[node]) for node in gates))

    def _read_of(self, gated: Node, reach: Reach) -> TileRead:
        grid, full = self.tensors.grid(gated), self.tensors.geometry.full(gated)
        kept = [i for i, axis in enumerate(grid.axes) if full[axis]]
        return TileRead(
            self.activities[gated.all_input_nodes[1]],  # boxes are cut by the same gates
            tuple(grid.axes[i] for i in kept),
            tuple(kept),
            tuple(grid.strides[i] for i in kept),
            tuple(reach[i] for i in kept),
        )

    def _on_tile(self, node: Node, reach: Reach) -> Node:
        tensors = self.tensors
        if is_gate(node):
            cut = call(self.graph, materialised, (self.gates[self._read_of(node, reach)],), "cut")
            part = self._part(node.all_input_nodes[0], reach)
            return call(self.graph, gate, (part, cut, *node.args[2:]), node)
        if role_of(node) == "per_mask":
            return self._part(node.all_input_nodes[0], reach)
        if tensors.geometry.pads_grid(node, tensors.grids[node]):
            return self._part(padded_by(node), reach)
        if node not in tensors.windows:
            return self._copied(node, reach)
        source = next(n for n in node.all_input_nodes if isinstance(tensors.grids.get(n), GridMap))
        z = self._part(source, tensors.reads(node, reach))
        return call_window(self.graph, node, tensors.windows[node], z, self._parameter_or_number)

    def _part(self, source: Node, wanted: Reach) -> Node:
        """The tile with `wanted` cells around it, of a tensor that may have more."""
        grid = self.tensors.grids.get(source)
        if grid is None:
            return self._parameter_or_number(source)
        reach = self.reaches[source]
        if reach == wanted or not isinstance(grid, GridMap):
            return self.tiles[source]
        if (source, wanted) not in self.narrowed:
            self.narrowed[source, wanted] = self._trimmed(self.tiles[source], grid, reach, wanted)
        return self.narrowed[source, wanted]

    def _trimmed(self, z: Node, grid: GridMap, reach: Reach, wanted: Reach) -> Node:
        less = tuple((a - c, b - d) for (a, b), (c, d) in zip(reach, wanted, strict=True))
        return call(self.graph, box.trim, (z, grid.axes, less), f"{z.name}_part")

    def _copied(self, node: Node, reach: Reach) -> Node:
        """An operation cell by cell, on tensors of its own reach."""
        z = copied(self.graph, node, lambda source: self._part(source, reach))
        _allow_any_order(z)
        grid = self.tensors.grids[node]
        for source in node.all_input_nodes:
            # of several tensors, of which others may reach further
            if isinstance(self.tensors.grids.get(source), tuple) and isinstance(grid, GridMap):
                z = self._trimmed(z, grid, self.reaches[source], reach)
        return z

    def _parameter_or_number(self, node: Node) -> Node:
        if node not in self.tiles:
            self.tiles[node] = copied(self.graph, node, self._parameter_or_number)
        return self.tiles[node]


def _allow_any_order(node: Node) -> None:
    """Patches lie in memory by cells, whatever the model's order: a view of them may be a copy."""
    if node.op == "call_method" and node.target == "view":
        node.target = "reshape"
    elif node.target is torch.ops.aten.view.default:
        node.target = torch.ops.aten.reshape.default


def widest(reads: Iterable[TileRead]) -> tuple[TileRead, ...]:
    """Drop reads contained in another of the same activity."""
    known = list(dict.fromkeys(reads))
    return tuple(
        read
        for read in known
        if not any(
            other != read
            and replace(other, reach=read.reach) == read
            and all(
                a <= c and b <= d for (a, b), (c, d) in zip(read.reach, other.reach, strict=True)
            )
            for other in known
        )
    )
