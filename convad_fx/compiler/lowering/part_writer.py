"""Rewrite a masked graph to run on parts of grids (boxes, patches) where possible."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch.nn import functional as F

from convad_fx.compiler.kernels.gating import gate
from convad_fx.compiler.lowering.cost_model import CostModel, OpCost
from convad_fx.compiler.lowering.grid_map import Geometry, GridMap, Grids, GridStep, WindowMap
from convad_fx.compiler.lowering.subgraph import NoPlan
from convad_fx.compiler.passes.node_roles import decided, role_of, zeroes

Node = torch.fx.Node

#: Policies that need whole grids, by the role of the nodes that they insert.
_NEEDS_WHOLE_GRIDS = {
    "renormalise": "means are divided by the active count",
    "fill": "inactive cells read as their neighbours",
}


class PartWriter(ABC):
    """The walk over the graph: each operation on parts, or on whole grids.

    Attributes:
        parts, wholes: for each tensor the node of its part, of the whole grid; one may be None.
        grids: where the grids of tensors lie; None for those on whole grids of which no parts are.
        activities: for each activity that is read, its placeholder.
        costs: operations with multiplications: those of a whole image, and as parts cost.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.graph = torch.fx.Graph()
        self.parts: dict[Node, Node] = {}
        self.wholes: dict[Node, Node] = {}
        self.grids: dict[Node, Grids] = {}
        self.activities: dict[Node, Node] = {}
        self.costs: list[tuple[Node, int, OpCost | None]] = []
        self._numbers: dict[tuple[Node, bool], Node] = {}  # sizes: of the part, of the whole
        self._placeholders: dict[str, list[Node]] = {
            kind: [] for kind in ("head", "cells", "activity", "kept")
        }

    def walk(self) -> None:
        """Write every node."""
        for node in self.geometry.graph.nodes:
            self.write(node)

    def write(self, node: Node) -> None:
        """Write one node. Activities have a graph of their own; sizes are written where read."""
        role = role_of(node)
        if role in _NEEDS_WHOLE_GRIDS:
            raise NoPlan(_NEEDS_WHOLE_GRIDS[role])
        known = decided(node, self.geometry.plan)
        if known is not None and self.geometry.plan.moves_batch(known):
            raise NoPlan(f"{known.path} moves the batch axis or merges it with others")
        if node is self.geometry.image:
            self.wholes[node] = self.placeholder("head", "x")
            self.grids[node] = GridMap.of_image(len(self.geometry.traced.grid))
        elif node.op == "output":
            self.graph.output(torch.fx.map_arg(node.args[0], self.whole))
        elif role in ("gate", "refill"):
            self._write_gate(node)
        elif role == "per_mask":
            x, mask = node.all_input_nodes
            self.wholes[node] = self.call(node.target, (self.whole(x), self.activity(mask)), node)
            self.grids[node] = self.grids[x]
        elif self.geometry.is_value(node):
            self._write_operation(node)

    def _write_gate(self, node: Node) -> None:
        value, activity, *fill = node.args
        assert isinstance(value, Node)
        assert isinstance(activity, Node)
        grid = self.grids.get(value)
        if not isinstance(grid, GridMap) or not (
            grid.aligned or (zeroes(node) and self.geometry.pads(value))
        ):
            grid = None  # padding is unknown outside the part
        self.grids[node] = grid
        if grid is None:
            args = (self.whole(value), self.activity(activity), *fill)
            self.wholes[node] = self.call(gate, args, node)
        else:
            args = (*self._gated_part(node, value, activity, grid), *fill)
            self.parts[node] = self.call(gate, args, node)

    def _write_operation(self, node: Node) -> None:
        record = self.geometry.at(node, self.grids)
        on_parts = any(n in self.parts for n in node.all_input_nodes) and record is not None
        why = "" if record is None else self._why_whole(node, record, on_parts)
        grid = self.grids[node] = None if why or record is None else record.grid
        on_parts &= not why
        self._count(node, grid, on_parts)
        if on_parts and record is not None:
            (self.wholes if grid is None else self.parts)[node] = self._on_parts(node, record)
        else:
            self.wholes[node] = self.copy(node, self.whole)

    def _count(self, node: Node, grid: Grids, on_parts: bool) -> None:
        work, cost = self.geometry.work(node), None
        if not work:
            return
        if on_parts and isinstance(grid, GridMap):
            each = work / math.prod(self.geometry.size(node, grid))
            cost = OpCost(each, grid.strides, tuple(map(sum, self._extra(node))))
        self.costs.append((node, work, cost))

    def cost_model(self) -> CostModel:
        """Multiplications per mask."""
        return CostModel.of((work, cost) for _, work, cost in self.costs)

    def alignment(self) -> tuple[int, ...]:
        """Image positions at whose multiples parts start: common multiples of all their strides."""
        grids = (self.grids.get(node) for node in self.parts)
        known = (g for some in grids for g in (some if isinstance(some, tuple) else (some,)) if g)
        return tuple(math.lcm(*column) for column in zip(*(g.strides for g in known), strict=True))

    # ---------------------------------------------------------- what boxes and patches differ in

    @abstractmethod
    def _why_whole(self, node: Node, record: GridStep, on_parts: bool) -> str:
        """Why an operation is written on whole grids; "" where it need not be."""

    @abstractmethod
    def _on_parts(self, node: Node, record: GridStep) -> Node:
        """Write an operation on parts."""

    @abstractmethod
    def _gated_part(
        self, gated: Node, value: Node, activity: Node, grid: GridMap
    ) -> tuple[Node, Node]:
        """What a gate takes on parts."""

    @abstractmethod
    def _cut(self, node: Node, grid: GridMap) -> Node:
        """Write the part of a whole tensor."""

    @abstractmethod
    def _put_back(self, node: Node, grid: GridMap) -> Node:
        """Write the whole tensor of a part."""

    @abstractmethod
    def _extra(self, node: Node) -> tuple[tuple[int, int], ...]:
        """Cells of an operation's result beside those of the box, (before, after)."""

    def _is_padding(self, node: Node) -> bool:
        """Whether whole grids of it are padded again, instead of put together from parts."""
        return self.geometry.pads(node)

    # -------------------------------------------------------------------- parts and whole grids

    def part(self, node: Node) -> Node:
        """The part of a tensor that has a grid."""
        if node not in self.parts:
            grid = self.grids[node]
            assert isinstance(grid, GridMap)
            self.parts[node] = self._cut(node, grid)
        return self.parts[node]

    def whole(self, node: Node) -> Node:
        """The tensor on whole grids; or a size."""
        if node in self.wholes:
            return self.wholes[node]
        if node not in self.parts:
            return self._number(node, whole=True)
        grid = self.grids[node]
        # tuples are recomputed on whole grids; these are padded, too
        again = not isinstance(grid, GridMap) or self._is_padding(node)
        self.wholes[node] = self.copy(node, self.whole) if again else self._put_back(node, grid)  # type: ignore[arg-type]
        return self.wholes[node]

    def operand(self, node: Node) -> Node:
        """A part, or the tensor itself if it has no grid."""
        if node in self.parts or isinstance(self.grids.get(node), GridMap):
            return self.part(node)
        return self.wholes[node] if node in self.wholes else self._number(node, whole=False)

    def _number(self, node: Node, *, whole: bool) -> Node:
        """A size, or what is made from sizes or parameters alone."""
        key = node, whole
        if key not in self._numbers:
            self._numbers[key] = self.copy(node, self.whole if whole else self.operand)
        return self._numbers[key]

    def activity(self, node: Node) -> Node:
        """A whole activity, as an input."""
        if node not in self.activities:
            name = node.name if node.name.endswith("activity") else f"{node.name}_activity"
            name += "_" * any(name == given.target for given in self.activities.values())
            self.activities[node] = self.placeholder("activity", name)
        return self.activities[node]

    # -------------------------------------------------------------------------------- new nodes

    def placeholder(self, kind: str, name: str) -> Node:
        """A new input, behind the others of its kind."""
        kinds = list(self._placeholders)
        before = kinds[: kinds.index(kind) + 1]
        known = [node for each in before for node in self._placeholders[each]]
        with self.graph.inserting_after(known[-1] if known else None):
            node = self.graph.placeholder(name)
        self._placeholders[kind].append(node)
        return node

    def call(self, function: Any, args: tuple[Any, ...], name: Node | str) -> Node:
        """As `call`, in the graph that is written."""
        return call(self.graph, function, args, name)

    def copy(self, node: Node, operand: Callable[[Node], Node]) -> Node:
        """As `copied`, in the graph that is written."""
        return copied(self.graph, node, operand)


