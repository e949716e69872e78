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

#: Up to this many operations are drawn one by one.
MOST_OPERATIONS = 120
#: Larger networks: module paths cut as short as still makes this many blocks ...
FEWEST_BLOCKS = 15
#: ... unless it makes more than this.
MOST_BLOCKS = 150


@dataclass(frozen=True, slots=True)
class Box:
    """A box of the picture: an operation, or a block of them.

    Attributes:
        path: where it stands in the model.
        kind: what it does, in a few words; "" for a block.
        families: family -> how many of its operations; an operation without a rule has none.
        activity: row of its result in the plan; None: left open by a finding.
        changes: how many of its operations have another activity than what they read.
        is_new: its result has another activity than what it reads.
        gated: how many of its operations read gated input.
        findings: their numbers in the report, from 1.
        operations: how many it stands for.
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
        """It stands for several operations."""
        return self.operations > 1


def plan_graph(traced: Trace, plan: Plan) -> nx.DiGraph:
    """Which operation reads which, from ``"image"`` to ``"output"``.

    >>> import torch
    >>> from convad_fx.compiler.policy import Policy
    >>> from convad_fx.compiler.analysis.propagate import plan
    >>> from convad_fx.compiler.capture.trace import trace
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    >>> traced = trace(model, torch.zeros(1, 3, 8, 8))
    >>> graph = plan_graph(traced, plan(traced, Policy()))
    >>> [(box.path, box.gated, box.activity) for _, box in graph.nodes(data="box")]
    [('image', 0, 0), ('0', 1, 1), ('1', 0, 1), ('output', 1, 1)]

    Nodes carry a `Box` as ``box``; edges say ``gated``: inactive cells read as zero on this way.
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
            decided = plan.nodes[node.name]
            # An operation may be called "image" or "output", too.
            names[node] = name = f"op:{node.name}"
            before = {graph.nodes[source]["box"].activity for source in sources}
            box = _box(decided, before, numbers.get(node.name), _module_name(node, traced))
            graph.add_node(name, box=box)
            gated = {names[n] for n in node.all_input_nodes if n.name in dict(decided.reads)}
            graph.add_edges_from((source, name, {"gated": source in gated}) for source in sources)
    _add_lost(graph, plan, numbers)
    return graph


def uncaptured_graph(report: Report) -> nx.DiGraph:
    """What there is to show of a model that no front end could capture: where that failed."""
    graph = nx.DiGraph()
    graph.add_node(IMAGE, box=Box("image", activity=0, operations=0))
    for number, finding in enumerate(report.findings, 1):
        graph.add_node(number, box=Box(finding.path, "cannot be captured", findings=(number,)))
        graph.add_edge(IMAGE, number, gated=False)
    return graph


def by_blocks(graph: nx.DiGraph, most: int = MOST_OPERATIONS) -> nx.DiGraph:
    """The graph itself, or one of blocks where it has more than ``most`` operations.

    A block is a run of operations, in the order in which they are called, whose paths begin alike:
    ``layer3.4``. Runs of an order that follows the edges cannot form a cycle, even where a module
    is called twice.
    """
    if sum(box.operations for _, box in graph.nodes(data="box")) <= most:
        return graph
    deepest = max(box.path.count(".") + 1 for _, box in graph.nodes(data="box"))
    choices = [_runs(graph, depth) for depth in range(1, deepest + 1)]
    readable = [runs for runs in choices if len(runs) <= MOST_BLOCKS] or choices[:1]
    enough = (runs for runs in readable if len(runs) >= FEWEST_BLOCKS)
    return _merged(graph, next(enough, readable[-1]))


def ways_to_findings(graph: nx.DiGraph) -> set[tuple[Any, Any]]:
    """Edges of a shortest way from the image to each finding."""
    ways = nx.single_source_shortest_path(graph, IMAGE)
    found = [node for node, box in graph.nodes(data="box") if box.findings and node in ways]
    return {edge for node in found for edge in itertools.pairwise(ways[node])}


