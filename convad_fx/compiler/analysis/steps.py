"""What an operation does to the activity: small frozen values that rules return.

A step says *what kind* of combining or moving an operation does, in terms of axes and windows. It
knows neither the graph nor the policy; `plan` decides what follows for the activity at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from convad_fx.compiler.analysis.axis_map import Block

#: (before, after) for each axis. None is TensorFlow's "SAME": as much as gives ceil(size / stride)
#: cells, the odd one at the end, computed from the size at hand.
Pairs = tuple[tuple[int, int] | None, ...]
SAME = None


@dataclass(frozen=True, slots=True)
class SameCell:
    """Every output cell reads its own input cell and nothing else that an image reaches."""


@dataclass(frozen=True, slots=True)
class Constant:
    """The result does not depend on the image's values, whatever it is made from (zeros_like)."""


@dataclass(frozen=True, slots=True)
class Join:
    """Cell by cell over two operands: "sum", "product", "max" or "min"."""

    kind: str


@dataclass(frozen=True, slots=True)
class Window:
    """A window slides over the grid.

    Attributes:
        kernel, stride, dilation: one number per grid axis.
        padding: (before, after) per grid axis.
        groups: channel groups it combines (convolution), or 0: each channel for itself (pooling).
        channels: output channels.
        reads: "sum", "mean" or "max": what it does with the cells.
        mode: "constant", or the padding that copies cells.
        transposed: a transposed convolution (padding as that operation's own parameters mean it).
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    groups: int = 0
    channels: int = 0
    reads: str = "sum"
    mode: str = "constant"
    ceil_mode: bool = False
    transposed: bool = False

    @property
    def keeps_grid(self) -> bool:
        """Stride 1 and as much padding as the kernel takes away, on every axis."""
        return not self.transposed and all(
            s == 1 and (pair is SAME or sum(pair) == d * (k - 1))
            for k, s, pair, d in zip(
                self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )

    @property
    def one_cell(self) -> bool:
        """It reads a single cell of the grid and no padding."""
        return (
            not self.transposed
            and math.prod(self.kernel) == 1
            and all(pair in (SAME, (0, 0)) for pair in self.padding)
        )


@dataclass(frozen=True, slots=True)
class AdaptivePool:
    """Pooling to a grid of given size; None keeps an axis. ``reads`` as in `Window`."""

    output_size: tuple[int | None, ...]
    reads: str


@dataclass(frozen=True, slots=True)
class Resize:
    """Interpolation to another grid."""

    mode: str
    align_corners: bool | None = None
    scale_factor: tuple[float | None, ...] | None = None
    antialias: bool = False


@dataclass(frozen=True, slots=True)
class Statistic:
    """Cells are normalised by numbers computed over these axes; shapes stay.

    ``refuse_full``: why it must not run over axes along which activity differs, or "".
    """

    axes: tuple[int, ...]
    refuse_full: str = ""


@dataclass(frozen=True, slots=True)
class Reduce:
    """These axes are combined into one value.

    Attributes:
        keepdim: they stay with size 1, or (a linear layer) as a new feature axis.
        reads: "sum", "mean", "max" or "min".
        results: how many tensors come back (``max`` along an axis also gives indices).
        order: for each axis of the result the axis it was, None for a new one; where keepdim does
            not say it.
        operand: which parameter is reduced.
        refuse_full: as in `Statistic`.
    """

    axes: tuple[int, ...]
    keepdim: bool
    reads: str = "sum"
    results: int = 0
    refuse_full: str = ""
    order: tuple[int | None, ...] | None = None
    operand: str = "input"


@dataclass(frozen=True, slots=True)
class Reshape:
    """Cells in the same row-major order under other axes."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Rearrange:
    """Axes reordered; None is a new axis, an axis not named is dropped (it has size 1)."""

    axes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Expand:
    """Axes of size 1 repeated; ``new`` axes in front."""

    repeated: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Take:
    """Indexing: one slice, integer or list of constant places per input axis (None: a new axis).

    A list is a tuple of integers, or the `TensorView` of a constant of rank 1; at most one of them.
    """

    index: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Several tensors, each a `Take` of the same input."""

    takes: tuple[Take, ...]


@dataclass(frozen=True, slots=True)
class Flip:
    """Axes reversed."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pad:
    """Cells added (or, negative, removed) at the ends of axes: (before, after) for every axis.

    ``value``: what they are, where the mode is "constant".
    """

    padding: tuple[tuple[int, int], ...]
    mode: str = "constant"
    value: float = 0.0

    @property
    def zeros(self) -> bool:
        """What it adds is zero."""
        return self.mode == "constant" and self.value == 0.0


@dataclass(frozen=True, slots=True)
class Concat:
    """Operands one after the other along an axis; ``new``: a new axis is made for it (stack)."""

    axis: int
    new: bool = False


@dataclass(frozen=True, slots=True)
class PixelShuffle:
    """Blocks of channels become blocks of positions, or (``down``) the reverse."""

    factor: int
    down: bool = False


@dataclass(frozen=True, slots=True)
class ChannelShuffle:
    """Channels change places."""

    groups: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Assumption 1 is not shown to hold: why, and what to do about it."""

    why: str
    hint: str


Step = (
    SameCell
    | Constant
    | Join
    | Window
    | AdaptivePool
    | Resize
    | Statistic
    | Reduce
    | Reshape
    | Rearrange
    | Expand
    | Take
    | Pieces
    | Flip
    | Pad
    | Concat
    | PixelShuffle
    | ChannelShuffle
    | Refused
)
