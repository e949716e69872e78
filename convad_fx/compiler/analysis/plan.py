"""The plan: what is decided for every node, as frozen values that can be printed and compared.

Activities are interned: two that are the same function of the mask by construction are one row, and
"the same activity" is ``==`` on integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.axis_map import BATCH_FIRST, BatchAxis
from convad_fx.compiler.capture.node_facts import BATCH
from convad_fx.compiler.capture.op_schema import OpView


@dataclass(frozen=True, slots=True)
class Derivation:
    """A call of one of the functions in `kernels`, as a value.

    The arguments are the source activities, then the graph's ``tensors`` (by node name, with the
    place in it where the node gives several), then ``options``. What two derivations must share to
    be the same is their ``key``: not the tensors' names but their sizes.
    """

    function: str
    options: tuple[tuple[str, Any], ...] = ()
    tensors: tuple[str | tuple[str, int | None] | None, ...] = ()
    sizes: tuple[Any, ...] = ()

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two derivations the same."""
        return (self.function, _frozen(self.options), self.sizes)

    def __str__(self) -> str:
        shown = ", ".join(f"{k}={v}" for k, v in self.options if v not in (None, False, 0, 0.0, ()))
        return f"{self.function}({shown})"


@dataclass(frozen=True, slots=True)
class Activity:
    """A row of the plan: how an activity comes about.

    Attributes:
        full: for each axis, whether activity may differ along it within a sample; an axis that is
            not full and does not hold the batch is stored with size 1.
        how: None for the mask itself.
        of: rows it is derived from; None stands for a tensor that no image reaches.
        padded: it has elements that do not exist for Phi.
        batch: the axis of the batch; full if the batch is merged with axes that are.
    """

    full: tuple[bool, ...]
    how: Derivation | None
    of: tuple[int | None, ...]
    padded: bool = False
    batch: BatchAxis = BATCH_FIRST

    @property
    def is_global(self) -> bool:
        """No two elements of a sample can differ."""
        return not any(self.full)


@dataclass(frozen=True, slots=True)
class Tracked:
    """The activity of a tensor: a row, and whether it is still at image level (docs/meaning.md)."""

    row: int
    image_level: bool = False


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What is decided for one node.

    Attributes:
        result: its activity, one each for a tuple; None if unknown after a finding.
        reads: operand -> what its inactive elements read as, the step's identity.
        refill: an extremum over the whole grid: where nothing is active it gives 0.
        renormalise: multiply the result by this (``pool="renormalize"``), over ``renormalise_of``.
        finding: why Assumption 1 is not shown to hold here.
        op: the operation in normal form; None where it takes one of the tensors of a tuple.
    """

    path: str
    kind: str
    step: steps.Step | None
    result: Tracked | tuple[Tracked, ...] | None
    reads: tuple[tuple[str, float], ...] = ()
    refill: bool = False
    renormalise: Derivation | None = None
    renormalise_of: int | None = None
    finding: Finding | None = None
    op: OpView | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Why Assumption 1 is not shown to hold at a node, and what to do."""

    path: str
    op: str
    shapes_in: tuple[tuple[int, ...], ...]
    shape_out: Any
    why: str
    hint: str

    def __str__(self) -> str:
        ins = ", ".join(_show(shape) for shape in self.shapes_in)
        outs = _show(self.shape_out) if self.shape_out is not None else "no tensor"
        shapes = f", {ins} -> {outs}" if ins else ""
        return f"{self.path} ({self.op}{shapes}): {self.why}; {self.hint}"


def _show(shape: Any) -> str:
    if shape and isinstance(shape[0], tuple):
        return " and ".join(_show(s) for s in shape)
    if not shape:
        return "a number" if shape == () else "?"
    batch = "N" if shape[0] == BATCH else shape[0]
    return f"({', '.join(map(str, (batch, *shape[1:])))})"


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to the activity, for every node that the image reaches.

    Attributes:
        nodes: node name -> decision, in graph order.
        activities: rows that `Tracked.row` counts in; row 0 is the mask.
        outputs: names of returned nodes whose inactive elements are set to zero.
        size_bound: why the plan holds for the example's image size only, or "".
    """

    nodes: dict[str, NodePlan]
    activities: tuple[Activity, ...]
    outputs: tuple[str, ...]
    size_bound: str = ""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them, in graph order."""
        return tuple(plan.finding for plan in self.nodes.values() if plan.finding is not None)

    def moves_batch(self, node: NodePlan) -> bool:
        """A result of it has the batch elsewhere than on axis 0, or merged with other axes."""
        return any(not self.activities[t.row].batch.is_first for t in iter_tracked(node.result))

    def decided_rows(self) -> set[int]:
        """Rows that nodes have, and those they come from; not those assumed behind findings."""
        rows, queue = {0}, [t.row for p in self.nodes.values() for t in iter_tracked(p.result)]
        while queue:
            row = queue.pop()
            if row not in rows:
                rows.add(row)
                queue += [source for source in self.activities[row].of if source is not None]
        return rows

    def __str__(self) -> str:
        lines = [f"activity {i}: {_describe(row)}" for i, row in enumerate(self.activities)]
        width = max((len(p.path) for p in self.nodes.values()), default=0)
        for plan in self.nodes.values():
            result = plan.result
            rows = ", ".join(str(tracked.row) for tracked in iter_tracked(result)) or "?"
            reads = "  gated" if plan.reads else ""
            lines.append(f"{plan.path:{width}}  {plan.kind:<18} -> {rows}{reads}")
        return "\n".join(lines)


def _describe(row: Activity) -> str:
    axes = "".join("x" if full else "1" for full in row.full)
    if row.batch.is_first:
        axes = axes[1:]
    else:  # N: the batch alone; n: merged with other axes
        sign, at = "n" if row.batch.is_merged else "N", row.batch.axis
        axes = axes[:at] + sign + axes[at + 1 :]
    if row.how is None:
        return f"[{axes}] the mask"
    sources = ", ".join("none" if i is None else str(i) for i in row.of)
    return f"[{axes}] {row.how} of {sources}"


def _frozen(value: Any) -> Any:
    """Slices cannot be hashed before Python 3.12."""
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    if isinstance(value, tuple):
        return tuple(_frozen(item) for item in value)
    return value


def iter_tracked(result: Tracked | tuple[Tracked, ...] | None) -> Iterator[Tracked]:
    """The activities of a node, one for each tensor."""
    if result is not None:
        yield from result if isinstance(result, tuple) else (result,)
