"""From a gate after every operation to at most one gate before each reader that mixes elements.

Explicit zero padding may stand between the two. Each pass takes a graph and returns how many nodes
it removed or moved; `simplify` stops when no pass changes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch.fx

from convad_fx.compiler.analysis.plan import Plan
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
from convad_fx.compiler.capture.node_facts import facts
from convad_fx.compiler.kernels.gating import per_mask
from convad_fx.compiler.passes.node_roles import (
    INSERTED,
    decided,
    inserted,
    inside_of_zeros,
    is_gate,
    pads_zeros,
    role_of,
    zeroes,
)

Pass = Callable[[torch.fx.Graph, Plan], int]


def simplify(graph: torch.fx.Graph, plan: Plan) -> dict[str, int]:
    """Run all passes until none changes anything. Returns nodes changed by the name of the pass."""
    changed = dict.fromkeys((each.__name__ for each in PASSES), 0)
    while True:
        counts = {each.__name__: each(graph, plan) for each in PASSES}
        if not any(counts.values()):
            break
        for name, count in counts.items():
            changed[name] += count
    graph.lint()
    return changed


def read_through_gates(graph: torch.fx.Graph, plan: Plan) -> int:
    """A gate of a gate of the same activity reads the value itself: the outer one suffices."""
    count = 0
    for node in graph.nodes:
        inner = node.args[0] if is_gate(node) else None
        if inner is not None and is_gate(inner) and inserted(inner).row == inserted(node).row:
            node.replace_input_with(inner, inner.args[0])
            count += 1
    return count


def drop_gates_of_padding(graph: torch.fx.Graph, plan: Plan) -> int:
    """Zero padding of a gated value needs no gate: its inactive elements are zero already."""
    count = 0
    for node in list(graph.nodes):
        if not zeroes(node) or inserted(node).role != "gate":
            continue
        source = inside_of_zeros(node.args[0], plan)
        if source is not node.args[0] and zeroes(source):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            count += 1
    return count


def drop_idle_gates(graph: torch.fx.Graph, plan: Plan) -> int:
    """Remove gates of which no reader mixes elements that may differ in activity.

    Where one does, all readers share the gated value: values of inactive elements are unspecified,
    and two versions of one tensor in memory cost more than one gate.
    """
    count = 0
    for node in list(graph.nodes):
        if not zeroes(node) or inserted(node).role != "gate":
            continue
        if any(_needs(user, inserted(node).source, plan) for user in node.users):
            continue
        value = node.args[0]
        if value.op == "placeholder":  # the image is still needed once per mask
            with graph.inserting_before(node):
                value = graph.create_node(
                    "call_function", per_mask, node.args[:2], name=f"{value.name}_per_mask"
                )
            value.meta[INSERTED] = replace(inserted(node), role="per_mask")
            count -= 1  # one node replaces another
        node.replace_all_uses_with(value)
        graph.erase_node(node)
        count += 1
    return count


def drop_unread(graph: torch.fx.Graph, plan: Plan) -> int:
    """Remove inserted nodes that nothing reads any more."""
    count = 0
    for node in reversed(list(graph.nodes)):
        if not node.users and INSERTED in node.meta:
            graph.erase_node(node)
            count += 1
    return count


def hoist_what_no_mask_touches(graph: torch.fx.Graph, plan: Plan) -> int:
    """Compute once per image what comes before the first gates, which then broadcast.

    Only where every operation before them takes any batch size: none reads sizes, and none
    concatenates with tensors that are masked already.
    """
    repeat = next((n for n in graph.nodes if role_of(n) == "per_mask"), None)
    if repeat is None:
        return 0
    unmasked = {repeat}
    for node in graph.nodes:
        if is_gate(node) or unmasked.isdisjoint(node.all_input_nodes):
            continue
        if not _broadcasts(node, plan):
            return 0
        if not _joins_masked(node, plan):
            unmasked.add(node)
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


#: Steps that take any batch size and read no sizes.
_ANY_BATCH = (
    SameCell | Window | AdaptivePool | Resize | Statistic | Join | Pad | Flip | PixelShuffle
)


def _needs(user: torch.fx.Node, source: str, plan: Plan) -> bool:
    """Whether this reader combines elements of the source that may differ in activity."""
    if user.op == "output":
        return source in plan.outputs
    if pads_zeros(user, plan):  # readers of the padded tensor read the source
        return any(_needs(reader, facts(user).name, plan) for reader in user.users)
    known = decided(user, plan)
    return known is not None and (source, 0.0) in known.reads


def _broadcasts(user: torch.fx.Node, plan: Plan) -> bool:
    known = decided(user, plan)
    if known is not None and isinstance(known.step, Rearrange):
        return known.step.axes[0] == 0  # the batch stays where it is
    return known is not None and isinstance(known.step, _ANY_BATCH)


def _joins_masked(user: torch.fx.Node, plan: Plan) -> bool:
    """A join with a gated tensor: it broadcasts, and its result has one row per mask."""
    known = decided(user, plan)
    joins = known is not None and isinstance(known.step, Join)
    return joins and any(map(is_gate, user.all_input_nodes))
