"""From a gate after every operation to one gate, at most, before each reader that mixes cells.

Zeros that are put around what is gated stand between the two.

Each pass takes a graph and returns how many nodes it took out or moved, so that tests can count and
`simplify` can stop when there is nothing left to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch.fx

from convad_fx.compiler.analysis.plan import NodePlan, Plan
from convad_fx.compiler.analysis.steps import (
    AdaptivePool,
    Flip,
    Join,
    Pad,
    PixelShuffle,
    Rearrange,
    Resize,
    SameCell,
    Statistic,
    Window,
)
from convad_fx.compiler.capture.facts import META, Facts
from convad_fx.compiler.kernels.gating import gate, per_mask
from convad_fx.compiler.passes.insert_gates import Inserted, inside_of_zeros, pads_zeros, zeroes

Pass = Callable[[torch.fx.Graph, Plan], int]


def simplify(graph: torch.fx.Graph, plan: Plan) -> dict[str, int]:
    """Run every pass until none finds anything. -> pass name -> nodes changed."""
    changed = {one.__name__: 0 for one in PASSES}
    while True:
        counts = {one.__name__: one(graph, plan) for one in PASSES}
        if not any(counts.values()):
            break
        for name, count in counts.items():
            changed[name] += count
    graph.lint()
    return changed


def read_through_gates(graph: torch.fx.Graph, plan: Plan) -> int:
    """A gate of a gate of the same activity reads the value itself: the outer one decides."""
    count = 0
    for node in graph.nodes:
        inner = node.args[0] if _is_gate(node) else None
        if inner is not None and _is_gate(inner) and _inserted(inner).row == _inserted(node).row:
            node.replace_input_with(inner, inner.args[0])
            count += 1
    return count


def drop_gates_of_padding(graph: torch.fx.Graph, plan: Plan) -> int:
    """Zeros put around a gated value need no gate: what is switched off there is, here, too."""
    count = 0
    for node in list(graph.nodes):
        if not zeroes(node) or _inserted(node).role != "gate":
            continue
        source = inside_of_zeros(node.args[0], plan)
        if source is not node.args[0] and zeroes(source):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            count += 1
    return count


def drop_idle_gates(graph: torch.fx.Graph, plan: Plan) -> int:
    """A gate goes if no reader of it mixes cells that may differ in activity.

    Where one does, all readers share the gated value: inactive cells are nobody's business, and two
    versions of one tensor in memory cost more than one gate.
    """
    count = 0
    for node in list(graph.nodes):
        if not zeroes(node) or _inserted(node).role != "gate":
            continue
        if any(_needs(user, _inserted(node).source, plan) for user in node.users):
            continue
        value = node.args[0]
        if value.op == "placeholder":  # the image is still wanted once per mask
            with graph.inserting_before(node):
                value = graph.create_node(
                    "call_function", per_mask, node.args[:2], name=f"{value.name}_per_mask"
                )
            value.meta[META] = replace(_inserted(node), role="per_mask")
            count -= 1  # one for another
        node.replace_all_uses_with(value)
        graph.erase_node(node)
        count += 1
    return count


def drop_unread(graph: torch.fx.Graph, plan: Plan) -> int:
    """Activities that no gate uses any more."""
    count = 0
    for node in reversed(list(graph.nodes)):
        if not node.users and isinstance(node.meta.get(META), Inserted):
            graph.erase_node(node)
            count += 1
    return count


def hoist_what_no_mask_touches(graph: torch.fx.Graph, plan: Plan) -> int:
    """What comes before the first gate is the same for every mask.

    The image is then not repeated for each mask: the first gates broadcast. Only where everything
    before them takes any batch as it comes: no sizes are read there, and nothing is concatenated
    with tensors that are masked already.
    """
    repeat = next((n for n in graph.nodes if _role(n) == "per_mask"), None)
    if repeat is None:
        return 0
    inside, queue = {repeat}, [repeat]
    while queue:
        for user in queue.pop().users:
            if _is_gate(user) or user in inside:
                continue
            if not _broadcasts(user, plan):
                return 0
            if _meets_masked(user, plan):
                continue
            inside.add(user)
            queue.append(user)
    repeat.replace_all_uses_with(repeat.args[0])
    graph.erase_node(repeat)
    return 1


PASSES: tuple[Pass, ...] = (
    read_through_gates,
    drop_gates_of_padding,
    drop_idle_gates,
    drop_unread,
    hoist_what_no_mask_touches,
)


#: Steps that take any batch, and read no sizes.
_AS_IT_COMES = (
    SameCell | Window | AdaptivePool | Resize | Statistic | Join | Pad | Flip | PixelShuffle
)


def _is_gate(node: object) -> bool:
    return isinstance(node, torch.fx.Node) and node.target is gate


def _inserted(node: torch.fx.Node) -> Inserted:
    known: Inserted = node.meta[META]
    return known


def _role(node: torch.fx.Node) -> str:
    known = node.meta.get(META)
    return known.role if isinstance(known, Inserted) else ""


def _needs(user: torch.fx.Node, source: str, plan: Plan) -> bool:
    """Does this reader combine cells of the source that may differ in activity?"""
    if user.op == "output":
        return source in plan.outputs
    if pads_zeros(user, plan):  # whoever reads what is padded reads the source
        return any(_needs(reader, _name(user), plan) for reader in user.users)
    decided = _decided(user, plan)
    return decided is not None and (source, 0.0) in decided.reads


def _decided(node: torch.fx.Node, plan: Plan) -> NodePlan | None:
    """What the plan says of an operation of the model; None for what was put in."""
    known = node.meta.get(META)
    return plan.nodes.get(known.name) if isinstance(known, Facts) else None


def _name(node: torch.fx.Node) -> str:
    known: Facts = node.meta[META]
    return known.name


def _broadcasts(user: torch.fx.Node, plan: Plan) -> bool:
    decided = _decided(user, plan)
    if decided is not None and isinstance(decided.step, Rearrange):
        return decided.step.axes[0] == 0  # the batch stays where it is
    return decided is not None and isinstance(decided.step, _AS_IT_COMES)


def _meets_masked(user: torch.fx.Node, plan: Plan) -> bool:
    """A join with a gated tensor: it broadcasts, and what follows has one row per mask."""
    decided = _decided(user, plan)
    joins = decided is not None and isinstance(decided.step, Join)
    return joins and any(_is_gate(n) for n in user.all_input_nodes)