def _with_findings(plan: Plan) -> list[tuple[str, NodePlan]]:
    return [(name, decided) for name, decided in plan.nodes.items() if decided.finding is not None]


def _module_name(node: torch.fx.Node, traced: Trace) -> str:
    if node.op != "call_module":
        return ""
    return type(traced.module.get_submodule(str(node.target))).__name__


def _box(decided: NodePlan, before: set[int | None], number: int | None, module: str = "") -> Box:
    result = decided.result
    row = result.row if isinstance(result, Tracked) else result[0].row if result else None
    family = None if decided.finding else family_of(decided.step)
    is_new = row is not None and row not in before
    return Box(
        decided.path,
        _kind(decided, module),
        Counter([family] if family else []),
        row,
        int(is_new),
        is_new,
        int(bool(decided.reads)),
        (number,) if number else (),
    )


def family_of(step: steps.Step | None) -> str | None:
    """One of `FAMILIES`; None for a step that was refused.

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
        case _:  # None: one tensor is picked from a tuple
            return "layout"


def _kind(decided: NodePlan, module: str) -> str:
    if decided.kind == "elementwise":  # which one is in the path, but for modules
        return module or "elementwise"
    kind = decided.kind.removesuffix("_module").replace("_", " ")
    if not isinstance(decided.step, steps.Window):
        return kind
    return f"{kind} {window_in_words(decided.step.kernel, decided.step.stride)}"


def window_in_words(kernel: Sequence[int], stride: Sequence[int]) -> str:
    """Kernel, and stride where there is one.

    >>> window_in_words((3, 3), (2, 2)), window_in_words((1, 7), (1, 1))
    ('3x3 /2', '1x7')
    """
    words = ["x".join(map(str, kernel))]
    if set(stride) != {1}:
        words.append("/" + "x".join(map(str, stride[:1] if len(set(stride)) == 1 else stride)))
    return " ".join(words)


def _add_lost(graph: nx.DiGraph, plan: Plan, numbers: dict[str, int]) -> None:
    """Findings at operations that nothing reads, which are no longer in the captured graph."""
    for name, decided in _with_findings(plan):
        if f"op:{name}" not in graph:
            graph.add_node(f"op:{name}", box=_box(decided, set(), numbers[name]))
            graph.add_edge(IMAGE, f"op:{name}", gated=False)


def _runs(graph: nx.DiGraph, depth: int) -> list[tuple[str, list[Any]]]:
    def block(node: Any) -> tuple[bool, str]:
        path = graph.nodes[node]["box"].path
        return node in (IMAGE, OUTPUT), ".".join(path.split(".")[:depth])

    calls: Counter[str] = Counter()
    runs = []
    for (_, path), run in itertools.groupby(graph, key=block):
        calls[path] += 1
        again = f" ({calls[path]})" if calls[path] > 1 else ""
        runs.append((path + again, list(run)))
    return runs


def _merged(graph: nx.DiGraph, runs: list[tuple[str, list[Any]]]) -> nx.DiGraph:
    blocks = nx.DiGraph()
    home = {node: run[0] for _, run in runs for node in run}
    for path, run in runs:
        boxes = [graph.nodes[node]["box"] for node in run]
        if len(run) == 1:
            blocks.add_node(run[0], box=boxes[0])
            continue
        read = {source for node in run for source in graph.predecessors(node)} - set(run)
        before = {graph.nodes[source]["box"].activity for source in read}
        activity = boxes[-1].activity
        families: Counter[str] = sum((box.families for box in boxes), Counter())
        box = Box(
            path,
            "",
            families,
            activity,
            sum(box.changes for box in boxes),
            activity is not None and activity not in before,
            sum(box.gated for box in boxes),
            tuple(number for box in boxes for number in box.findings),
            sum(box.operations for box in boxes),
        )
        blocks.add_node(run[0], box=box)
    for source, target, gated in graph.edges(data="gated"):
        a, b = home[source], home[target]
        if a != b:
            known = blocks.get_edge_data(a, b, {"gated": False})
            blocks.add_edge(a, b, gated=gated or known["gated"])
    return blocks