def call(graph: torch.fx.Graph, function: Any, args: tuple[Any, ...], name: Node | str) -> Node:
    """A call of a function, with a name of its own or that of a node."""
    return graph.create_node("call_function", function, args, {}, name=str(name))


def copied(graph: torch.fx.Graph, node: Node, operand: Callable[[Node], Node]) -> Node:
    """The same operation, of other operands."""
    copy = graph.node_copy(node, operand)
    copy.meta = {}
    return copy


def call_window(
    graph: torch.fx.Graph, node: Node, window: WindowMap, z: Node, given: Callable[[Node], Node]
) -> Node:
    """A window, without padding, on a tensor that has all that it reads.

    Args:
        given: from a parameter that belongs to no module, its node in the new graph.
    """
    step, op = window.step, window.op

    def parameter(name: str, place: int) -> Node | None:
        if op.get(name) is None:
            return None
        if node.op == "call_module":
            return graph.get_attr(f"{node.target}.{name}")
        source = node.args[place] if len(node.args) > place else node.kwargs[name]
        assert isinstance(source, Node)
        return given(source)

    dims = len(step.kernel)
    function: Any
    args: tuple[Any, ...]
    if step.reads == "sum":
        weight, bias = parameter("weight", 1), parameter("bias", 2)
        function = getattr(torch, f"conv{dims}d")
        args = (z, weight, bias, step.stride, 0, step.dilation, step.groups)
    elif step.reads == "max":
        function = getattr(torch, f"max_pool{dims}d")
        args = (z, step.kernel, step.stride, 0, step.dilation)
    else:
        function = getattr(F, f"avg_pool{dims}d")
        args = (z, step.kernel, step.stride)
    return call(graph, function, args, node)
