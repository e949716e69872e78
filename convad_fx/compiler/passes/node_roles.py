"""Which nodes of a masked graph are the model's own, and what the inserted ones are for.

A copy of a node of the model keeps what tracing knows of it under `META`. An inserted node has an
`Inserted` under another key, so that no pass guesses from a target what a node is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.fx

from convad_fx.compiler.analysis.plan import NodePlan, Plan
from convad_fx.compiler.analysis.steps import Pad
from convad_fx.compiler.capture.node_facts import META, facts
from convad_fx.compiler.kernels.gating import gate

Node = torch.fx.Node

#: The key in `Node.meta` of what an inserted node is for.
INSERTED = "convad_inserted"


@dataclass(frozen=True, slots=True)
class Inserted:
    """What an inserted node is for.

    Attributes:
        role: "mask", "activity", "exists", "gate", "fill", "refill", "renormalise", "piece" or
            "per_mask".
        source: the model's node whose value or activity it is.
        row: the activity, as a row of the plan.
    """

    role: str
    source: str
    row: int


def is_original(node: Node) -> bool:
    """Whether it is a copy of one of the model's nodes."""
    return META in node.meta


def inserted(node: Node) -> Inserted:
    """What an inserted node is for. Raises KeyError for any other."""
    known: Inserted = node.meta[INSERTED]
    return known


def role_of(node: Node) -> str:
    """The role of an inserted node, "" for any other."""
    return inserted(node).role if INSERTED in node.meta else ""


def original_of(node: Node) -> Node:
    """The model's node whose value an inserted gate passes on; one of the model's own, itself."""
    while INSERTED in node.meta:
        node = node.args[0]  # type: ignore[assignment]
    return node


def decided(node: Node, plan: Plan) -> NodePlan | None:
    """The plan of one of the model's operations; None for inserted nodes."""
    return plan.nodes.get(facts(node).name) if is_original(node) else None


def is_gate(node: object) -> bool:
    """Whether it is a call of `gate`, whatever it fills in."""
    return isinstance(node, Node) and node.target is gate


def zeroes(node: Node) -> bool:
    """Whether it is a gate that sets inactive elements to zero."""
    return is_gate(node) and node.args[2:] in ((), (0.0,))


def padding_of(node: Node, plan: Plan) -> Pad | None:
    """The step of explicit padding in the model; None for any other node."""
    known = decided(node, plan)
    return known.step if known is not None and isinstance(known.step, Pad) else None


def padded_by(node: Node) -> Node:
    """What explicit padding is put around."""
    return node.args[0] if node.args else node.kwargs["input"]  # type: ignore[return-value]


def pads_zeros(node: Node, plan: Plan) -> bool:
    """Whether it is explicit padding in the model, with zeros only."""
    step = padding_of(node, plan)
    return step is not None and step.zeros


def inside_of_zeros(node: Node, plan: Plan) -> Node:
    """The tensor that explicit zero padding surrounds; a node that pads no zeros, itself."""
    while pads_zeros(node, plan):
        node = padded_by(node)
    return node
