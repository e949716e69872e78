"""Parts of graphs, and the sizes of their tensors for other inputs than the example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node

from convad_fx.compiler.capture.node_facts import facts
from convad_fx.compiler.capture.shapes import ShapeInterpreter
from convad_fx.compiler.capture.trace import Trace
from convad_fx.compiler.kernels.box import shape_only
from convad_fx.compiler.kernels.gating import gate
from convad_fx.compiler.lowering.grid_map import Geometry, GridMap
from convad_fx.compiler.passes.node_roles import INSERTED, is_original, role_of


class NoPlan(Exception):
    """The strategy has no plan for this network; the message says why."""


def extract(
    graph: Graph,
    outputs: Any,
    *,
    start: Node | None = None,
    follow: Callable[[Node], bool] = lambda _: True,
    stand_in: Callable[[Graph, Node], Node | None] = lambda *_: None,
) -> tuple[Graph, dict[Node, Node]]:
    """The part of a graph that computes these nodes, with all its placeholders.

    Args:
        outputs: what the part returns: nodes in tuples, lists or dicts.
        start: a placeholder ``shared``, instead of the image, is for this node.
        follow: of the operands of what is copied, which are copied in their order as well; others
            are copied where they are first read.
        stand_in: writes something else for a node; None to copy it.

    Returns:
        The part, and for each of the nodes its copy.
    """
    part, copies = Graph(), dict[Node, Node]()
    needed: set[Node] = set()
    torch.fx.map_arg(outputs, needed.add)
    for node in reversed(graph.nodes):
        if node in needed and node is not start:
            needed.update(filter(follow, node.all_input_nodes))
    if start is not None:
        copies[start] = part.placeholder("shared")

    def copy(node: Node) -> Node:
        if node not in copies:
            copies[node] = stand_in(part, node) or part.node_copy(node, copy)
            copies[node].meta = {}
        return copies[node]

    for node in graph.nodes:
        if node in needed or (node.op == "placeholder" and (start is None or node.target != "x")):
            copy(node)
    part.output(torch.fx.map_arg(outputs, copy))
    part.lint()
    return part, copies


def activity_graph(geometry: Geometry, activities: Iterable[Node]) -> Graph:
    """What computes activities on whole masks, ``(x, mask) -> activities``; of values only shapes.

    Values that activities are shaped after are not computed.
    """

    def shape_of(part: Graph, node: Node) -> Node | None:
        if role_of(node) == "piece":
            shape = facts(node.args[0]).shape[node.args[1]]  # type: ignore[arg-type]
        elif is_original(node) and node.op not in ("placeholder", "get_attr"):
            shape = facts(node).shape
        else:
            return None
        image = next(iter(part.nodes))
        return part.call_function(shape_only, (image, tuple(shape[1:])))

    def is_inserted(node: Node) -> bool:
        return INSERTED in node.meta

    return extract(geometry.graph, tuple(activities), follow=is_inserted, stand_in=shape_of)[0]


def shapes_of(
    traced: Trace, graph: Graph, inputs: Callable[[Tensor], Iterable[Tensor]]
) -> dict[Node, tuple[int, ...]]:
    """The shapes of all tensors of a graph, without computing any.

    Args:
        inputs: from an image (1, C, *grid) what the graph takes.

    Raises:
        NoPlan: the graph does not run on these.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        parameter = next(traced.module.parameters(), torch.zeros(()))
        shape = (1, traced.channels, *traced.grid)
        x = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        run = _Shapes(traced.module, graph)
        try:
            run.run(*inputs(x))
        except Exception as error:
            why = f"it does not run on another size than the example's ({error})"
            raise NoPlan(why) from error
    return run.shapes


def check_sizes(
    shapes: Mapping[Node, tuple[int, ...]],
    parts: Iterable[tuple[Node, GridMap, Sequence[tuple[int, int]]]],
    size: Sequence[int],
) -> None:
    """Check that parts of this size, in image positions, are as large as their grid maps say.

    Args:
        shapes: from `shapes_of`.
        parts: tensors, their grid maps, and the cells (before, after) that they have in addition.

    Raises:
        NoPlan: the first that has another size.
    """
    for node, grid, extra in parts:
        rows = zip(size, grid.strides, extra, strict=True)
        cells = [-(-n // stride) + sum(more) for n, stride, more in rows]
        if [shapes[node][axis] for axis in grid.axes] != cells:
            raise NoPlan(f"a part of {node.name} has another size than its grid map says")


def activity_shapes(geometry: Geometry, activities: Graph) -> list[tuple[int, ...]]:
    """The shapes of what `activity_graph` returns, of two masks."""
    grid = geometry.traced.grid
    shapes = shapes_of(
        geometry.traced, activities, lambda x: (x, x.new_ones((2, 1, *grid), dtype=torch.bool))
    )
    returned: Any = activities.output_node().args[0]
    return [shapes[node] for node in returned]


class _Shapes(ShapeInterpreter):
    """Keeps the shape of every tensor, and skips gates."""

    def __init__(self, module: nn.Module, graph: Graph) -> None:
        super().__init__(module, graph=graph)
        self.shapes: dict[Node, tuple[int, ...]] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is gate:
            value, activity = args[:2]
            shape = torch.broadcast_shapes(value.shape, activity.shape)  # type: ignore[no-untyped-call]
            return value if shape == value.shape else value.expand(shape)
        return super().call_function(target, args, kwargs)
