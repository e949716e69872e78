"""From the plan to the naive masked graph: activity nodes, and a gate after every operation.

`simplify` removes most of the gates. Every inserted node carries an `Inserted` (`node_roles`).
"""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F

from convad_fx.compiler import kernels as tensors
from convad_fx.compiler.analysis.plan import Derivation, NodePlan, Plan, Tracked
from convad_fx.compiler.analysis.steps import Window
from convad_fx.compiler.capture.node_facts import META, facts
from convad_fx.compiler.capture.trace import Trace
from convad_fx.compiler.passes.node_roles import INSERTED, Inserted
from convad_fx.compiler.policy import Policy

Node = torch.fx.Node

#: Relabellings that are torch's own operation, applied to the activity.
_TORCH_OWN = {
    "flip": torch.flip,
    "pixel_shuffle": F.pixel_shuffle,
    "pixel_unshuffle": F.pixel_unshuffle,
    "channel_shuffle": torch.channel_shuffle,
    "take": operator.getitem,
}
#: Activities that count only elements that exist.
_COUNTING = (
    "window_activity",
    "transposed_activity",
    "adaptive_activity",
    "resize_activity",
    "anywhere",
    "share_activity",
)


def rewrite(traced: Trace, plan: Plan, policy: Policy) -> torch.fx.Graph:
    """The naive masked graph: ``forward(x, mask=None)``, a gate after every operation."""
    return _GateInserter(traced, plan, policy).write()


