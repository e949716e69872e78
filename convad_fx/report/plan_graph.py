"""A plan as a networkx graph of boxes: one per operation, or one per block of a large network."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import torch.fx

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.plan import NodePlan, Plan, Tracked
from convad_fx.compiler.analysis.report import Report
from convad_fx.compiler.capture.trace import Trace

IMAGE, OUTPUT = "image", "output"
FAMILIES = ("window", "pointwise", "join", "layout", "reduction", "statistic")

#: Networks with more operations are drawn in blocks.
MAX_OPERATIONS = 120
#: A block is a prefix of module paths: the shortest that gives at least this many blocks ...
MIN_BLOCKS = 15
#: ... but not more than this.
MAX_BLOCKS = 150


@dataclass(frozen=True, slots=True)
class Box:
    """An operation, or a block of operations.

    Attributes:
        path: dotted path in the model.
        kind: kind of the operation; "" for a block.
        families: family -> number of operations; an operation without a rule has no family.
        activity: row of the result's activity in the plan; None after a finding.
        changes: number of operations whose activity differs from their inputs'.
        is_new: whether the result's activity differs from the inputs'.
        gated: number of operations with gated input.
        findings: numbers of its findings in the report, from 1.
        operations: number of operations.
    """

    path: str
    kind: str = ""
    families: Counter[str] = field(default_factory=Counter)
    activity: int | None = None
    changes: int = 0
    is_new: bool = False
    gated: int = 0
    findings: tuple[int, ...] = ()
    operations: int = 1

    @property
    def is_block(self) -> bool:
        """Whether the box has more than one operation."""
        return self.operations > 1

    @property
    def is_undecided(self) -> bool:
        """Whether a finding before it leaves its activity undecided."""
        return self.activity is None and not self.findings


def plan_graph(traced: Trace, plan: Plan) -> nx.DiGraph:
    """The data flow between operations, from ``"image"`` to ``"output"``.

    >>> import torch
    >>> from convad_fx.compiler.policy import Policy
    >>> from convad_fx.compiler.analysis.propagate import plan
    >>> from convad_fx.compiler.capture.trace import trace
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    >>> traced = trace(model, torch.zeros(1, 3, 8, 8))
    >>> graph = plan_graph(traced, plan(traced, Policy()))
    >>> [(box.path, box.gated, box.activity) for _, box in graph.nodes(data="box")]
    [('image', 0, 0), ('0', 1, 1), ('1', 0, 1), ('output', 1, 1)]

    Nodes have a `Box` as attribute ``box``; edges have ``gated``: inactive cells are read as zero.
    """
    numbers = {name: i for i, (name, _) in enumerate(_with_findings(plan), 1)}
    graph = nx.DiGraph()
    names: dict[Any, str] = {}
    for node in traced.module.graph.nodes:
        if node.op == "placeholder":
            names[node] = IMAGE
            graph.add_node(IMAGE, box=Box("image", activity=0, operations=0))
            continue
        sources = [names[source] for source in node.all_input_nodes if source in names]
        if node.op == "output":
            gated = {names[n] for n in node.all_input_nodes if n.name in plan.outputs}
            rows = [graph.nodes[name]["box"].activity for name in sources]
            activity = rows[0] if len(set(rows)) == 1 else None
            box = Box("output", "", activity=activity, gated=int(bool(gated)), operations=0)
            graph.add_node(OUTPUT, box=box)
            graph.add_edges_from((name, OUTPUT, {"gated": name in gated}) for name in sources)
        elif node.name in plan.nodes:
            node_plan = plan.nodes[node.name]
            # An operation may be called "image" or "output", too.
            names[node] = name = f"op:{node.name}"
            before = {graph.nodes[source]["box"].activity for source in sources}
            box = _box(node_plan, before, numbers.get(node.name), _module_name(node, traced))
            graph.add_node(name, box=box)
            gated = {names[n] for n in node.all_input_nodes if n.name in dict(node_plan.reads)}
            graph.add_edges_from((source, name, {"gated": source in gated}) for source in sources)
    _add_unread(graph, plan, numbers)
    return graph


def uncaptured_graph(report: Report) -> nx.DiGraph:
    """The findings of a model that no front end could capture."""
    graph = nx.DiGraph()
    graph.add_node(IMAGE, box=Box("image", activity=0, operations=0))
    for number, finding in enumerate(report.findings, 1):
        graph.add_node(number, box=Box(finding.path, "cannot be captured", findings=(number,)))
        graph.add_edge(IMAGE, number, gated=False)
    return graph


def merge_blocks(graph: nx.DiGraph) -> nx.DiGraph:
    """The graph itself, or a graph of blocks if it has more than `MAX_OPERATIONS` operations.

    A block is a run of consecutive operations whose paths have a common prefix: ``layer3.4``.
    Consecutive runs form no cycle, even if a module is called twice.
    """
    if sum(box.operations for _, box in graph.nodes(data="box")) <= MAX_OPERATIONS:
        return graph
    deepest = max(box.path.count(".") + 1 for _, box in graph.nodes(data="box"))
    choices = [_runs(graph, depth) for depth in range(1, deepest + 1)]
    readable = [runs for runs in choices if len(runs) <= MAX_BLOCKS] or choices[:1]
    detailed = (runs for runs in readable if len(runs) >= MIN_BLOCKS)
    return _merged(graph, next(detailed, readable[-1]))


def paths_to_findings(graph: nx.DiGraph) -> set[tuple[Any, Any]]:
    """Edges of a shortest path from the image to each finding."""
    paths = nx.single_source_shortest_path(graph, IMAGE)
    ends = [node for node, box in graph.nodes(data="box") if box.findings and node in paths]
    return {edge for node in ends for edge in itertools.pairwise(paths[node])}


def _with_findings(plan: Plan) -> list[tuple[str, NodePlan]]:
    return [
        (name, node_plan) for name, node_plan in plan.nodes.items() if node_plan.finding is not None
    ]


def _module_name(node: torch.fx.Node, traced: Trace) -> str:
    if node.op != "call_module":
        return ""
    return type(traced.module.get_submodule(str(node.target))).__name__


def _box(node_plan: NodePlan, before: set[int | None], number: int | None, module: str = "") -> Box:
    result = node_plan.result
    row = result.row if isinstance(result, Tracked) else result[0].row if result else None
    family = None if node_plan.finding else family_of(node_plan.step)
    is_new = row is not None and row not in before
    return Box(
        node_plan.path,
        _kind(node_plan, module),
        Counter([family] if family else []),
        row,
        int(is_new),
        is_new,
        int(bool(node_plan.reads)),
        (number,) if number else (),
    )


def family_of(step: steps.Step | None) -> str | None:
    """One of `FAMILIES`; None for a refused step.

    >>> family_of(steps.SameCell())
    'pointwise'
    """
    match step:
        case steps.Refused():
            return None
        case steps.SameCell() | steps.Constant():
            return "pointwise"
        case steps.Window() | steps.AdaptivePool() | steps.Resize():
            return "window"
        case steps.Join() | steps.Concat():
            return "join"
        case steps.Reduce():
            return "reduction"
        case steps.Statistic():
            return "statistic"
        case _:  # None: an element of a tuple
            return "layout"


def _kind(node_plan: NodePlan, module: str) -> str:
    if node_plan.kind == "elementwise":  # the path names the function, but not the module's type
        return module or "elementwise"
    kind = node_plan.kind.removesuffix("_module").replace("_", " ")
    if not isinstance(node_plan.step, steps.Window):
        return kind
    return f"{kind} {describe_window(node_plan.step.kernel, node_plan.step.stride)}"


def describe_window(kernel: Sequence[int], stride: Sequence[int]) -> str:
    """Kernel size, and the stride if it is not 1.

    >>> describe_window((3, 3), (2, 2)), describe_window((1, 7), (1, 1))
    ('3x3 /2', '1x7')
    """
    words = ["x".join(map(str, kernel))]
    if set(stride) != {1}:
        words.append("/" + "x".join(map(str, stride[:1] if len(set(stride)) == 1 else stride)))
    return " ".join(words)


def _add_unread(graph: nx.DiGraph, plan: Plan, numbers: dict[str, int]) -> None:
    """Add findings at operations without readers, which are not in the captured graph."""
    for name, node_plan in _with_findings(plan):
        if f"op:{name}" not in graph:
            graph.add_node(f"op:{name}", box=_box(node_plan, set(), numbers[name]))
            graph.add_edge(IMAGE, f"op:{name}", gated=False)


def _runs(graph: nx.DiGraph, depth: int) -> list[tuple[str, list[Any]]]:
    """Consecutive nodes whose paths agree in the first `depth` parts, with a name for each run."""

    def prefix(node: Any) -> tuple[bool, str]:
        path = graph.nodes[node]["box"].path
        return node in (IMAGE, OUTPUT), ".".join(path.split(".")[:depth])

    calls: Counter[str] = Counter()
    runs = []
    for (_, path), run in itertools.groupby(graph, key=prefix):
        calls[path] += 1
        runs.append((f"{path} ({calls[path]})" if calls[path] > 1 else path, list(run)))
    return runs


def _merged(graph: nx.DiGraph, runs: list[tuple[str, list[Any]]]) -> nx.DiGraph:
    blocks = nx.DiGraph()
    block_of = {node: run[0] for _, run in runs for node in run}
    for path, run in runs:
        boxes = [graph.nodes[node]["box"] for node in run]
        inputs = {source for node in run for source in graph.predecessors(node)} - set(run)
        before = {graph.nodes[source]["box"].activity for source in inputs}
        activity = boxes[-1].activity
        block = Box(
            path,
            "",
            sum((box.families for box in boxes), Counter()),
            activity,
            sum(box.changes for box in boxes),
            activity is not None and activity not in before,
            sum(box.gated for box in boxes),
            tuple(number for box in boxes for number in box.findings),
            sum(box.operations for box in boxes),
        )
        blocks.add_node(run[0], box=block if len(run) > 1 else boxes[0])
    for source, target, gated in graph.edges(data="gated"):
        edge = block_of[source], block_of[target]
        if edge[0] != edge[1]:
            gated = gated or blocks.get_edge_data(*edge, {}).get("gated", False)
            blocks.add_edge(*edge, gated=gated)
    return blocks
