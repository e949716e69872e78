"""One walk over the graph decides what happens to the activity at every node.

The walk knows no operations, no steps, and edits nothing: a rule turns a node into a step, and a
transfer function gives the activity of the result from the step and the activities of its operands.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import Any

import torch.fx

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.plan import Finding, NodePlan, Plan, Tracked, iter_tracked
from convad_fx.compiler.analysis.rules import step_of
from convad_fx.compiler.analysis.transfer import (
    ActivityTable,
    Context,
    Operand,
    Outcome,
    Refusal,
    transfer,
)
from convad_fx.compiler.capture.node_facts import facts
from convad_fx.compiler.capture.op_schema import OpView, TensorView, op_view, reads_no_values
from convad_fx.compiler.capture.trace import Trace
from convad_fx.compiler.policy import Policy

#: The activity of a node, one each for a tuple; None: unknown after a finding.
Result = Tracked | tuple[Tracked, ...] | None


def plan(traced: Trace, policy: Policy, *, ignore_findings: bool = False) -> Plan:
    """Decide for every node of a captured model.

    With ``ignore_findings`` an operation without a known reach is treated as same-cell where shapes
    allow it and as a global reduction elsewhere: nothing is proved then.
    """
    return _Walk(traced, policy, ignore_findings).run()


#: What takes the shape or dtype of a second tensor, and no values; as ``.view_as()`` or, exported,
#: ``view_as.default``.
_READS_SHAPE_OF_OTHER = ("view_as", "reshape_as", "expand_as", "type_as")


@dataclass(slots=True)
class _Walk:
    traced: Trace
    policy: Policy
    ignore_findings: bool
    table: ActivityTable = field(default_factory=ActivityTable)
    tracked: dict[str, Result] = field(default_factory=dict)
    nodes: dict[str, NodePlan] = field(default_factory=dict)
    refused: dict[str, OpView] = field(default_factory=dict)
    behind: set[str] = field(default_factory=set)  # nodes whose tracked activity is assumed
    outputs: list[str] = field(default_factory=list)
    size_bound: str = ""

    def run(self) -> Plan:
        if not self.traced.any_size:
            self.size_bound = self.traced.front_end
        for node in self.traced.module.graph.nodes:
            if node.op == "placeholder":
                row = self.table.add_mask(len(facts(node).shape))
                self.tracked[node.name] = Tracked(row, image_level=True)
            elif node.op == "output":
                for source in node.all_input_nodes:
                    self._visit_returned(source)
            elif any(source.name in self.tracked for source in node.all_input_nodes):
                self._visit(node)
        self._report_problems()
        outputs = tuple(dict.fromkeys(self.outputs))
        return Plan(self.nodes, tuple(self.table.rows), outputs, self.size_bound)

    def _report_problems(self) -> None:
        for problem in self.traced.problems:
            finding = Finding(problem.path, "in place", (), None, problem.why, problem.hint)
            before = self.nodes.get(problem.node)
            self.nodes[problem.node] = (
                replace(
                    before,
                    path=problem.path,
                    finding=finding,
                    refill=False,
                    renormalise=None,
                    renormalise_of=None,
                )
                if before
                else NodePlan(problem.path, "in_place", None, None, finding=finding)
            )

    def _visit_returned(self, node: torch.fx.Node) -> None:
        """A tensor that the model returns: its first axis must be the batch."""
        if node.name in self.behind:
            return
        rows = [self.table[tracked.row] for tracked in iter_tracked(self.tracked.get(node.name))]
        if all(row.batch.is_first for row in rows):
            if not all(row.is_global for row in rows):
                self.outputs.append(node.name)
            return
        known = self.nodes[node.name]
        op = known.op or op_view(node, self.traced.module, lambda n: n.name in self.tracked)
        why = "it is returned, and axis 0 is not the batch axis"
        self._refuse(node, op, why, "move the batch back to axis 0", known.step)

    def _visit(self, node: torch.fx.Node) -> None:
        if reads_no_values(node):
            return
        source = node.args[0] if node.args else None
        if isinstance(source, torch.fx.Node) and source.name in self.tracked:
            sources = self.tracked[source.name]
            index = _picked_index(node)
            if index is not None and (isinstance(sources, tuple) or not facts(source).is_tensor):
                self._pick(node, sources, index, refill=self.nodes[source.name].refill)
                return
        op = op_view(node, self.traced.module, lambda n: n.name in self.tracked)
        try:
            self._propagate(node, op)
        except Refusal as refusal:
            self._refuse(node, op, refusal.why, refusal.hint)

    def _propagate(self, node: torch.fx.Node, op: OpView) -> None:
        step = _parsed(op)
        operands = self._operands(op, step)
        if isinstance(step, steps.Constant) or operands == []:
            return  # it reads at most the image's shape
        if operands is None:  # unknown after a finding further up
            self._note(node, op, step, None)
            return
        first_only = all(_picked_index(user) == 0 for user in node.users)
        outcome = transfer(step, op, operands, Context(self.table, self.policy, first_only))
        result = outcome.result
        if isinstance(result, Tracked) and not facts(node).is_tensor:
            if not first_only:  # aten.adaptive_max_pool1d returns indices as well
                raise Refusal(
                    "it returns data-dependent argmax indices",
                    "use the values alone",
                )
            result = (result,) * len(op.output)
        if outcome.size_bound:
            self.size_bound = self.size_bound or op.path
        self._note(node, op, step, result, **self._gates(outcome, operands))

    def _gates(self, outcome: Outcome, operands: list[Operand]) -> dict[str, Any]:
        """The fields of a `NodePlan` that say what is read, and what is done to the result."""
        reads = {
            operand.view.node: outcome.identity
            for operand in operands
            if outcome.identity is not None and self._may_gate(operand.tracked)
        }
        renormalise = outcome.renormalise if reads else None
        return {
            "reads": tuple(reads.items()),
            "refill": outcome.refill and bool(reads),  # an extremum of what is not gated needs none
            "renormalise": renormalise,
            "renormalise_of": operands[0].row if renormalise else None,
        }

    def _may_gate(self, tracked: Tracked) -> bool:
        if self.policy.input == "raw" and tracked.image_level:
            return False
        return not self.table[tracked.row].is_global

    def _operands(self, op: OpView, step: steps.Step) -> list[Operand] | None:
        """Parameters that depend on the image; None if one is unknown after a finding."""
        allowed = {"input", "other", "third", "dim"} if isinstance(step, steps.Join) else {"input"}
        if isinstance(step, steps.Reduce):
            allowed = {step.operand}
        operands = []
        for name, item in op.masked():
            if name not in allowed and not isinstance(step, steps.Constant):
                if op.spelling.strip(".()").partition(".")[0] in _READS_SHAPE_OF_OTHER:
                    continue
                raise Refusal(
                    f"its parameter {name!r} is computed from the image",
                    "ConvAD needs parameters that do not depend on the image",
                )
            tracked = self._tracked_of(item)
            if tracked is None:
                return None
            if isinstance(tracked, tuple):
                raise Refusal("it takes a tuple of tensors", "index the tuple first")
            operands.append(Operand(item, tracked))
        return operands

    def _tracked_of(self, item: TensorView) -> Result:
        tracked = self.tracked[item.node]
        if isinstance(tracked, tuple) and item.item is not None:
            return tracked[item.item]
        return tracked

    def _pick(
        self, node: torch.fx.Node, sources: Result, index: int | slice, *, refill: bool
    ) -> None:
        """One of the tensors that a node returns."""
        result = sources[index] if isinstance(sources, tuple) else None
        if sources is None and (op := self.refused.get(str(node.args[0]))) is not None:
            result = self._assumed_in_place(op, facts(node).shape)
        self.tracked[node.name] = result
        if self._is_behind_finding(node):
            self.behind.add(node.name)
            result = None
        refill = refill and index == 0
        self.nodes[node.name] = NodePlan(facts(node).path, "getitem", None, result, refill=refill)

    # ------------------------------------------------------------------------------ decisions

    def _note(
        self,
        node: torch.fx.Node,
        op: OpView,
        step: steps.Step | None,
        result: Result,
        **decided: Any,
    ) -> None:
        self.tracked[node.name] = result
        if self._is_behind_finding(node):  # the walk goes on, but nothing is decided
            self.behind.add(node.name)
            result, decided = None, {"finding": decided.get("finding")}
        self.nodes[node.name] = NodePlan(op.path, op.kind, step, result, op=op, **decided)

    def _is_behind_finding(self, node: torch.fx.Node) -> bool:
        if self.ignore_findings:
            return False
        return node.name in self.refused or any(
            source.name in self.behind for source in node.all_input_nodes
        )

    def _refuse(
        self,
        node: torch.fx.Node,
        op: OpView,
        why: str,
        hint: str,
        step: steps.Step | None = None,
    ) -> None:
        shapes = tuple(item.shape for _, item in op.masked())
        finding = Finding(op.path, op.spelling, shapes, op.output, why, hint)
        result: Result = None
        if facts(node).has_tensors:
            assumed = self._assumed_anywhere if self.ignore_findings else self._assumed_in_place
            result = assumed(op, op.output)
        self.refused[node.name] = op
        self._note(node, op, step, result, finding=finding)

    # ---------------------------------------------------------------- assumed behind a finding

    def _assumed_in_place(self, op: OpView, shape: Any) -> Tracked | None:
        """The activity that the walk assumes behind a finding, to reach the next in one report.

        If the output has the grid of an operand, elements are taken to stay at their place. Of
        other outputs nothing is known, and what reads them is refused for its own kind only.
        """
        for _, item in op.masked():
            tracked = self._tracked_of(item)
            if not isinstance(tracked, Tracked) or not shape or len(shape) != item.rank:
                continue
            activity = self.table[tracked.row]
            axes = zip(shape, item.shape, activity.full, strict=True)
            if all(
                n == m or not (full or axis == activity.batch.axis)
                for axis, (n, m, full) in enumerate(axes)
            ):
                return tracked
        return None

    def _assumed_anywhere(self, op: OpView, output: Any) -> Result:
        """What every hook-based tool assumes: same shape, same place. Not proved."""
        operands = [
            (item, tracked)
            for _, item in op.masked()
            if isinstance(tracked := self._tracked_of(item), Tracked)
        ]
        if not operands or any(self.table[t.row].batch.axis for _, t in operands):
            return None
        is_tuple = bool(output) and isinstance(output[0], tuple)
        shapes = output if is_tuple else (output,)
        if () in shapes:
            return None  # a single number for the whole batch
        results = []
        for shape in shapes:
            same = next((t for item, t in operands if item.shape == shape), None)
            row = same.row if same else self._anywhere(operands[0][1].row, len(shape))
            results.append(Tracked(row))
        return tuple(results) if is_tuple else results[0]

    def _anywhere(self, row: int, rank: int) -> int:
        axes = tuple(axis for axis, full in enumerate(self.table[row].full) if full and axis)
        if axes:
            row = self.table.anywhere(row, axes)
        return self.table.rearrange(row, (0, *(None,) * (rank - 1)))


def _parsed(op: OpView) -> steps.Step:
    """The step of an operation. Its parameters may be such that the rule fails on them."""
    try:
        step = step_of(op)
    # ArithmeticError: an axis modulo the rank of a tensor without axes
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise Refusal(
            f"its parameters are not understood ({error})",
            "call it with plain numbers, or report it with the model's code",
        ) from error
    if isinstance(step, steps.Refused):
        raise Refusal(step.why, step.hint)
    return step


def _picked_index(node: torch.fx.Node) -> int | slice | None:
    """Which tensors of a tuple this node takes: ``[0]``, ``[::-1]``, ``.values``, ``.indices``."""
    if node.target is operator.getitem and isinstance(node.args[1], int | slice):
        return node.args[1]
    if node.target is getattr and node.args[1] in ("values", "indices"):
        return ("values", "indices").index(str(node.args[1]))
    return None