class _GateInserter:
    def __init__(self, traced: Trace, plan: Plan, policy: Policy):
        self.traced, self.plan, self.policy = traced, plan, policy
        self.graph = torch.fx.Graph()
        self.read: dict[Node, Node] = {}  # the model's node -> what readers get: mostly a gate
        self.by_name: dict[str, Node] = {}
        self.activities: dict[int, Node] = {}
        self.existing: dict[int, Node] = {}
        self.current = ""

    def write(self) -> torch.fx.Graph:
        # inputs first: their names come before those of the model's parameters
        nodes = self.traced.module.graph.nodes
        for node in sorted(nodes, key=lambda node: node.op != "placeholder"):
            self.current = node.name
            if node.op == "placeholder":
                self._write_inputs(node)
            elif node.op == "output":
                self.graph.output(torch.fx.map_arg(node.args[0], self._answer))
            else:
                self._write(node)
        self.graph.lint()
        return self.graph

    def _write_inputs(self, node: Node) -> None:
        x = self.graph.placeholder("x")
        mask = self.graph.placeholder("mask", default_value=None)
        x.meta[META] = replace(facts(node), name=node.name)
        options: dict[str, Any] = {
            "channels": self.traced.channels,
            "size": self.traced.grid if self.plan.size_bound else None,
            "rank": 2 + len(self.traced.grid),
        }
        if self.traced.like:
            options["like"] = self.graph.get_attr(self.traced.like)
        checked = self._insert("mask", tensors.checked_mask, (x, mask), options, name="kept")
        self.activities[0] = checked
        raw = self.policy.input == "raw"
        role, function = ("per_mask", tensors.per_mask) if raw else ("gate", tensors.gate)
        name = "x_per_mask" if raw else "x_gated"
        self.by_name[node.name] = x
        self.read[node] = self._insert(role, function, (x, checked), name=name)

    def _write(self, node: Node) -> None:
        plan = self.plan.nodes.get(node.name)
        fills = dict(plan.reads) if plan is not None else {}

        def operand(source: Node) -> Node:
            fill = fills.get(source.name, 0.0)
            if source.name in fills and plan is not None and self._reads_neighbours(plan):
                return self._neighbours(source, plan)
            return self.read[source] if fill == 0.0 else self._filled(source, fill)

        copied = self.graph.node_copy(node, operand)
        copied.meta[META] = replace(facts(node), name=node.name)
        self.by_name[node.name] = self.read[node] = copied
        if plan is None or not isinstance(plan.result, Tracked):
            return
        if plan.renormalise is not None and plan.renormalise_of is not None:
            self.read[node] = self._renormalised(copied, plan)
        row = plan.result.row
        if plan.refill:
            self.read[node] = self._gate(node, row, "refill")
        elif not self.plan.activities[row].is_global and not self._stays_raw(plan.result):
            self.read[node] = self._gate(node, row, "gate")

    def _answer(self, node: Node) -> Any:
        """What is returned: gated also where nothing else gates it (raw input, tuples)."""
        if node.name not in self.plan.outputs:
            return self.read[node]
        plan = self.plan.nodes.get(node.name)
        result = plan.result if plan is not None else Tracked(0, image_level=True)
        if isinstance(result, tuple):
            pieces = [self._tensor((node.name, i)) for i in range(len(result))]
            return tuple(
                self._gated_answer(piece, tracked, node.name)
                for piece, tracked in zip(pieces, result, strict=True)
            )
        assert result is not None
        value = self.read[node]
        return self._gated_answer(value, result, node.name) if self._stays_raw(result) else value

    def _gated_answer(self, value: Node | None, tracked: Tracked, source: str) -> Node:
        assert value is not None
        if self.plan.activities[tracked.row].is_global:
            return value
        args = (value, self._activity(tracked.row))
        name = f"{value.name}_gated"
        return self._insert("gate", tensors.gate, args, row=tracked.row, name=name, source=source)

    def _stays_raw(self, tracked: Tracked) -> bool:
        return self.policy.input == "raw" and tracked.image_level

    def _gate(self, node: Node, row: int, role: str) -> Node:
        args = (self.read[node], self._activity(row))
        return self._insert(role, tensors.gate, args, row=row, name=f"{node.name}_gated")

    def _reads_neighbours(self, plan: NodePlan) -> bool:
        """A convolution over more than one cell of the grid, under ``fill="neighbour"``."""
        step = plan.step
        return (
            self.policy.fill == "neighbour"
            and isinstance(step, Window)
            and step.groups > 0
            and not step.transposed
            and math.prod(step.kernel) > 1
        )

    def _neighbours(self, source: Node, plan: NodePlan) -> Node:
        assert isinstance(plan.step, Window)
        row = self._row(source)
        kwargs = {"kernel": plan.step.kernel, "dilation": plan.step.dilation}
        kwargs |= self._where_exists(exists=row)
        args, name = (self.read[source], self._activity(row)), f"{source.name}_filled"
        return self._insert(
            "fill", tensors.neighbours, args, kwargs, row=row, name=name, source=source.name
        )

    def _row(self, source: Node) -> int:
        tracked = Tracked(0) if source.op == "placeholder" else self.plan.nodes[source.name].result
        assert isinstance(tracked, Tracked)
        return tracked.row

    def _filled(self, source: Node, fill: float) -> Node:
        row = self._row(source)
        args, name = (self.read[source], self._activity(row), fill), f"{source.name}_gated"
        return self._insert("gate", tensors.gate, args, row=row, name=name, source=source.name)

    def _renormalised(self, value: Node, plan: NodePlan) -> Node:
        assert plan.renormalise is not None
        assert plan.renormalise_of is not None
        row = plan.renormalise_of
        function = getattr(tensors, plan.renormalise.function)
        kwargs = dict(plan.renormalise.options) | self._where_exists(exists=row)
        args, name = (value, self._activity(row)), f"{value.name}_mean"
        return self._insert("renormalise", function, args, kwargs, row=row, name=name)

    def _insert(
        self,
        role: str,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        row: int = 0,
        name: str,
        source: str | None = None,
    ) -> Node:
        node = self.graph.create_node("call_function", function, args, kwargs or {}, name=name)
        node.meta[INSERTED] = Inserted(role, source or self.current, row)
        return node

    # ---------------------------------------------------------------------------- activities

    def _activity(self, row: int) -> Node:
        """The node that computes a row; written where it is first needed."""
        if row not in self.activities:
            activity = self.plan.activities[row]
            assert activity.how is not None
            sources = [True if i is None else self._activity(i) for i in activity.of]
            kwargs = dict(activity.how.options)
            if activity.how.function in _COUNTING:
                kwargs |= self._where_exists(exists=activity.of[0])
            elif activity.how.function == "sum_activity":
                a, b = activity.of
                kwargs |= self._where_exists(a_exists=a, b_exists=b)
            self.activities[row] = self._call("activity", activity.how, sources, kwargs, row)
        return self.activities[row]

    def _call(
        self, role: str, how: Derivation, sources: list[Any], kwargs: dict[str, Any], row: int
    ) -> Node:
        others = [self._tensor(ref) for ref in how.tensors]
        args = (sources, others) if how.function == "concatenated" else (*sources, *others)
        function = _TORCH_OWN.get(how.function) or getattr(tensors, how.function)
        if how.function in _TORCH_OWN:  # these take their options in order
            args, kwargs = (*args, *kwargs.values()), {}
        return self._insert(role, function, args, kwargs, row=row, name=f"{self.current}_{role}")

    def _tensor(self, ref: str | tuple[str, int | None] | None) -> Node | None:
        """A tensor of the model, or one of several that a node gives."""
        if ref is None:
            return None
        name, item = ref if isinstance(ref, tuple) else (ref, None)
        node = self.by_name[name]
        if item is None:
            return node
        return self._insert("piece", operator.getitem, (node, item), name=f"{name}_{item}")

    def _where_exists(self, **rows: int | None) -> dict[str, Any]:
        """Options that say which elements exist, for those rows where not all do."""
        known = {key: None if row is None else self._exists(row) for key, row in rows.items()}
        return {key: exists for key, exists in known.items() if exists is not None}

    def _exists(self, row: int) -> Node | None:
        """Which elements exist for Phi; None where all do. The same derivation of other inputs."""
        activity = self.plan.activities[row]
        if not activity.padded or activity.how is None:
            return None
        if row not in self.existing:
            how = activity.how
            if how.function in ("intersection", "sum_activity"):
                pair = [self._all_or_exists(i) for i in activity.of]
                self.existing[row] = self._insert(
                    "exists", tensors.union, tuple(pair), row=row, name=f"{self.current}_exists"
                )
            else:
                sources = [False if i is None else self._all_or_exists(i) for i in activity.of]
                kwargs = dict(how.options)
                if how.function == "pad_activity":
                    kwargs["value"] = False
                self.existing[row] = self._call("exists", how, sources, kwargs, row)
        return self.existing[row]

    def _all_or_exists(self, row: int | None) -> Node:
        assert row is not None
        exists = self._exists(row)
        if exists is not None:
            return exists
        return self._insert(
            "exists", torch.ones_like, (self._activity(row),), row=row, name=f"{self.current}_all"
        )
