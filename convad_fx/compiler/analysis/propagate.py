"""One walk over the graph decides what happens to the activity at every node.

The walk knows no operations and edits nothing: rules turn a node into a step, the step and the
activities of its operands give the activity of its result.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any

import torch.fx

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.plan import (
    Activity,
    Derivation,
    Finding,
    NodePlan,
    Plan,
    Tracked,
    iter_tracked,
)
from convad_fx.compiler.analysis.rules import step_of
from convad_fx.compiler.capture.facts import facts
from convad_fx.compiler.capture.op_schema import OpView, TensorView, op_view, reads_no_values
from convad_fx.compiler.capture.trace import Trace
from convad_fx.compiler.policy import Policy


def plan(traced: Trace, policy: Policy, *, ignore_findings: bool = False) -> Plan:
    """Decide for every node of a captured model.

    With ``ignore_findings`` an operation without a known reach is treated as same-cell where shapes
    allow it and as a global reduction elsewhere: nothing is proved then.
    """
    return _Walk(traced, policy, ignore_findings).run()


#: What takes the shape or dtype of a second tensor, and no values; as ``.view_as()`` or, exported,
#: ``view_as.default``.
_READ_THE_OTHER_S_SHAPE = ("view_as", "reshape_as", "expand_as", "type_as")


class _Refusal(Exception):
    """Raised where a step does not fit the activity at hand; becomes a finding."""

    def __init__(self, why: str, hint: str):
        super().__init__(why)
        self.why, self.hint = why, hint


@dataclass(slots=True)
class _Outcome:
    """What a step does to the activities at hand."""

    result: Tracked | tuple[Tracked, ...]
    fill: float | None = None  # what inactive cells of the operands read as; None: read as they are
    gated_rows: tuple[int, ...] | None = None  # only operands with these rows are gated; None: all
    refill: bool = False
    renormalise: Derivation | None = None


@dataclass(slots=True)
class _Walk:
    traced: Trace
    policy: Policy
    ignore_findings: bool
    rows: list[Activity] = field(default_factory=list)
    interned: dict[Any, int] = field(default_factory=dict)
    tracked: dict[str, Tracked | tuple[Tracked, ...] | None] = field(default_factory=dict)
    nodes: dict[str, NodePlan] = field(default_factory=dict)
    refused: dict[str, OpView] = field(default_factory=dict)
    behind: set[str] = field(default_factory=set)  # what is tracked there is a guess
    size_bound: str = ""
    first_only: bool = False  # of the tensors that the node at hand gives, only the first is used

    def run(self) -> Plan:
        outputs: list[str] = []
        if not self.traced.any_size:
            self.size_bound = self.traced.front_end
        for node in self.traced.module.graph.nodes:
            if node.op == "placeholder":
                rank = len(facts(node).shape)
                self.rows.append(Activity((False, False) + (True,) * (rank - 2), None, ()))
                self.tracked[node.name] = Tracked(0, image_level=True)
            elif node.op == "output":
                outputs += [n.name for n in node.all_input_nodes if self._is_gated_output(n)]
            elif any(source.name in self.tracked for source in node.all_input_nodes):
                self._visit(node)
        self._report_problems()
        return Plan(self.nodes, tuple(self.rows), tuple(dict.fromkeys(outputs)), self.size_bound)

    def _report_problems(self) -> None:
        for problem in self.traced.problems:
            before = self.nodes.get(problem.node)
            shapes: tuple[Any, ...] = ()
            self.nodes[problem.node] = NodePlan(
                problem.path,
                before.kind if before else "in_place",
                before.step if before else None,
                before.result if before else None,
                before.reads if before else (),
                finding=Finding(problem.path, "in place", shapes, None, problem.why, problem.hint),
                op=before.op if before else None,
            )

    def _is_gated_output(self, node: torch.fx.Node) -> bool:
        tracked = iter_tracked(self.tracked.get(node.name))
        return node.name not in self.behind and any(
            not self.rows[one.row].is_global for one in tracked
        )

    def _visit(self, node: torch.fx.Node) -> None:
        if reads_no_values(node):
            return
        source = node.args[0] if node.args else None
        if isinstance(source, torch.fx.Node) and source.name in self.tracked:
            several = self.tracked[source.name]
            pick = _pick(node)
            if pick is not None and (isinstance(several, tuple) or not facts(source).is_tensor):
                self._pick(node, several, pick, self.nodes[source.name].refill)
                return
        self.first_only = all(_pick(user) == 0 for user in node.users)
        op = op_view(node, self.traced.module, lambda n: n.name in self.tracked)
        try:
            step = step_of(op)
            if isinstance(step, steps.Refused):
                raise _Refusal(step.why, step.hint)
            sources = self._sources(op, step)
            if isinstance(step, steps.Constant) or sources == []:
                return  # of the image it takes a shape at most
            if sources is None:  # a finding further up leaves it open
                self._note(node, op, step, None)
                return
            outcome = self._outcome(step, op, sources)
            if isinstance(outcome.result, Tracked) and not facts(node).is_tensor:
                if not self.first_only:  # aten.adaptive_max_pool1d gives the places as well
                    raise _Refusal(
                        "it returns the places of the maxima, which depend on values",
                        "use the values alone",
                    )
                outcome.result = (outcome.result,) * len(op.output)
        except _Refusal as refusal:
            self._refused(node, op, refusal.why, refusal.hint)
            return
        except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
            self._refused(
                node,
                op,
                f"its parameters are not understood ({error})",
                "call it with plain numbers, or report it with the model's code",
            )
            return
        reads = tuple(
            (name, outcome.fill)
            for name, tracked in sources
            if outcome.fill is not None
            and (outcome.gated_rows is None or tracked.row in outcome.gated_rows)
            and self._may_gate(tracked)
        )
        renormalise = outcome.renormalise if reads else None
        self._note(
            node,
            op,
            step,
            outcome.result,
            reads=tuple(dict.fromkeys(reads)),
            refill=outcome.refill and bool(reads),  # an ungated maximum is of what there is
            renormalise=renormalise,
            renormalise_of=sources[0][1].row if renormalise else None,
        )

    def _note(
        self,
        node: torch.fx.Node,
        op: OpView,
        step: steps.Step | None,
        result: Tracked | tuple[Tracked, ...] | None,
        **decided: Any,
    ) -> None:
        self.tracked[node.name] = result
        if self._behind_a_finding(node):  # the walk goes on, but nothing is decided
            self.behind.add(node.name)
            result, decided = None, {"finding": decided.get("finding")}
        self.nodes[node.name] = NodePlan(op.path, op.kind, step, result, op=op, **decided)

    def _behind_a_finding(self, node: torch.fx.Node) -> bool:
        if self.ignore_findings:
            return False
        return node.name in self.refused or any(
            source.name in self.behind for source in node.all_input_nodes
        )

    def _pick(
        self,
        node: torch.fx.Node,
        several: Tracked | tuple[Tracked, ...] | None,
        index: int | slice,
        refill: bool,
    ) -> None:
        result = several[index] if isinstance(several, tuple) else None
        if several is None and (op := self.refused.get(str(node.args[0]))) is not None:
            result = self._in_place_of(op, facts(node).shape)
        self.tracked[node.name] = result
        if self._behind_a_finding(node):
            self.behind.add(node.name)
            result = None
        self.nodes[node.name] = NodePlan(
            facts(node).path, "getitem", None, result, refill=refill and index == 0
        )

    def _may_gate(self, tracked: Tracked) -> bool:
        if self.policy.input == "raw" and tracked.image_level:
            return False
        return not self.rows[tracked.row].is_global

    def _refused(self, node: torch.fx.Node, op: OpView, why: str, hint: str) -> None:
        shapes = tuple(item.shape for _, item in op.masked())
        finding = Finding(op.path, op.spelling, shapes, op.output, why, hint)
        result: Tracked | tuple[Tracked, ...] | None = None
        if facts(node).has_tensors:
            result = self._guess(op) if self.ignore_findings else self._in_place_of(op, op.output)
        self.refused[node.name] = op
        self._note(node, op, None, result, finding=finding)

    def _in_place_of(self, op: OpView, shape: Any) -> Tracked | None:
        """With what the walk goes on behind a finding, to meet the next in the same report.

        Of an output with the grid of an operand, cells are taken to stay: what is then refused is
        refused for a reason of its own. Of other outputs nothing is known, and nothing behind them
        is refused but for what it is.
        """
        for _, item in op.masked():
            tracked = self._tracked_of(item)
            if not isinstance(tracked, Tracked) or not shape or len(shape) != item.rank:
                continue
            full = (True, *self.rows[tracked.row].full[1:])
            if all(n == m for n, m, f in zip(shape, item.shape, full, strict=True) if f):
                return tracked
        return None

    def _guess(self, op: OpView) -> Tracked | tuple[Tracked, ...] | None:
        """What every hook-based tool assumes: same shape, same cells. Not proved."""
        sources = [
            (item, tracked)
            for _, item in op.masked()
            if isinstance(tracked := self._tracked_of(item), Tracked)
        ]
        if not sources:
            return None
        several = bool(op.output) and isinstance(op.output[0], tuple)
        shapes = op.output if several else (op.output,)
        if () in shapes:
            return None  # a single number for the whole batch
        results = []
        for shape in shapes:
            same = next((t for item, t in sources if item.shape == shape), None)
            first = sources[0][1].row
            axes = tuple(i for i, f in enumerate(self.rows[first].full) if f and i)
            row = same.row if same else self._anywhere(first, axes) if axes else first
            if same is None:
                row = self._rearranged(row, (0, *(None for _ in shape[1:])))
            results.append(Tracked(row))
        return tuple(results) if several else results[0]

    # ------------------------------------------------------------------------- operands

    def _tracked_of(self, item: TensorView) -> Tracked | tuple[Tracked, ...] | None:
        tracked = self.tracked[item.node]
        if isinstance(tracked, tuple) and item.item is not None:
            return tracked[item.item]
        return tracked

    def _sources(self, op: OpView, step: steps.Step) -> list[tuple[str, Tracked]] | None:
        """Masked operands with their activities; None where one is left open by a finding."""
        allowed = {"input", "other", "third", "dim"} if isinstance(step, steps.Join) else {"input"}
        if isinstance(step, steps.Reduce):
            allowed = {step.operand}
        found = []
        for name, item in op.masked():
            if name not in allowed and not isinstance(step, steps.Constant):
                if op.spelling.strip(".()").partition(".")[0] in _READ_THE_OTHER_S_SHAPE:
                    continue
                raise _Refusal(
                    f"its parameter {name!r} is computed from the image",
                    "ConvAD needs parameters that do not depend on the image",
                )
            tracked = self._tracked_of(item)
            if tracked is None:
                return None
            if isinstance(tracked, tuple):
                raise _Refusal("it takes a tuple of tensors", "index the tuple first")
            found.append((item.node, tracked))
        return found

    # -------------------------------------------------------------------------- activities

    def _intern(
        self,
        how: Derivation,
        of: tuple[int | None, ...],
        full: tuple[bool, ...],
        *,
        padded: bool = False,
    ) -> int:
        key = (how.key, of, full, padded)
        if key not in self.interned:
            self.interned[key] = len(self.rows)
            self.rows.append(Activity(full, how, of, padded))
        return self.interned[key]

    def _outcome(
        self, step: steps.Step, op: OpView, sources: list[tuple[str, Tracked]]
    ) -> _Outcome:
        source = sources[0][1]
        match step:
            case steps.SameCell():
                return _Outcome(source)
            case steps.Join():
                return self._join(step, op, sources)
            case steps.Window():
                return self._window(step, op, source)
            case steps.AdaptivePool():
                return self._adaptive_pool(step, op, source)
            case steps.Resize():
                return self._resize(step, op, source)
            case steps.Statistic():
                return self._statistic(step, source)
            case steps.Reduce():
                return self._reduce(step, source)
            case steps.Concat():
                return self._concat(step, op)
            case steps.Pieces():
                return _Outcome(tuple(self._take(take, op, source) for take in step.takes))
            case steps.Take():
                return _Outcome(self._take(step, op, source))
            case _:
                return _Outcome(Tracked(self._relabelled(step, op, source.row), source.image_level))

    def _relabelled(self, step: steps.Step, op: OpView, row: int) -> int:
        full = self.rows[row].full
        match step:
            case steps.Reshape(blocks):
                return self._reshaped(blocks, op, row)
            case steps.Rearrange(axes):
                return self._rearranged(row, axes)
            case steps.Expand(repeated):
                if any(full[axis] for axis in repeated):
                    raise _Refusal(
                        "it repeats a position along an axis, so a cell appears at several places",
                        "use interpolate(mode='nearest')",
                    )
                return row
            case steps.Flip(axes):
                flipped = tuple(axis for axis in axes if full[axis])
                self._keep_batch(0 not in axes)
                how = Derivation("flip", (("dims", flipped),))
                return self._moved(how, row, full) if flipped else row
            case steps.Pad():
                return self._padded(step, op, row)
            case steps.PixelShuffle():
                return self._pixel_shuffled(step, op, row)
            case steps.ChannelShuffle(groups):
                how = Derivation("channel_shuffle", (("groups", groups),))
                return self._moved(how, row, full) if full[1] else row
        raise TypeError(f"no step {type(step).__name__}")

    def _moved(self, how: Derivation, row: int, full: tuple[bool, ...]) -> int:
        """A relabelling: what did not exist still does not."""
        return self._intern(how, (row,), full, padded=self.rows[row].padded)

    @staticmethod
    def _keep_batch(kept: bool) -> None:
        if not kept:
            raise _Refusal(
                "it moves or cuts the batch axis, so images (and masks) would mix",
                "keep axis 0 for the batch",
            )

    # -------------------------------------------------------------------------- relabelling

    def _rearranged(self, row: int, axes: tuple[int | None, ...]) -> int:
        """Composed with the rearrangement that made the row, so that there and back is no step."""
        self._keep_batch(axes[0] == 0)
        how = self.rows[row].how
        if how is not None and how.function == "rearrange":
            before, base = dict(how.options)["axes"], self.rows[row].of[0]
            assert base is not None
            return self._rearranged(base, tuple(None if a is None else before[a] for a in axes))
        full = self.rows[row].full
        # along an axis that is not full one cell is as good as a new axis
        axes = (0, *(a if a is not None and full[a] else None for a in axes[1:]))
        here = tuple(a if a == 0 or wide else None for a, wide in enumerate(full))
        if axes == here:
            return row
        how = Derivation("rearrange", (("axes", axes),))
        return self._moved(how, row, tuple(a is not None and full[a] for a in axes))

    def _reshaped(self, blocks: tuple[Any, ...], op: OpView, row: int) -> int:
        full, before, after = self.rows[row].full, op.input.shape, op.output
        self._keep_batch(blocks[0].inputs == (0,) == blocks[0].outputs)
        wide = [False] * len(after)
        axes: list[int | None] = [0] + [None] * (len(after) - 1)
        spread: list[int] = []
        for block in blocks[1:]:
            positions = [i for i in block.inputs if full[i]]
            if not positions:
                continue
            many_in = [i for i in block.inputs if before[i] > 1 or full[i]]
            many_out = [j for j in block.outputs if after[j] > 1]
            if len(many_in) > 1 and len(many_out) > 1:
                raise _Refusal(
                    "it merges axes of positions with others and cuts them anew, so that no output"
                    " axis is an axis of the image",
                    "permute first, and reshape whole axes",
                )
            outs = block.outputs if len(block.inputs) == 1 else many_out or block.outputs[:1]
            for j in outs:
                wide[j] = True
            if len(many_in) == 1 and len(outs) == 1:
                axes[outs[0]] = positions[0]
            else:
                spread += block.inputs
        if not spread:
            return self._rearranged(row, tuple(axes))
        how = Derivation(
            "reshaped",
            (("spread", tuple(spread)), ("full", tuple(wide))),
            (op.input.node, op.node),
            (before[1:], after[1:]),
        )
        return self._moved(how, row, tuple(wide))

    def _take(self, step: steps.Take, op: OpView, source: Tracked) -> Tracked:
        full = self.rows[source.row].full
        axis, index, result = 0, list[Any](), list[bool]()
        places: tuple[int, TensorView] | None = None
        self._keep_batch(step.index[0] == slice(None))
        for item in step.index:
            if isinstance(item, TensorView):  # a list in the graph: taken when all else is
                if full[axis]:
                    places = (len(result), item)
                item = slice(None)
            if item is None:
                index.append(None)
                result.append(False)
                continue
            if isinstance(item, int):
                index.append(item if full[axis] else 0)
            else:
                index.append(item if full[axis] else slice(None))
                result.append(full[axis])
            if full[axis] and item != slice(None) and op.sized:
                self._bind_to_size(op)
            axis += 1
        row = source.row
        if any(item != slice(None) for item in index):
            how = Derivation("take", (("index", tuple(index)),))
            row = self._moved(how, row, tuple(result))
        if places is not None:
            at, item = places
            how = Derivation("index_activity", (("axis", at),), (item.node,), (item.node,))
            row = self._moved(how, row, tuple(result))
        return Tracked(row, source.image_level)

    def _padded(self, step: steps.Pad, op: OpView, row: int) -> int:
        full = self.rows[row].full
        self._keep_batch(step.padding[0] == (0, 0))
        padding = tuple(
            pair if wide else (0, 0) for pair, wide in zip(step.padding, full, strict=True)
        )
        first = next((i for i, pair in enumerate(padding) if pair != (0, 0)), None)
        if first is None:
            return row
        if op.sized:
            self._bind_to_size(op)
        adds = step.mode == "constant" and any(lo > 0 or hi > 0 for lo, hi in padding)
        options = (("padding", padding[first:]), ("mode", step.mode))
        return self._intern(
            Derivation("pad_activity", options),
            (row,),
            full,
            padded=adds or self.rows[row].padded,
        )

    def _pixel_shuffled(self, step: steps.PixelShuffle, op: OpView, row: int) -> int:
        full = self.rows[row].full
        if not any(full[1:]):
            return row
        name = "pixel_unshuffle" if step.down else "pixel_shuffle"
        if not step.down and not full[1]:
            axes = tuple(axis for axis in (2, 3) if full[axis])
            how = Derivation("upsampled", (("factor", step.factor), ("axes", axes)))
            return self._moved(how, row, full)
        spread = self._moved(
            Derivation("spread_as", (), (op.input.node,), (op.input.shape[1:],)),
            row,
            (False, True, True, True),
        )
        how = Derivation(name, (("factor", step.factor),))
        return self._moved(how, spread, (False, True, True, True))

    def _concat(self, step: steps.Concat, op: OpView) -> _Outcome:
        rows: list[int | None] = []
        levels, names, sizes = [], [], []
        for item in op.input:
            tracked = self._tracked_of(item) if item.masked else None
            names.append(None if step.new else (item.node, item.item))
            sizes.append(item.shape[1:])
            if tracked is None:
                rows.append(None)
                continue
            assert isinstance(tracked, Tracked)
            row = tracked.row
            if step.new:
                axes: list[int | None] = list(range(item.rank))
                axes.insert(step.axis, None)
                row = self._rearranged(row, tuple(axes))
            rows.append(row)
            levels.append(tracked.image_level)
        self._keep_batch(step.axis != 0)
        given = [row for row in rows if row is not None]
        level = all(levels)
        first = self.rows[given[0]]
        if len(given) == len(rows) and len(set(given)) == 1 and not first.full[step.axis]:
            return _Outcome(Tracked(given[0], level))
        full = [any(column) for column in zip(*(self.rows[r].full for r in given), strict=True)]
        full[step.axis] = True
        how = Derivation("concatenated", (("axis", step.axis),), tuple(names), tuple(sizes))
        padded = None in rows or any(self.rows[r].padded for r in given)
        return _Outcome(Tracked(self._intern(how, tuple(rows), tuple(full), padded=padded), level))

    # -------------------------------------------------------------------------------- joins

    def _join(self, step: steps.Join, op: OpView, sources: list[tuple[str, Tracked]]) -> _Outcome:
        ranks = {item.rank for _, item in op.masked()}
        if len(ranks) > 1 or len(op.output) not in ranks:
            raise _Refusal(
                "its operands have different ranks, so their axes do not belong together",
                "reshape the smaller one to (N, C, 1, 1)",
            )
        if len(sources) == 1:
            (_, item), tracked = next(op.masked()), sources[0][1]
            full = self.rows[tracked.row].full
            if any(f and n != m for f, n, m in zip(full, item.shape, op.output, strict=True)):
                raise _Refusal("it repeats a position along an axis", "use interpolate")
            return _Outcome(tracked)
        (_, a), (_, b) = sources
        level = a.image_level and b.image_level
        if a.row == b.row:
            return _Outcome(Tracked(a.row, level))
        if self.rows[a.row].is_global != self.rows[b.row].is_global:
            grid = b if self.rows[a.row].is_global else a
            return _Outcome(Tracked(grid.row, level))
        both_global = self.rows[a.row].is_global
        first, second = sorted((a.row, b.row))
        full = tuple(
            x or y for x, y in zip(self.rows[a.row].full, self.rows[b.row].full, strict=True)
        )
        padded = self.rows[a.row].padded and self.rows[b.row].padded
        if step.kind == "product":
            how = Derivation("intersection")
        else:
            how = Derivation("sum_activity", (("tau", 0.0 if both_global else self.policy.tau),))
        row = self._intern(how, (first, second), full, padded=padded)
        fill = {"product": None, "sum": 0.0, "max": -math.inf, "min": math.inf}[step.kind]
        return _Outcome(Tracked(row, level), fill=None if both_global else fill)

    # ------------------------------------------------------------------------------ windows

    def _strict(self, source: Tracked) -> bool:
        return self.policy.input == "strict" and source.image_level

    def _window(self, step: steps.Window, op: OpView, source: Tracked) -> _Outcome:
        row = self.rows[source.row]
        dims = len(step.kernel)
        grid, inputs = row.full[2:], op.input.shape[1]
        sizes = op.input.shape[2:]
        combines = row.full[1] and step.groups > 0 and not (step.groups == inputs == step.channels)
        if not any(grid) and not combines:
            return _Outcome(Tracked(source.row))
        if self._covers_grid(step, sizes):
            if "kernel_size" not in op.sized:
                self._bind_to_size(op)
            return self._reduce(
                steps.Reduce(tuple(range(2, 2 + dims)), keepdim=True, reads=step.reads), source
            )
        if op.sized & {"kernel_size", "stride", "padding", "dilation"}:
            self._bind_to_size(op)
        fill: float | None = -math.inf if step.reads == "max" else 0.0
        if step.one_cell and not combines:
            fill = None
            if set(step.stride) == {1}:
                return _Outcome(Tracked(source.row))
        strict, base = self._strict(source), source.row
        if step.keeps_grid and self.policy.attribution == "positional" and not strict:
            geometry = self._geometry(step, grid, cut=True)
            if not combines:
                return self._renormalised_window(step, grid, _Outcome(Tracked(base), fill))
        else:
            geometry = self._geometry(step, grid)
            if not step.transposed:
                geometry, base = self._fold_padding(geometry, base, step)
        options: tuple[tuple[str, Any], ...] = (*geometry, ("tau", self.policy.tau))
        if strict:
            options += (("whole", True),)
        if step.ceil_mode:
            options += (("ceil_mode", True),)
        if step.mode != "constant":
            options += (("mode", step.mode),)
        if combines:
            options += (("groups", step.groups), ("channels", step.channels))
        how = Derivation("transposed_activity" if step.transposed else "window_activity", options)
        channel = row.full[1] if not combines else step.groups > 1
        result = self._intern(how, (base,), (False, channel, *grid))
        return self._renormalised_window(step, grid, _Outcome(Tracked(result), fill))

    @staticmethod
    def _covers_grid(step: steps.Window, sizes: tuple[int, ...]) -> bool:
        """Pooling without padding over everything there is."""
        return (
            step.groups == 0
            and not step.transposed
            and step.kernel == sizes
            and set(step.dilation) == {1}
            and all(pair == (0, 0) for pair in step.padding)
        )

    @staticmethod
    def _geometry(
        step: steps.Window, grid: tuple[bool, ...], *, cut: bool = False
    ) -> tuple[tuple[str, Any], ...]:
        """The window where activity varies; elsewhere (and with ``cut``) a single cell."""
        keep = [full and not cut for full in grid]

        def where(values: tuple[Any, ...], otherwise: Any) -> tuple[Any, ...]:
            return tuple(v if k else otherwise for v, k in zip(values, keep, strict=True))

        return (
            ("kernel", where(step.kernel, 1)),
            ("stride", where(step.stride, 1)),
            ("padding", where(step.padding, (0, 0))),
            ("dilation", where(step.dilation, 1)),
        )

    def _fold_padding(
        self, geometry: tuple[tuple[str, Any], ...], row: int, step: steps.Window
    ) -> tuple[tuple[tuple[str, Any], ...], int]:
        """Explicit padding right before a window is padding: neither exists for Phi."""
        how, of = self.rows[row].how, self.rows[row].of
        if how is None or how.function != "pad_activity" or step.ceil_mode:
            return geometry, row
        explicit = dict(how.options)
        source = of[0]
        if (
            source is None
            or self.rows[source].padded
            or explicit["mode"] != "constant"
            or step.mode != "constant"
            or steps.SAME in step.padding
            or len(explicit["padding"]) > len(step.kernel)
            or any(n < 0 for pair in explicit["padding"] for n in pair)  # cut off is not unread
        ):
            return geometry, row
        missing = len(step.kernel) - len(explicit["padding"])
        pairs = ((0, 0),) * missing + explicit["padding"]
        options = dict(geometry)
        options["padding"] = tuple(
            (a + c, b + d) for (a, b), (c, d) in zip(options["padding"], pairs, strict=True)
        )
        return tuple(options.items()), source

    def _renormalised_window(
        self, step: steps.Window, grid: tuple[bool, ...], outcome: _Outcome
    ) -> _Outcome:
        if step.reads == "mean" and self.policy.pool == "renormalize":
            options = self._geometry(step, grid)
            if step.ceil_mode:
                options += (("ceil_mode", True),)
            outcome.renormalise = Derivation("window_renormalise", options)
        return outcome

    def _adaptive_pool(self, step: steps.AdaptivePool, op: OpView, source: Tracked) -> _Outcome:
        full = self.rows[source.row].full
        sizes = dict(enumerate(step.output_size, start=op.input.rank - len(step.output_size)))
        axes = tuple(axis for axis, n in sizes.items() if full[axis] and n is not None)
        if not axes:
            return _Outcome(Tracked(source.row))
        reduced = tuple(axis for axis in axes if sizes[axis] == 1)
        if reduced == axes:
            return self._reduce(steps.Reduce(axes, keepdim=True, reads=step.reads), source)
        several = isinstance(op.output[0], tuple)  # aten's maximum gives the places as well
        how = Derivation(
            "adaptive_activity",
            (("axes", axes), ("tau", self.policy.tau))
            + ((("whole", True),) if self._strict(source) else ()),
            ((op.node, 0) if several else op.node,),
            (op.output[0][1:] if several else op.output[1:],),
        )
        left = tuple(f and axis not in reduced for axis, f in enumerate(full))
        outcome = _Outcome(
            Tracked(self._intern(how, (source.row,), left)),
            fill=-math.inf if step.reads == "max" else 0.0,
        )
        if step.reads == "mean" and self.policy.pool == "renormalize":
            outcome.renormalise = Derivation("adaptive_renormalise", (("axes", axes),))
        return outcome

    def _resize(self, step: steps.Resize, op: OpView, source: Tracked) -> _Outcome:
        full = self.rows[source.row].full
        axes = tuple(axis for axis in range(2, len(full)) if full[axis])
        if not axes:
            return _Outcome(Tracked(source.row))
        options: tuple[tuple[str, Any], ...] = (
            ("mode", step.mode),
            ("axes", axes),
            ("tau", self.policy.tau),
            ("align_corners", step.align_corners),
            ("scale_factor", step.scale_factor),
        )
        if step.antialias:
            options += (("antialias", True),)
        if self._strict(source):
            options += (("whole", True),)
        how = Derivation(
            "resize_activity",
            options,
            (op.node, op.input.node),
            (op.output[1:], op.input.shape[1:]),
        )
        return _Outcome(Tracked(self._intern(how, (source.row,), full)), fill=0.0)

    # ------------------------------------------------------------------ statistics, reductions

    def _statistic(self, step: steps.Statistic, source: Tracked) -> _Outcome:
        self._keep_batch(0 not in step.axes)
        full = self.rows[source.row].full
        if not any(full[axis] for axis in step.axes):
            return _Outcome(source)
        if step.refuse_full:
            raise _Refusal(step.refuse_full, "ConvAD is defined for convolutional networks")
        return _Outcome(Tracked(source.row), fill=0.0)

    def _anywhere(self, row: int, axes: tuple[int, ...]) -> int:
        full = tuple(f and axis not in axes for axis, f in enumerate(self.rows[row].full))
        return self._intern(Derivation("anywhere", (("axes", axes),)), (row,), full)

    def _reduce(self, step: steps.Reduce, source: Tracked) -> _Outcome:
        row = self.rows[source.row]
        self._keep_batch(0 not in step.axes)
        axes = tuple(axis for axis in step.axes if row.full[axis])
        kept = step.order or tuple(
            a for a in range(len(row.full)) if step.keepdim or a not in step.axes
        )

        def finished(index: int, image_level: bool) -> Tracked | tuple[Tracked, ...]:
            tracked = Tracked(self._rearranged(index, kept), image_level)
            return (tracked,) * step.results if step.results else tracked

        if not axes:
            return _Outcome(finished(source.row, source.image_level))
        if step.refuse_full and not self.first_only:
            raise _Refusal(step.refuse_full, "reduce over channels, or use amax")
        left = tuple(f and axis not in axes for axis, f in enumerate(row.full))
        if any(left[1:]):
            how = Derivation("share_activity", (("axes", axes), ("tau", self.policy.tau)))
            index = self._intern(how, (source.row,), left)
        else:
            index = self._anywhere(source.row, axes)
        outcome = _Outcome(
            finished(index, False),
            fill={"max": -math.inf, "min": math.inf}.get(step.reads, 0.0),
            refill=step.reads in ("max", "min") and not any(left[1:]),
        )
        if step.reads == "mean" and self.policy.pool == "renormalize":
            outcome.renormalise = Derivation("mean_renormalise", (("axes", axes), ("kept", kept)))
        return outcome

    def _bind_to_size(self, op: OpView) -> None:
        self.size_bound = self.size_bound or op.path


def _pick(node: torch.fx.Node) -> int | slice | None:
    """Which tensors of a tuple this node takes: ``[0]``, ``[::-1]``, ``.values``, ``.indices``."""
    if node.target is operator.getitem and isinstance(node.args[1], int | slice):
        return node.args[1]
    if node.target is getattr and node.args[1] in ("values", "indices"):
        return ("values", "indices").index(str(node.args[1]))
    return None
