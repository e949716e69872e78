"""A step, the activities of its operands and a policy, without a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from convad_fx import Policy
from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.axis_map import BATCH_FIRST, BatchAxis
from convad_fx.compiler.analysis.plan import Activity, Derivation, Tracked
from convad_fx.compiler.analysis.transfer import (
    ActivityTable,
    Context,
    Operand,
    Outcome,
    transfer,
)
from convad_fx.compiler.capture.op_schema import OpView, TensorView

SHAPE = (13, 8, 10, 12)


@dataclass
class Bench:
    """Row 0 is the mask of an image of rank 4; `add` makes others."""

    policy: Policy = field(default_factory=Policy)
    first_output_only: bool = False
    table: ActivityTable = field(default_factory=ActivityTable)

    def __post_init__(self) -> None:
        self.table.add_mask(4)

    def add(self, full: str, batch: BatchAxis = BATCH_FIRST, *, padded: bool = False) -> int:
        """A new row. ``full``: "x" for each axis along which activity differs, "." for others."""
        how = Derivation("given", (("number", len(self.table.rows)),))
        wide = tuple(mark == "x" for mark in full)
        return self.table.intern(how, (0,), wide, padded=padded, batch=batch)

    def run(
        self,
        step: steps.Step,
        *rows: int,
        shape: tuple[int, ...] = SHAPE,
        output: Any = None,
        sized: frozenset[str] = frozenset(),
        image_level: bool = False,
        constants: tuple[TensorView, ...] = (),
    ) -> Outcome:
        """Transfer through the step, for operands of one shape."""
        views = tuple(TensorView(shape, masked=True, node=f"z{row}") for row in rows)
        params = {"input": (*views, *constants) if isinstance(step, steps.Concat) else views[0]}
        op = OpView("kind", "path", "spelling", params, output or shape, "node", sized)
        operands = [
            Operand(view, Tracked(row, image_level)) for view, row in zip(views, rows, strict=True)
        ]
        return transfer(
            step, op, operands, Context(self.table, self.policy, self.first_output_only)
        )

    def result(self, step: steps.Step, *rows: int, **given: Any) -> Activity:
        """The activity of a step's only result."""
        tracked = self.run(step, *rows, **given).result
        assert isinstance(tracked, Tracked)
        return self.table[tracked.row]
