"""From the masked graph to stages on tiles, which masks that agree there share.

What a cell is depends on the mask only within its receptive field. Masks of one search differ in
few places each, so in the first layers most tiles (squares of cells) of one mask are those of
others, too: each different tile is computed once. A stage computes tiles of one tensor from patches
(tiles and what windows read around them) of the one before; between stages patches are put together
from the tiles that each mask has. Tensors between stages are those that everything later depends on
alone: dominators of the graph. The rest runs on boxes, as in `region`, from the last of them on.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import networkx as nx
import torch
import torch.fx
from torch._subclasses.fake_tensor import FakeTensorMode

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.plan import NodePlan, Plan
from convad_fx.compiler.capture.op_schema import OpView, TensorView
from convad_fx.compiler.capture.trace import META, Trace, facts
from convad_fx.compiler.kernels import box as crop
from convad_fx.compiler.kernels.activity import gate, written
from convad_fx.compiler.lowering.box import (
    BoxLowering,
    BoxPlan,
    GridMap,
    Leaves,
    Passes,
    Shapes,
    Unsupported,
)
from convad_fx.compiler.lowering.cost_model import CostModel
from convad_fx.compiler.lowering.patch_windows import PatchLowering, Reach, read_by
from convad_fx.compiler.passes.roles import inserted, inside_of_zeros, role_of, zeroes

Node = torch.fx.Node

#: The side of a tile, as a share of the image's, about.
SIDE = 1 / 7
#: What copying a value costs, in multiplications.
COPY = 100.0
#: What boxes save of the same arithmetic, on average over a search.
BOXES = 0.55
#: A stage passes at most so many tensors at which it could end.
LONGEST = 12
#: Less of the network's arithmetic than this to be saved, and sharing is not worth its while.
WORTHWHILE = 0.05


@dataclass(frozen=True, slots=True)
class TileRead:
    """The patch of an activity that a tile depends on.

    Attributes:
        activity: its number among those of `BoxPlan`.
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
        strides: of the grid of the patch's tensor.
        grid: its cells along each axis.
        reach: cells of the patch around the tile.
        cuts: the activities that values reads.
        depends: what tells tiles apart: every activity on their way from the image on.
        result: strides of the grid of the tile's tensor.
        cells: its cells along each axis.
        channels: of that tensor.
        copied: values of a patch and of a tile.
        work: what a tile multiplies.
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
    """How masks share what they have alike, if they do.

    Attributes:
        stages: from the image on.
        rest: graph of ``(box, *cells, *activities) -> answer``, activities as in `BoxPlan`.
        tile: image positions of a tile.
        canvas: the image size this holds for.
        work: what the rest multiplies on a box, as a share of the whole network.
        until: path of the operation whose tiles are shared last.
        why: what keeps masks from sharing anything, or "".
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


def plan_tiles(
    traced: Trace, plan: Plan, graph: torch.fx.Graph, boxes: BoxLowering, region: BoxPlan
) -> TilePlan:
    """Decide whether, and until where, masks share tiles of a simplified masked graph."""
    none = TilePlan((), None, (1,) * len(traced.grid), traced.grid, CostModel())
    if not region.ok:
        return replace(none, why="it runs on no boxes")
    try:
        return TileLowering(traced, plan, graph, boxes).built()
    except Unsupported as unsupported:
        return replace(none, why=str(unsupported))


class TileLowering(PatchLowering):
    """Writes what lies between tensors that everything later depends on alone, on tiles."""

    def __init__(
        self, traced: Trace, plan: Plan, graph: torch.fx.Graph, boxes: BoxLowering
    ) -> None:
        super().__init__(traced, plan, graph)
        self.on_boxes, self.unmasked = boxes, boxes.unmasked
        self.image = next(n for n in graph.nodes if n.op == "placeholder" and n.name != "mask")
        self.works: dict[Node, float] = {}  # multiplications per cell
        self.total = 0.0
        self.activity_numbers = {node: i for i, node in enumerate(boxes.asked)}
        self.place = {node: i for i, node in enumerate(graph.nodes)}
        self.needs: dict[Node, dict[Node, Reach]] = {}  # of tiles of a tensor, down to the image
        # of the stage that is written: its tensors, those cut to less, its activities, its reaches
        self.made: dict[Node, Node] = {}
        self.narrowed: dict[tuple[Node, Reach], Node] = {}
        self.gates: dict[TileRead, Node] = {}
        self.reaches: dict[Node, Reach] = {}

    # ------------------------------------------------------------------- what each tensor is

    def survey(self) -> None:
        """Levels of all tensors on tiles, in order; from the first that is on none, None."""
        dims = len(self.traced.grid)
        for node in self.old.nodes:
            role = role_of(node)
            if node is self.image:
                self.levels[node] = GridMap(
                    tuple(range(2, 2 + dims)), (1,) * dims, ((0, 0),) * dims
                )
            elif role in ("gate", "per_mask", "refill"):
                self.levels[node] = self.levels.get(node.args[0])
            elif node.op in ("placeholder", "output") or role or META not in node.meta:
                continue
            elif facts(node).has_tensors and self._is_value(node):
                self._survey_operation(node)

    def _survey_operation(self, node: Node) -> None:
        decided = self.plan.nodes.get(facts(node).name)
        operands = list(node.all_input_nodes)
        passes = None
        with contextlib.suppress(Leaves):
            passes = None if decided is None else self._through(node, decided)
        level = passes.level if passes is not None else None
        depends = [n for n in operands if n in self.levels]
        if depends and not all(isinstance(self.levels[n], GridMap | tuple) for n in depends):
            level = None
        if depends:
            self.levels[node] = level
        work = self._work(node)
        self.total += work
        if isinstance(level, GridMap):
            cells = math.prod(facts(node).shape[axis] for axis in level.axes)
            self.works[node] = work / cells

    def _window(
        self, step: steps.Window, op: OpView, item: TensorView, level: GridMap, decided: NodePlan
    ) -> Passes:
        if not (self._gated(item, decided) or (step.one_cell and level.aligned)):
            raise Leaves("it reads cells that are not gated")
        return super()._window(step, op, item, level, decided)

    def _pad(self, step: steps.Pad, level: GridMap) -> GridMap:
        padded = super()._pad(step, level)
        assert self.at is not None
        if not padded.aligned and not zeroes(inside_of_zeros(self.at, self.plan)):
            raise Leaves("what it pads is not gated: a tile may hold more than the grid")
        return padded

    # ---------------------------------------------------------------------- where to cut

    def candidates(self) -> list[Node]:
        """Tensors on the grid that everything later depends on alone, from the image on."""
        values = nx.DiGraph()
        output = next(n for n in self.old.nodes if n.op == "output")
        for node in self.old.nodes:
            for operand in self._operands(node):
                values.add_edge(operand, node)
        if output not in values or self.image not in values:
            return []
        above = nx.immediate_dominators(values, self.image)
        chain, node = [], output
        while node is not self.image:
            node = above[node]
            chain.append(node)
        tensors = self.on_boxes.boxes
        return [self.image] + [
            n for n in reversed(chain[:-1])
            if isinstance(self.levels.get(n), GridMap) and n.target is not gate and n in tensors
            and role_of(n) != "per_mask" and not self._pads(n)  # the gate is before the padding
            and self.levels[n].axes == self.levels[self.image].axes  # type: ignore[union-attr]
            and self.levels[n].aligned  # type: ignore[union-attr]
        ]  # fmt: skip

    def _operands(self, node: Node) -> Iterable[Node]:
        """What a value depends on, but for activities."""
        if node.op == "output":
            return node.all_input_nodes
        if role_of(node) in ("gate", "per_mask", "refill"):
            return [node.args[0]]  # type: ignore[list-item]
        if node in self.levels or (META in node.meta and not role_of(node)):
            return node.all_input_nodes
        return []

    def between(self, start: Node, end: Node) -> dict[Node, Reach]:
        """What tiles of `end` need, cells before and after, of each tensor down to `start`."""
        if end not in self.needs:
            self.needs[end] = self._needed(end)
        # all else that comes later depends on start: it is a dominator
        first = self.place[start]
        return {n: reach for n, reach in self.needs[end].items() if self.place[n] >= first}

    def _needed(self, end: Node) -> dict[Node, Reach]:
        reaches: dict[Node, Reach] = {end: ((0, 0),) * len(self.traced.grid)}
        for node in reversed(list(self.place)[: self.place[end] + 1]):
            if node not in reaches:
                continue
            reads = self._reads(node, reaches[node])
            for operand in self._operands(node):
                if not isinstance(self.levels.get(operand), GridMap | tuple):
                    continue
                known = reaches.get(operand, reads)
                reaches[operand] = tuple(
                    (max(a, c), max(b, d)) for (a, b), (c, d) in zip(known, reads, strict=True)
                )
        return reaches

    def _reads(self, node: Node, reach: Reach) -> Reach:
        return read_by(self.windows[node][0], reach) if node in self.windows else reach

    def cost(self, start: Node, end: Node, tile: tuple[int, ...]) -> float:
        """Of a tile, in multiplications."""
        reaches = self.between(start, end)
        copied = self._copied_values(start, end, reaches, tile)
        return self._work_on(start, reaches, tile) + COPY * copied

    def _copied_values(
        self, start: Node, end: Node, reaches: dict[Node, Reach], tile: tuple[int, ...]
    ) -> int:
        """Of a patch and its tile."""
        some = (self._channels(n) * self._cells(n, reaches[n], tile) for n in (start, end))
        return sum(some)

    def _work_on(self, start: Node, reaches: dict[Node, Reach], tile: tuple[int, ...]) -> float:
        """Multiplications between tensors, for a tile."""
        some = [node for node in reaches if node in self.works and node is not start]
        return sum(self.works[node] * self._cells(node, reaches[node], tile) for node in some)

    def _grid(self, node: Node) -> tuple[int, ...]:
        if node is self.image:
            return self.traced.grid
        level = self.levels[node]
        assert isinstance(level, GridMap)
        return tuple(facts(node).shape[axis] for axis in level.axes)

    def _channels(self, node: Node) -> int:
        return int(facts(node).shape[1])

    def _cells(self, node: Node, reach: Reach, tile: tuple[int, ...]) -> int:
        level = self.levels[node]
        assert isinstance(level, GridMap)
        rows = zip(tile, level.strides, reach, strict=True)
        return math.prod(t // s + a + b for t, s, (a, b) in rows)

    def plan_stages(self) -> list[Node]:
        """Where to cut: what stages give, the image first; [] where nothing is saved."""
        known = self.candidates()
        best: dict[Node, tuple[float, Node | None]] = {self.image: (0.0, None)}
        gains: dict[Node, float] = {}
        for k, end in enumerate(known[1:], 1):
            tile = self.tile_of(end)
            behind = self.between(self.image, end)
            size = zip(tile, behind[self.image], self.traced.grid, strict=True)
            different = min(1.0, math.prod((t + a + b) / n for t, (a, b), n in size))
            if different >= 1:
                break
            per_image = math.prod(-(-n // t) for n, t in zip(self.traced.grid, tile, strict=True))
            options = [
                (best[start][0] + self.cost(start, end, tile) * per_image * different, start)
                for start in known[max(0, k - LONGEST) : k]
            ]
            best[end] = min(options, key=lambda option: option[0])
            some = (node for node in behind if node in self.works)
            work = sum(self.works[node] * math.prod(self._grid(node)) for node in some)
            copies = COPY * BOXES * self._channels(end) * math.prod(self._grid(end))
            gains[end] = BOXES * work - best[end][0] - copies
        if not gains:
            return []
        last = max(gains, key=gains.__getitem__)
        if gains[last] < WORTHWHILE * self.total:
            return []
        chain: list[Node] = [last]
        while (before := best[chain[-1]][1]) is not None:
            chain.append(before)
        return chain[::-1]

    def tile_of(self, end: Node) -> tuple[int, ...]:
        """Image positions of a tile: a multiple of the strides, about a seventh of the image."""
        level = self.levels[end]
        assert isinstance(level, GridMap)
        return tuple(
            s * max(1, round(n * SIDE / s))
            for n, s in zip(self.traced.grid, level.strides, strict=True)
        )

    # --------------------------------------------------------------------------- the graphs

    def built(self) -> TilePlan:
        """The stages, where they save enough."""
        self.survey()
        chain = self.plan_stages()
        if not chain:
            raise Unsupported("too little of its arithmetic depends on little of the image")
        tile = self.tile_of(chain[-1])
        stages = tuple(self._stage(a, b, tile) for a, b in itertools.pairwise(chain))
        self._check_shapes(stages, chain, tile)
        rest = self._rest(chain[-1])
        behind = set(self.between(self.image, chain[-1]))
        left = [(work, cost) for node, work, cost in self.on_boxes.done if node not in behind]
        work = replace(CostModel.of(left), total=self.total)
        return TilePlan(stages, rest, tile, self.traced.grid, work, facts(chain[-1]).path)

    def _check_shapes(
        self, stages: tuple[TileStage, ...], chain: list[Node], tile: tuple[int, ...]
    ) -> None:
        """Run stages without values, on two tiles: each must be as large as said."""
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            x = self._image()
            for stage, (start, end) in zip(stages, itertools.pairwise(chain), strict=True):
                rows = zip(tile, stage.strides, stage.reach, strict=True)
                patch = x.new_empty(
                    2, self._channels(start), *(t // s + a + b for t, s, (a, b) in rows)
                )
                try:
                    cuts = (self._fake_cut(read, tile, x.device) for read in stage.cuts)
                    assert stage.values is not None
                    answer = Shapes(self._root(), stage.values).run(patch, *cuts)
                except Exception as error:
                    why = f"it does not run on another size than the example's ({error})"
                    raise Unsupported(why) from error
                sides = tuple(t // s for t, s in zip(tile, stage.result, strict=True))
                if tuple(answer.shape) != (2, self._channels(end), *sides):
                    raise Unsupported(f"{end.name} has another size on a tile than its windows say")

    def _fake_cut(
        self, read: TileRead, tile: tuple[int, ...], device: torch.device
    ) -> torch.Tensor:
        """An activity, cut to tiles."""
        shape = list(self.on_boxes.shapes[read.activity])
        rows = zip(read.axes, read.grid, read.strides, read.reach, strict=True)
        for axis, grid, stride, reach in rows:
            shape[axis] = tile[grid] // stride + sum(reach)
        return torch.empty(shape, dtype=torch.bool, device=device)

    def _stage(self, start: Node, end: Node, tile: tuple[int, ...]) -> TileStage:
        reaches = self.between(start, end)
        level, result = self.levels[start], self.levels[end]
        assert isinstance(level, GridMap)
        assert isinstance(result, GridMap)
        return TileStage(
            values=self._written(start, end, reaches),
            strides=level.strides,
            grid=self._grid(start),
            reach=reaches[start],
            cuts=tuple(self.gates),
            depends=widest(self._reads_of_gates(self.between(self.image, end))),
            result=result.strides,
            cells=self._grid(end),
            channels=self._channels(end),
            copied=self._copied_values(start, end, reaches, tile),
            work=self._work_on(start, reaches, tile),
        )

    def _written(self, start: Node, end: Node, reaches: dict[Node, Reach]) -> torch.fx.Graph:
        """The graph of a stage."""
        graph = self.graph = torch.fx.Graph()
        self.made, self.narrowed, self.reaches = {start: graph.placeholder("patch")}, {}, reaches
        after = {node: reach for node, reach in reaches.items() if node is not start}
        reads = self._reads_of_gates(after)
        self.gates = {read: graph.placeholder(f"activity_{i}") for i, read in enumerate(reads)}
        for node in self.old.nodes:
            if node in after:
                self.made[node] = self._on_tile(node, after[node])
        graph.output(self.made[end])
        graph.lint()
        return graph

    def _reads_of_gates(self, reaches: dict[Node, Reach]) -> list[TileRead]:
        gates = (node for node in self.old.nodes if node in reaches)
        found = (
            self._read_of(node, reaches[node])
            for node in gates
            if role_of(node) in ("gate", "refill")
        )
        return list(dict.fromkeys(found))

    def _read_of(self, gated: Node, reach: Reach) -> TileRead:
        level, activity = self.levels[gated], gated.args[1]
        assert isinstance(level, GridMap)
        assert isinstance(activity, Node)
        full = self.plan.activities[inserted(gated).row].full
        kept = [i for i, axis in enumerate(level.axes) if full[axis]]
        number = self.activity_numbers[activity]  # boxes are cut by the same gates
        return TileRead(
            number,
            tuple(level.axes[i] for i in kept),
            tuple(kept),
            tuple(level.strides[i] for i in kept),
            tuple(reach[i] for i in kept),
        )

    def _on_tile(self, node: Node, reach: Reach) -> Node:
        """An operation, on tensors that reach as far as it reads."""
        role = role_of(node)
        if role in ("gate", "refill"):
            value, _, *fill = node.args
            cut = self._call(written, (self.gates[self._read_of(node, reach)],), "cut")
            return self._call(gate, (self._part(value, reach), cut, *fill), node.name)  # type: ignore[arg-type]
        if role == "per_mask":
            return self._part(node.args[0], reach)  # type: ignore[arg-type]
        if self._is_padding(node):
            return self._part(self._padded(node), reach)
        if node in self.windows:
            some = self._operands(node)
            source = next(n for n in some if isinstance(self.levels.get(n), GridMap))
            z = self._part(source, self._reads(node, reach))
            return self._call_window(node, z, self._parameter_or_number)
        return self._copied(node, reach)

    def _part(self, source: Node, wanted: Reach) -> Node:
        """So many cells before and after the tile, of a tensor that may have more."""
        level = self.levels.get(source)
        if level is None:
            return self._parameter_or_number(source)
        have = self.reaches[source]
        if have == wanted or not isinstance(level, GridMap):
            return self.made[source]
        if (source, wanted) not in self.narrowed:
            self.narrowed[source, wanted] = self._trimmed(self.made[source], level, have, wanted)
        return self.narrowed[source, wanted]

    def _trimmed(self, z: Node, level: GridMap, have: Reach, wanted: Reach) -> Node:
        less = tuple((a - c, b - d) for (a, b), (c, d) in zip(have, wanted, strict=True))
        return self._call(crop.trimmed, (z, level.axes, less), f"{z.name}_part")

    def _copied(self, node: Node, reach: Reach) -> Node:
        """An operation cell by cell, on tensors of its own reach."""
        copied = self.graph.node_copy(node, lambda source: self._part(source, reach))
        copied.meta = {}
        _in_any_order(copied)
        level = self.levels[node]
        for source in node.all_input_nodes:
            # of several tensors, of which others may reach further
            if isinstance(self.levels.get(source), tuple) and isinstance(level, GridMap):
                copied = self._trimmed(copied, level, self.reaches[source], reach)
        return copied

    def _parameter_or_number(self, node: Node) -> Node:
        if node not in self.made:
            self.made[node] = self.graph.node_copy(node, self._parameter_or_number)
            self.made[node].meta = {}
        return self.made[node]

    def _rest(self, last: Node) -> torch.fx.Graph:
        """The graph on boxes, from this tensor on."""
        graph, copies = torch.fx.Graph(), dict[Node, Node]()
        box, shared = self.on_boxes.boxes[last], graph.placeholder("shared")
        for node in self.on_boxes.graph.nodes:
            if node is box:
                copies[node] = shared
                continue
            if node is self.on_boxes.heads["x"]:
                continue  # nothing is left that reads it
            if all(operand in copies for operand in node.all_input_nodes):
                copies[node] = graph.node_copy(node, lambda n: copies[n])
                _in_any_order(copies[node])
        graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
        graph.lint()
        return graph


def _in_any_order(node: Node) -> None:
    """Patches lie in memory by cells, whatever the model's order: a view of them may be a copy."""
    if node.op == "call_method" and node.target == "view":
        node.target = "reshape"
    elif node.target is torch.ops.aten.view.default:
        node.target = torch.ops.aten.reshape.default


def widest(reads: Iterable[TileRead]) -> tuple[TileRead, ...]:
    """Without those that another read of the same activity holds."""
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
