"""What transfer functions are given and return, and their table: one per class of step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from convad_fx.compiler.analysis.axis_map import BatchAxis
from convad_fx.compiler.analysis.plan import Activity, Derivation, Tracked
from convad_fx.compiler.capture.op_schema import OpView, TensorView
from convad_fx.compiler.policy import Policy


class Refusal(Exception):
    """A step does not fit the activity at hand; becomes a finding."""

    def __init__(self, why: str, hint: str):
        super().__init__(why)
        self.why, self.hint = why, hint


def mixes_images() -> Refusal:
    """For a step that combines, reorders or cuts the batch."""
    return Refusal(
        "it combines, slices or reorders the batch axis, which mixes images (and masks)",
        "keep axis 0 for the batch",
    )


@dataclass(slots=True)
class ActivityTable:
    """The rows of a plan as they grow: derivations that are equal share one row."""

    rows: list[Activity] = field(default_factory=list)
    _interned: dict[Any, int] = field(default_factory=dict)

    def __getitem__(self, row: int) -> Activity:
        return self.rows[row]

    def add_mask(self, rank: int) -> int:
        """The mask of an image of this rank: activity differs along its grid alone."""
        self.rows.append(Activity((False, False) + (True,) * (rank - 2), None, ()))
        return len(self.rows) - 1

    def intern(
        self,
        how: Derivation,
        of: tuple[int | None, ...],
        full: tuple[bool, ...],
        *,
        padded: bool = False,
        batch: BatchAxis | None = None,
    ) -> int:
        """The row of a derivation, new or known. ``batch``: by default as in the first source."""
        if batch is None:
            batch = next(self[row].batch for row in of if row is not None)
        key = (how.key, of, full, padded, batch)
        if key not in self._interned:
            self._interned[key] = len(self.rows)
            self.rows.append(Activity(full, how, of, padded, batch))
        return self._interned[key]

    def relabel(
        self, how: Derivation, row: int, full: tuple[bool, ...], batch: BatchAxis | None = None
    ) -> int:
        """As `intern`, for a step that only moves elements: which of them exist stays."""
        return self.intern(how, (row,), full, padded=self[row].padded, batch=batch)

    def anywhere(self, row: int, axes: tuple[int, ...]) -> int:
        """Active where any element along the axes is; they stay, with size 1."""
        full = tuple(f and axis not in axes for axis, f in enumerate(self[row].full))
        return self.intern(Derivation("anywhere", (("axes", axes),)), (row,), full)

    def rearrange(self, row: int, axes: tuple[int | None, ...]) -> int:
        """Axes reordered. Composed with the order that made the row, so that back is no step."""
        how, batch, full = self[row].how, self[row].batch, self[row].full
        if batch.axis not in axes:
            raise mixes_images()
        if how is not None and how.function == "rearrange":
            before, base = dict(how.options)["axes"], self[row].of[0]
            assert base is not None
            return self.rearrange(base, tuple(None if a is None else before[a] for a in axes))
        # an axis along which nothing differs is as good as a new one
        stored = tuple(wide or a == batch.axis for a, wide in enumerate(full))
        axes = tuple(a if a is not None and stored[a] else None for a in axes)
        if axes == tuple(a if kept else None for a, kept in enumerate(stored)):
            return row
        return self.relabel(
            Derivation("rearrange", (("axes", axes),)),
            row,
            tuple(a is not None and full[a] for a in axes),
            BatchAxis(axes.index(batch.axis), batch.outer, batch.inner),
        )


@dataclass(frozen=True, slots=True)
class Context:
    """What a transfer function may look at besides the step and its operands."""

    table: ActivityTable
    policy: Policy
    first_output_only: bool = False  # of the tensors that the operation gives, no other is used

    def reads_strictly(self, operand: Tracked) -> bool:
        """Active only where all elements read are (``input="strict"``)."""
        return self.policy.input == "strict" and operand.image_level


@dataclass(frozen=True, slots=True)
class Operand:
    """A parameter that depends on the image, and its activity."""

    view: TensorView
    tracked: Tracked

    @property
    def row(self) -> int:
        """Its activity, as a row of the table."""
        return self.tracked.row


Operands = Sequence[Operand]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step does to the activities at hand.

    Attributes:
        result: the activity of the result, one each for a tuple.
        identity: what inactive elements of the operands read as; None: they are read as they are.
        refill: an extremum over everything: where nothing is active it gives 0.
        renormalise: multiply the result by this (``pool="renormalize"``).
        size_bound: this holds for the example's image size only.
    """

    result: Tracked | tuple[Tracked, ...]
    identity: float | None = None
    refill: bool = False
    renormalise: Derivation | None = None
    size_bound: bool = False


@functools.singledispatch
def transfer(step: Any, op: OpView, operands: Operands, context: Context) -> Outcome:
    """What a step does to the activities of its operands.

    Args:
        step: what the operation's rule returned.
        op: the operation.
        operands: its parameters that depend on the image, in order; at least one.

    Raises:
        Refusal: Assumption 1 is not shown to hold.
        TypeError: no function is registered for the step's class.
    """
    raise TypeError(f"no transfer function for the step {type(step).__name__}")


def batch_first(activity: Activity) -> None:
    """Refuse an operation for which axis 0 is the batch (merged or not) where it is not."""
    if activity.batch.axis != 0:
        raise Refusal(
            "it needs the batch axis to be axis 0, and it was moved elsewhere",
            "move the batch back to axis 0 first",
        )
