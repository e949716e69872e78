"""What an operation does to the activity: small frozen values that rules return.

A step says *what kind* of combining or moving an operation does, in terms of axes and windows. It
knows neither the graph nor the policy; the functions in `transfer` decide what follows for the
activities at hand.

A step that combines elements has an ``identity``: what an inactive element reads as, so that it
changes nothing (0 in a sum, minus infinity in a maximum); None: it is read as it is. A step that
relabels elements has an `AxisMap`, see `axis_map_of`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from convad_fx.compiler.analysis.axis_map import AxisMap, Block, Shape

#: (before, after) for each axis. None is TensorFlow's "SAME": as much as gives ceil(size / stride)
#: elements, the odd one at the end, computed from the input size.
Pairs = tuple[tuple[int, int] | None, ...]
SAME = None

#: How elements are combined -> the element that changes nothing there.
IDENTITIES: dict[str, float | None] = {
    "sum": 0.0,
    "mean": 0.0,
    "max": -math.inf,
    "min": math.inf,
    "product": None,  # both must be active for the result to be
}


class Combines:
    """A step with a field ``reads`` that says how it combines elements."""

    __slots__ = ()
    reads: str

    @property
    def identity(self) -> float | None:
        """What an inactive element reads as."""
        return IDENTITIES[self.reads]


@dataclass(frozen=True, slots=True)
class SameCell:
    """Every output element reads its own input element and nothing else that an image reaches."""


@dataclass(frozen=True, slots=True)
class Constant:
    """The result does not depend on the image's values, whatever it is made from (zeros_like)."""


@dataclass(frozen=True, slots=True)
class Join(Combines):
    """Element by element over two operands: "sum", "product", "max" or "min"."""

    reads: str


@dataclass(frozen=True, slots=True)
class Window(Combines):
    """A window slides over the grid.

    Attributes:
        kernel, stride, dilation: one number per grid axis.
        padding: (before, after) per grid axis.
        groups: channel groups it combines (convolution), or 0: each channel for itself (pooling).
        channels: output channels.
        reads: "sum", "mean" or "max": how it combines elements.
        mode: "constant", or the padding that copies elements.
        transposed: a transposed convolution (padding as that operation's own parameters mean it).

    Raises:
        ValueError: kernel, stride, padding and dilation are not for the same number of axes.
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

    def __post_init__(self) -> None:
        if not len(self.kernel) == len(self.stride) == len(self.padding) == len(self.dilation):
            raise ValueError("kernel, stride, padding and dilation are for different ranks")

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
        """It reads a single position and no padding."""
        return (
            not self.transposed
            and math.prod(self.kernel) == 1
            and all(pair in (SAME, (0, 0)) for pair in self.padding)
        )

    def covers(self, grid: tuple[int, ...]) -> bool:
        """Pooling without padding over the whole grid."""
        return (
            self.groups == 0
            and not self.transposed
            and self.kernel == grid
            and set(self.dilation) == {1}
            and all(pair == (0, 0) for pair in self.padding)
        )


@dataclass(frozen=True, slots=True)
class AdaptivePool(Combines):
    """Pooling to a grid of given size; None keeps an axis. ``reads`` as in `Window`."""

    output_size: tuple[int | None, ...]
    reads: str


@dataclass(frozen=True, slots=True)
class Resize:
    """Interpolation to another grid."""

    identity: ClassVar[float] = 0.0

    mode: str
    align_corners: bool | None = None
    scale_factor: tuple[float | None, ...] | None = None
    antialias: bool = False


@dataclass(frozen=True, slots=True)
class Statistic:
    """Elements are normalised by numbers computed over these axes; shapes stay.

    ``refuse_full``: why it must not run over axes along which activity differs, or "".
    """

    identity: ClassVar[float] = 0.0

    axes: tuple[int, ...]
    refuse_full: str = ""


@dataclass(frozen=True, slots=True)
class Reduce(Combines):
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
    """Elements in the same row-major order under other axes."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Rearrange:
    """Axes reordered; None is a new axis, an axis not named is dropped (it has size 1)."""

    axes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Expand:
    """Axes of size 1 repeated."""

    repeated: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Take:
    """Indexing: one slice, integer or list of indices per input axis (None: a new axis).

    A list is a tuple of integers, or the `TensorView` of a constant of rank 1; at most one of them.
    """

    index: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Tensors that are each a `Take` of the same input."""

    takes: tuple[Take, ...]


@dataclass(frozen=True, slots=True)
class Flip:
    """Axes reversed."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pad:
    """Elements added (or, negative, removed) at the ends of axes: (before, after) for every axis.

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


#: Steps that only move elements.
Relabelling = Reshape | Rearrange | Expand | Take | Flip | PixelShuffle | ChannelShuffle


def axis_map_of(step: Relabelling, before: Shape, after: Shape) -> AxisMap:
    """What a relabelling does to axes, for the shape of its operand and of its result."""
    match step:
        case Reshape(blocks):
            return AxisMap.reshaped(blocks, before, after)
        case Rearrange(axes):
            return AxisMap.reordered(before, axes)
        case Expand(repeated):
            return AxisMap.changed(before, dict.fromkeys(repeated, "repeat"), after)
        case Take(index):
            return AxisMap.taken(before, index)
        case Flip(axes):
            return AxisMap.changed(before, dict.fromkeys(axes, "flip"))
        case PixelShuffle(factor, down):
            return AxisMap.pixel_shuffled(before, factor, down=down)
        case ChannelShuffle(groups):
            return AxisMap.channel_shuffled(before, groups)


Step = (
    SameCell
    | Constant
    | Join
    | Window
    | AdaptivePool
    | Resize
    | Statistic
    | Reduce
    | Relabelling
    | Pieces
    | Pad
    | Concat
    | Refused
)
