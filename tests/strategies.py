"""Random networks, images, masks and policies for hypothesis.

A network is drawn as a *spec*, a tree of frozen dataclasses, because specs print and shrink well
and modules do not. `build(spec, seed)` makes the `nn.Module` of it, in evaluation mode, with
float32 weights that depend on the two alone:

    spec = Network(1, (8, 8), (Conv(2), Activation("relu")), LinearHead(3))
    model = build(spec, seed=0)

A block says nothing about the width it is given, so blocks can be dropped and reordered freely
while shrinking. A block that does not fit the grid it meets (`_fits`) is left out of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Spelling = Literal["module", "function", "method"]
PadMode = Literal["zeros", "reflect", "replicate", "circular"]


# --- Specs ----------------------------------------------------------------------------------------
# Tuples over the grid have three entries, of which a network of fewer axes uses the first ones.


@dataclass(frozen=True)
class Conv:
    width: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: Literal["same", "text", "valid", "half"] = "same"
    dilation: int = 1
    groups: Literal["one", "two", "each"] = "one"
    padding_mode: PadMode = "zeros"
    bias: bool = True
    spelling: Spelling = "module"


@dataclass(frozen=True)
class Transposed:
    width: int
    kernel: int = 2
    stride: int = 2
    padding: int = 0
    output_padding: int = 0
    groups: Literal["one", "two", "each"] = "one"
    spelling: Spelling = "module"


@dataclass(frozen=True)
class Pool:
    kind: Literal["max", "avg", "lp"]
    kernel: int = 2
    stride: int = 2
    padding: int = 0
    dilation: int = 1
    ceil_mode: bool = False
    count_include_pad: bool = True
    spelling: Spelling = "module"


@dataclass(frozen=True)
class AdaptivePool:
    kind: Literal["max", "avg"]
    size: tuple[int, int, int] = (2, 3, 2)
    spelling: Spelling = "module"


@dataclass(frozen=True)
class Norm:
    kind: Literal["batch", "group", "instance", "layer", "grid", "response"]
    spelling: Spelling = "module"


@dataclass(frozen=True)
class Activation:
    name: Literal[
        "relu", "sigmoid", "gelu", "hardswish", "leaky_relu", "silu", "elu", "prelu", "softplus"
    ]
    inplace: bool = False
    spelling: Spelling = "module"


@dataclass(frozen=True)
class Arithmetic:
    """Operations with constants, of which several move zero."""

    kind: Literal["affine", "clamp", "square", "buffer", "sqrt", "compare", "dropout", "identity"]


@dataclass(frozen=True)
class Pad:
    mode: Literal["constant", "reflect", "replicate", "circular"]
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    value: float = 0.0
    spelling: Spelling = "function"


@dataclass(frozen=True)
class Crop:
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    spelling: Literal["slice", "narrow", "pad"] = "slice"


@dataclass(frozen=True)
class Strided:
    """Every other cell of each axis, by slicing."""

    start: Literal[0, 1] = 0


@dataclass(frozen=True)
class Pick:
    """Channels, rows or columns in another order, some of them twice."""

    axis: Literal["channel", "first", "last"] = "last"
    spelling: Literal["list", "tensor", "index_select"] = "list"


@dataclass(frozen=True)
class Turned:
    """Halves of the channels, or all, the other way round; the pieces are handed on whole."""

    how: Literal["pieces", "back", "flip"] = "pieces"


@dataclass(frozen=True)
class Measured:
    """Every cell less a number that was computed over the channels, or over the grid."""

    kind: Literal["std", "var", "norm", "logsumexp"] = "norm"
    over: Literal["channels", "grid", "row"] = "channels"


@dataclass(frozen=True)
class Resize:
    mode: Literal["nearest", "linear"]
    up: bool = True
    align_corners: bool = False
    spelling: Literal["module", "size", "scale"] = "scale"


@dataclass(frozen=True)
class PixelShuffle:
    up: bool
    spelling: Literal["module", "function"] = "module"


@dataclass(frozen=True)
class Shuffle:
    spelling: Literal["view", "reshape", "function", "module"] = "view"


@dataclass(frozen=True)
class Residual:
    """`x + body(x)`; where the body changes the shape, the shortcut follows as `shortcut` says."""

    body: tuple[Block, ...]
    shortcut: Literal["conv", "pool", "free"] = "conv"
    join: Literal["add", "iadd", "method", "sub", "alpha", "max", "min", "mul", "div"] = "add"


@dataclass(frozen=True)
class Concat:
    """Branches joined along the channels, cut to the smallest grid; `dense` adds the input."""

    branches: tuple[tuple[Block, ...], ...]
    dense: bool = False
    constant: bool = False


@dataclass(frozen=True)
class SplitHalf:
    """Half of the channels goes through the body, as in ShuffleNet, and meets the rest again."""

    body: tuple[Block, ...]
    how: Literal["chunk", "split", "slice", "narrow", "unflatten"] = "chunk"
    joined: Literal["cat", "sum", "gate"] = "cat"


@dataclass(frozen=True)
class SqueezeExcite:
    pool: Literal["adaptive", "mean", "max"] = "adaptive"
    layers: Literal["conv", "linear"] = "conv"
    on: Literal["scale", "bias", "concat"] = "scale"


@dataclass(frozen=True)
class SpatialAttention:
    """CBAM's second half: mean and maximum over the channels weigh the positions."""

    kernel: Literal[1, 3] = 3


@dataclass(frozen=True)
class AxisAttention:
    """Means along one grid axis each, as in coordinate attention."""

    joined: Literal["mul", "add"] = "mul"


@dataclass(frozen=True)
class ConvNext:
    """Depthwise convolution, then channels-last LayerNorm, two linear layers and a layer scale."""

    kernel: Literal[3, 5] = 3
    scale: bool = True
    layers: Literal["linear", "matmul", "einsum"] = "linear"


@dataclass(frozen=True)
class Twice:
    """One and the same modules, applied twice in a row."""

    kernel: Literal[1, 3] = 3


@dataclass(frozen=True)
class SharedInPlace:
    """An in-place activation on a tensor that is read again afterwards."""

    how: Literal["module", "function", "method"] = "module"
    joined: Literal["add", "cat"] = "add"


Block: TypeAlias = (
    Conv
    | Transposed
    | Pool
    | AdaptivePool
    | Norm
    | Activation
    | Arithmetic
    | Pad
    | Crop
    | Strided
    | Pick
    | Turned
    | Measured
    | Resize
    | PixelShuffle
    | Shuffle
    | Residual
    | Concat
    | SplitHalf
    | SqueezeExcite
    | SpatialAttention
    | AxisAttention
    | ConvNext
    | Twice
    | SharedInPlace
)


@dataclass(frozen=True)
class LinearHead:
    """Global pooling and one or two linear layers; `multi` also pools what the last block reads."""

    classes: int = 3
    pool: Literal["adaptive", "function", "window", "mean", "sum", "max", "amax", "both"] = (
        "adaptive"
    )
    flat: Literal["flatten", "module", "view", "squeeze", "index"] = "flatten"
    hidden: int = 0
    multi: bool = False


@dataclass(frozen=True)
class FlattenHead:
    """No pooling, or pooling to a small grid, before the linear layers, as in AlexNet and VGG."""

    classes: int = 3
    grid: tuple[int, int, int] | None = None
    flat: Literal["flatten", "module", "view", "reshape"] = "flatten"
    hidden: int = 0


@dataclass(frozen=True)
class ConvHead:
    """A 1x1 convolution gives the classes, global pooling comes last, as in SqueezeNet."""

    classes: int = 3
    soft: bool = False


@dataclass(frozen=True)
class GridHead:
    """No head: the network answers for each position."""


Head: TypeAlias = LinearHead | FlattenHead | ConvHead | GridHead


@dataclass(frozen=True)
class Network:
    channels: int
    grid: tuple[int, ...]
    blocks: tuple[Block, ...]
    head: Head


# --- Building -------------------------------------------------------------------------------------

_CELLS = 1500  # of one channel: larger grids are not grown any further
_WIDTH = 24


def build(spec: Network, seed: int) -> nn.Module:
    """The network of `spec` in evaluation mode; weights depend on `spec` and `seed` alone."""
    # The layers' own initialisation is overwritten, so the random state of the caller stays as it
    # is.
    with torch.random.fork_rng(devices=[]):
        body, shape = _chain(spec.blocks, (spec.channels, *spec.grid), "fixed")
        model = _Network(spec, body, shape)
    _randomise(model, seed)
    return model.eval()


def _randomise(model: nn.Module, seed: int) -> None:
    """Weights that keep the scale; statistics and biases that leave no zero a zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(t: Tensor, mean: float, spread: float) -> Tensor:
        return mean + spread * torch.randn(t.shape, generator=generator)

    with torch.no_grad():
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                t.copy_(0.5 + torch.rand(t.shape, generator=generator))
            elif not t.is_floating_point():
                continue
            elif t.dim() > 1 and name.endswith("weight"):
                t.copy_(normal(t, 0.0, 1 / math.sqrt(max(1, t[0].numel()))))
            elif name.endswith("weight"):
                t.copy_(normal(t, 1.0, 0.3))
            else:
                t.copy_(normal(t, 0.2, 0.5))


Shape: TypeAlias = tuple[int, ...]  # channels and grid
# Who else sees the tensor a block is given: nobody, others who hold the same tensor, or holders of
# a tensor that it is a view of (as the caller holds the image). Nothing is changed in place in the
# last case.
Owner: TypeAlias = Literal["own", "shared", "fixed"]


def _chain(blocks: tuple[Block, ...], shape: Shape, owner: Owner) -> tuple[nn.Sequential, Shape]:
    made: list[nn.Module] = []
    for block in blocks:
        if not _fits(block, shape):
            continue
        module = _make(block, shape, owner).eval()
        owner = _owner_after(block, owner)
        made.append(module)
        with torch.no_grad():
            shape = tuple(module(torch.zeros(1, *shape)).shape[1:])
    return nn.Sequential(*made), shape


def _owner_after(block: Block, owner: Owner) -> Owner:
    match block:
        case Crop() | Strided() | Pick() | Shuffle() | Pad() | PixelShuffle():
            return "own" if owner == "own" else "fixed"
        case Arithmetic(kind="identity" | "dropout") | Activation(inplace=True):
            return owner
    return "own"


def _fits(block: Block, shape: Shape) -> bool:
    """Whether the operation is defined on the grid it meets, and does not make it too large."""
    channels, *grid = shape
    d, low, cells = len(grid), min(grid), math.prod(grid)
    match block:
        case Conv(kernel=kernel, padding=padding, dilation=dilation, padding_mode=mode):
            reach = [dilation * (k - 1) for k in kernel[:d]]
            pads = [_padding_of(padding, k, dilation) for k in kernel[:d]]
            limit = {"reflect": 1, "circular": 0}.get(mode, -9)
            return all(n + 2 * p > r for n, p, r in zip(grid, pads, reach, strict=True)) and all(
                p + limit <= n - 0 for n, p in zip(grid, pads, strict=True)
            )
        case Transposed():
            return cells * block.stride**d <= _CELLS and low > block.padding
        case Pool(kind="avg", kernel=kernel) if d == 3:
            return low >= kernel  # avg_pool3d does not count its padding
        case Pool(kind="lp", kernel=kernel):
            return low >= kernel
        case Pool(kernel=kernel, padding=padding, dilation=dilation):
            return low + 2 * padding > dilation * (kernel - 1)
        case Norm(kind="instance" | "grid"):
            return cells > 1
        case Norm(kind="group"):
            return cells * channels // _groups(channels) > 1
        case Pad(mode=mode, low=before, high=after):
            most = max(*before[:d], *after[:d])
            room = {"reflect": low - 1, "circular": low}.get(mode, most)
            return most <= room and cells <= _CELLS
        case Crop(low=before, high=after):
            return all(n > a + b for n, a, b in zip(grid, before, after, strict=False))
        case Strided():
            return low > block.start
        case Turned():
            return channels % 2 == 0
        case Measured(kind=kind, over=over):
            size = {"channels": channels, "grid": cells, "row": grid[-1]}[over]
            if kind == "norm" and over == "grid" and d > 2:
                return False  # torch.norm takes two axes at most for a matrix's norm
            return size > 1 or kind in ("norm", "logsumexp")
        case Resize(up=True):
            return cells * 2**d <= _CELLS
        case Resize(up=False):
            return low >= 2
        case PixelShuffle(up=True):
            return d == 2 and channels % 4 == 0 and cells * 4 <= _CELLS
        case PixelShuffle(up=False):
            return d == 2 and all(n % 2 == 0 for n in grid) and channels * 4 <= _WIDTH
        case Shuffle():
            return channels % 2 == 0
        case SplitHalf():
            return channels >= 2 and channels % 2 == 0
        case Concat() | SharedInPlace(joined="cat") | SqueezeExcite(on="concat"):
            return channels <= _WIDTH // 2
        case AxisAttention():
            return d >= 2
    return True


def _make(block: Block, shape: Shape, owner: Owner) -> nn.Module:
    channels, d = shape[0], len(shape) - 1
    inner: Owner = "fixed" if owner == "fixed" else "shared"
    match block:
        case Conv():
            return _Conv(block, channels, d)
        case Transposed():
            return _Transposed(block, channels, d)
        case Pool():
            return _Pool(block, d)
        case AdaptivePool():
            return _AdaptivePool(block, d)
        case Norm():
            return _Norm(block, shape)
        case Activation():
            return _Activation(block, channels, block.inplace and owner != "fixed")
        case Arithmetic():
            return _Arithmetic(block, channels, d)
        case Pad():
            return _Pad(block, d)
        case Crop():
            return _Crop(block, d)
        case Strided():
            return _Strided(block, d)
        case Pick():
            return _Pick(block, shape)
        case Turned():
            return _Turned(block)
        case Measured():
            return _Measured(block, d)
        case Resize():
            return _Resize(block, shape)
        case PixelShuffle():
            return _PixelShuffle(block)
        case Shuffle():
            return _Shuffle(block, d)
        case Residual():
            return _Residual(block, shape, inner)
        case Concat():
            return _Concat(block, shape)
        case SplitHalf():
            return _SplitHalf(block, shape)
        case SqueezeExcite():
            return _SqueezeExcite(block, channels, d)
        case SpatialAttention():
            return _SpatialAttention(block, d)
        case AxisAttention():
            return _AxisAttention(block, d)
        case ConvNext():
            return _ConvNext(block, channels, d)
        case Twice():
            return _Twice(block, channels, d)
        case SharedInPlace():
            return _SharedInPlace(block)


def _layer(name: str, d: int) -> Callable[..., nn.Module]:
    return getattr(nn, f"{name}{d}d")


def _function(name: str, d: int) -> Callable[..., Tensor]:
    return getattr(F, f"{name}{d}d")


def _groups(channels: int) -> int:
    return 2 if channels % 2 == 0 else 1


def _padding_of(padding: str, kernel: int, dilation: int) -> int:
    return {"valid": 0, "half": kernel // 2}.get(padding, dilation * (kernel - 1) // 2)


class _Conv(nn.Module):
    def __init__(self, s: Conv, channels: int, d: int) -> None:
        super().__init__()
        groups = {"one": 1, "two": _groups(channels), "each": channels}[s.groups]
        width = math.ceil(s.width / groups) * groups
        kernel, stride = s.kernel[:d], s.stride[:d]
        pads: Any = tuple(_padding_of(s.padding, k, s.dilation) for k in kernel)
        if s.padding in ("text", "valid") and max(stride) == 1:
            pads = "same" if s.padding == "text" else "valid"
        zeros = s.padding_mode == "zeros"
        self.functional = s.spelling != "module" and zeros
        self.function = _function("conv", d)
        self.conv = _layer("Conv", d)(
            channels,
            width,
            kernel,
            stride,
            pads,
            s.dilation,
            groups,
            s.bias,
            s.padding_mode,
        )

    def forward(self, x: Tensor) -> Tensor:
        c = self.conv
        if not self.functional:
            return c(x)
        return self.function(
            x, c.weight, c.bias, c.stride, padding=c.padding, dilation=c.dilation, groups=c.groups
        )


class _Transposed(nn.Module):
    def __init__(self, s: Transposed, channels: int, d: int) -> None:
        super().__init__()
        groups = {"one": 1, "two": _groups(channels), "each": channels}[s.groups]
        width = math.ceil(s.width / groups) * groups
        self.functional = s.spelling != "module"
        self.function = _function("conv_transpose", d)
        # An output padding has to be smaller than the stride.
        extra = min(s.output_padding, s.stride - 1)
        self.conv = _layer("ConvTranspose", d)(
            channels, width, s.kernel, s.stride, min(s.padding, s.kernel - 1), extra, groups
        )

    def forward(self, x: Tensor) -> Tensor:
        c = self.conv
        if not self.functional:
            return c(x)
        return self.function(
            x, c.weight, c.bias, c.stride, c.padding, c.output_padding, groups=c.groups
        )


class _Pool(nn.Module):
    def __init__(self, s: Pool, d: int) -> None:
        super().__init__()
        padding = min(s.padding, s.kernel // 2)
        options: dict[str, Any] = {"ceil_mode": s.ceil_mode, "padding": padding}
        if s.kind == "lp":
            del options["padding"]
        elif s.kind == "avg":
            options["count_include_pad"] = s.count_include_pad
        elif s.dilation > 1:
            options["dilation"] = s.dilation
        self.functional = s.spelling != "module"
        self.function = _function(f"{s.kind}_pool", d)
        self.args: tuple[int, ...] = (s.kernel, s.stride)
        if s.kind == "lp":
            self.args = (1, *self.args)
        kind = {"max": "MaxPool", "avg": "AvgPool", "lp": "LPPool"}[s.kind]
        self.options, self.pool = options, _layer(kind, d)(*self.args, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.args, **self.options) if self.functional else self.pool(x)


class _AdaptivePool(nn.Module):
    def __init__(self, s: AdaptivePool, d: int) -> None:
        super().__init__()
        self.size, self.functional = s.size[:d], s.spelling != "module"
        self.pool = _layer("AdaptiveMaxPool" if s.kind == "max" else "AdaptiveAvgPool", d)(
            self.size
        )
        self.function = _function(f"adaptive_{s.kind}_pool", d)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.size) if self.functional else self.pool(x)


class _Norm(nn.Module):
    def __init__(self, s: Norm, shape: Shape) -> None:
        super().__init__()
        channels, d = shape[0], len(shape) - 1
        self.kind, self.functional, self.d = s.kind, s.spelling != "module", d
        self.norm: Any = {
            "batch": lambda: _layer("BatchNorm", d)(channels),
            "group": lambda: nn.GroupNorm(_groups(channels), channels),
            "instance": lambda: _layer("InstanceNorm", d)(channels, affine=True),
            "layer": lambda: nn.LayerNorm(channels),
            "grid": lambda: nn.LayerNorm(shape[1:]),
            "response": lambda: nn.LocalResponseNorm(3),
        }[s.kind]()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "layer":
            last = (0, *range(2, self.d + 2), 1)
            first = (0, self.d + 1, *range(1, self.d + 1))
            return self._norm(x.permute(last)).permute(*first)
        return self._norm(x)

    def _norm(self, x: Tensor) -> Tensor:
        n = self.norm
        if not self.functional:
            return n(x)
        match self.kind:
            case "batch":
                return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)
            case "group":
                return F.group_norm(x, n.num_groups, n.weight, n.bias, n.eps)
            case "instance":
                return F.instance_norm(x, weight=n.weight, bias=n.bias)
            case "response":
                return F.local_response_norm(x, n.size)
            case _:
                return F.layer_norm(x, n.normalized_shape, n.weight, n.bias, n.eps)


class _Activation(nn.Module):
    def __init__(self, s: Activation, channels: int, inplace: bool) -> None:
        super().__init__()
        self.spelling = s.spelling
        kind: Any = {
            "relu": nn.ReLU,
            "sigmoid": nn.Sigmoid,
            "gelu": nn.GELU,
            "hardswish": nn.Hardswish,
            "leaky_relu": nn.LeakyReLU,
            "silu": nn.SiLU,
            "elu": nn.ELU,
            "prelu": nn.PReLU,
            "softplus": nn.Softplus,
        }[s.name]
        takes_inplace = s.name not in ("sigmoid", "gelu", "prelu", "softplus")
        self.options = {"inplace": True} if inplace and takes_inplace else {}
        self.module = kind(channels) if s.name == "prelu" else kind(**self.options)
        if s.name == "prelu" or (s.spelling == "method" and not hasattr(Tensor, s.name)):
            self.spelling = "module"
        self.function = torch.sigmoid if s.name == "sigmoid" else getattr(F, s.name)
        in_place_method = inplace and hasattr(Tensor, f"{s.name}_")
        self.method = f"{s.name}_" if in_place_method else s.name

    def forward(self, x: Tensor) -> Tensor:
        match self.spelling:
            case "function":
                return self.function(x, **self.options)
            case "method":
                return getattr(x, self.method)()
            case _:
                return self.module(x)


class _Arithmetic(nn.Module):
    def __init__(self, s: Arithmetic, channels: int, d: int) -> None:
        super().__init__()
        self.kind = s.kind
        self.register_buffer("shift", torch.zeros(channels, *(1,) * d))
        self.drop = nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "affine":
                return 1.5 - (x * 0.5 + 0.25) / 2
            case "clamp":
                return torch.clamp(x, -1.0, 1.0).add(0.5)
            case "square":
                return x.pow(2)
            case "buffer":
                return self.shift + x
            case "compare":
                return x * (x > -0.3)
            case "sqrt":
                return torch.sqrt(x.abs() + 0.1)
            case "dropout":
                return F.dropout(self.drop(x), 0.5, training=self.training)
            case _:
                return x.contiguous()


class _Pad(nn.Module):
    def __init__(self, s: Pad, d: int) -> None:
        super().__init__()
        sides = [n for low, high in zip(s.low[:d], s.high[:d], strict=True) for n in (high, low)][
            ::-1
        ]
        self.sides, self.mode, self.value = tuple(sides), s.mode, s.value
        kind = {
            "constant": "ZeroPad" if s.value == 0 else "ConstantPad",
            "reflect": "ReflectionPad",
            "replicate": "ReplicationPad",
            "circular": "CircularPad",
        }[s.mode]
        extra = () if kind != "ConstantPad" else (s.value,)
        self.pad = _layer(kind, d)(self.sides, *extra) if s.spelling == "module" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pad is not None:
            return self.pad(x)
        if self.mode == "constant":
            return F.pad(x, self.sides, value=self.value)
        return F.pad(x, self.sides, mode=self.mode)


class _Crop(nn.Module):
    def __init__(self, s: Crop, d: int) -> None:
        super().__init__()
        self.low, self.high, self.spelling = s.low[:d], s.high[:d], s.spelling

    def forward(self, x: Tensor) -> Tensor:
        match self.spelling:
            case "slice":
                cuts = zip(self.low, self.high, strict=True)
                return x[(slice(None), slice(None), *(slice(a, -b or None) for a, b in cuts))]
            case "narrow":
                for axis, (a, b) in enumerate(zip(self.low, self.high, strict=True), start=2):
                    x = x.narrow(axis, a, x.shape[axis] - a - b)
                return x
            case _:
                sides = [-n for a, b in zip(self.low, self.high, strict=True) for n in (b, a)][::-1]
                return F.pad(x, sides)


class _Strided(nn.Module):
    def __init__(self, s: Strided, d: int) -> None:
        super().__init__()
        self.index = (Ellipsis, *(slice(s.start, None, 2),) * d)

    def forward(self, x: Tensor) -> Tensor:
        return x[self.index]


class _Pick(nn.Module):
    def __init__(self, s: Pick, shape: Shape) -> None:
        super().__init__()
        self.axis = {"channel": 1, "first": 2, "last": len(shape)}[s.axis]
        n = shape[self.axis - 1]
        places = [(3 * k + 1) % n for k in range(n)]
        self.spelling, self.places = s.spelling, places
        self.register_buffer("index", torch.tensor(places))

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "index_select":
            return x.index_select(self.axis, self.index)
        before = (slice(None),) * self.axis
        return x[(*before, self.places if self.spelling == "list" else self.index)]


class _Turned(nn.Module):
    def __init__(self, s: Turned) -> None:
        super().__init__()
        self.how = s.how

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "flip":
                return x.flip(1, -1)
            case "back":
                return torch.cat(x.chunk(2, dim=1)[::-1], 1)
            case _:
                return torch.cat(torch.chunk(x, 2, 1), dim=1)


class _Measured(nn.Module):
    def __init__(self, s: Measured, d: int) -> None:
        super().__init__()
        self.kind = s.kind
        self.axes = {"channels": (1,), "grid": tuple(range(2, d + 2)), "row": (-1,)}[s.over]

    def forward(self, x: Tensor) -> Tensor:
        number = getattr(x, self.kind)(dim=self.axes, keepdim=True)
        return x - 0.5 * number


class _Resize(nn.Module):
    def __init__(self, s: Resize, shape: Shape) -> None:
        super().__init__()
        d = len(shape) - 1
        linear = ("linear", "bilinear", "trilinear")[d - 1]
        options: dict[str, Any] = {"mode": s.mode if s.mode == "nearest" else linear}
        # With a factor of 2, or of one half, the weights are far from the edge of being zero.
        if s.mode == "linear":
            options["align_corners"] = s.align_corners and s.up
        factor = 2.0 if s.up else 0.5
        if s.spelling == "size":
            where: dict[str, Any] = {"size": tuple(int(n * factor) for n in shape[1:])}
        else:
            where = {"scale_factor": factor}
        self.options = where | options
        self.module = nn.Upsample(**self.options) if s.spelling == "module" else None

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, **self.options) if self.module is None else self.module(x)


class _PixelShuffle(nn.Module):
    def __init__(self, s: PixelShuffle) -> None:
        super().__init__()
        self.functional = s.spelling == "function"
        self.function = F.pixel_shuffle if s.up else F.pixel_unshuffle
        self.module = (nn.PixelShuffle if s.up else nn.PixelUnshuffle)(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, 2) if self.functional else self.module(x)


class _Shuffle(nn.Module):
    def __init__(self, s: Shuffle, d: int) -> None:
        super().__init__()
        self.axes = range(2, 2 + d)
        self.spelling, self.module = s.spelling, nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        match self.spelling:
            case "module":
                return self.module(x)
            case "function":
                return F.channel_shuffle(x, 2)
        batch, channels, *grid = x.shape[0], x.shape[1], *(x.shape[k] for k in self.axes)
        if self.spelling == "view":
            x = x.contiguous().view(batch, 2, channels // 2, *grid)
            return torch.transpose(x, 1, 2).contiguous().view(batch, -1, *grid)
        x = x.reshape([batch, 2, channels // 2, *grid])
        return x.transpose(1, 2).reshape(batch, channels, *grid)


class _FreeShortcut(nn.Module):
    """A strided slice and a pad of the channels: the parameter-free shortcut of CIFAR ResNets."""

    def __init__(self, d: int, stride: int, extra: int) -> None:
        super().__init__()
        self.index = (slice(None), slice(None), *(slice(None, None, stride),) * d)
        self.sides = (0, 0) * d + (extra // 2, extra - extra // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[self.index], self.sides, "constant", 0)


class _CutTo(nn.Module):
    """The first cells of each axis, so that two branches of different grids can be joined."""

    def __init__(self, grid: Shape) -> None:
        super().__init__()
        self.index = (slice(None), slice(None), *(slice(0, n) for n in grid))

    def forward(self, x: Tensor) -> Tensor:
        return x[self.index]


class _Residual(nn.Module):
    def __init__(self, s: Residual, shape: Shape, owner: Owner) -> None:
        super().__init__()
        self.join = s.join
        self.body, out = _chain(s.body, shape, owner)
        self.shortcut = self._shortcut(s, shape, out).eval()
        with torch.no_grad():
            reached = self.shortcut(torch.zeros(1, *shape)).shape[2:]
        common = tuple(min(p, q) for p, q in zip(reached, out[1:], strict=True))
        self.cut_body = _CutTo(common) if common != out[1:] else nn.Identity()
        self.cut_shortcut = _CutTo(common) if common != tuple(reached) else nn.Identity()

    @staticmethod
    def _shortcut(s: Residual, shape: Shape, out: Shape) -> nn.Module:
        d = len(shape) - 1
        stride = max(1, round(max(shape[1:]) / max(out[1:])))
        if stride == 1 and out[0] == shape[0]:
            return nn.Identity()
        if s.shortcut == "free" and out[0] >= shape[0]:
            return _FreeShortcut(d, stride, out[0] - shape[0])
        if s.shortcut == "pool" and stride > 1:
            stride = min(stride, *shape[1:])  # of short axes a longer window would be refused
            pool = _layer("AvgPool", d)(stride, stride, ceil_mode=True, count_include_pad=False)
            return nn.Sequential(pool, _layer("Conv", d)(shape[0], out[0], 1, bias=False))
        conv = _layer("Conv", d)(shape[0], out[0], 1, stride, bias=False)
        return nn.Sequential(conv, _layer("BatchNorm", d)(out[0]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.cut_body(self.body(x))
        z = self.cut_shortcut(self.shortcut(x))
        match self.join:
            case "iadd":
                # Not into the input itself, which an empty body would hand back, nor into a view of
                # it.
                y = y * 1.0
                y += z
                return y
            case "method":
                return y.add(z)
            case "sub":
                return torch.sub(z, y)
            case "alpha":
                return torch.add(y, z, alpha=0.5)
            case "max":
                return torch.maximum(y, z)
            case "min":
                return torch.min(y, z)
            case "mul":
                return y.sigmoid() * z
            case "div":
                return z / (y.sigmoid() + 0.5)
            case _:
                return z + y


class _Concat(nn.Module):
    def __init__(self, s: Concat, shape: Shape) -> None:
        super().__init__()
        # One branch may hold a view of what another would change, so none changes it in place.
        made = [_chain(branch, shape, "fixed") for branch in s.branches]
        if s.dense:
            made.append((nn.Sequential(), shape))
        common = tuple(min(sizes) for sizes in zip(*(out[1:] for _, out in made), strict=True))
        self.branches = nn.ModuleList(
            nn.Sequential(branch, _CutTo(common)) if out[1:] != common else branch
            for branch, out in made
        )
        self.constant = s.constant

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        if self.constant:
            parts.append(torch.ones_like(parts[0][:, :1]))
        return torch.cat(parts, dim=1)


class _SplitHalf(nn.Module):
    def __init__(self, s: SplitHalf, shape: Shape) -> None:
        super().__init__()
        half = (shape[0] // 2, *shape[1:])
        self.half, self.how, self.joined = half[0], s.how, s.joined
        self.body, out = _chain(s.body, half, "fixed")
        self.cut = _CutTo(tuple(min(p, q) for p, q in zip(out[1:], half[1:], strict=True)))
        if self.joined != "cat" and out[0] != half[0]:
            self.joined = "cat"

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "chunk":
                left, right = x.chunk(2, dim=1)
            case "split":
                left, right = torch.split(x, self.half, dim=1)
            case "slice":
                left, right = x[:, : self.half], x[:, self.half :]
            case "narrow":
                left, right = x.narrow(1, 0, self.half), x.narrow(1, self.half, self.half)
            case _:
                pair = x.unflatten(1, (2, self.half))
                left, right = pair[:, 0], pair.select(1, 1)
        left, right = self.cut(left), self.cut(self.body(right))
        match self.joined:
            case "sum":
                return torch.stack([left, right], dim=2).sum(dim=2)
            case "gate":
                return left * torch.sigmoid(right)
            case _:
                return torch.cat((left, right), 1)


class _SqueezeExcite(nn.Module):
    def __init__(self, s: SqueezeExcite, channels: int, d: int) -> None:
        super().__init__()
        self.s, self.axes = s, tuple(range(2, 2 + d))
        self.pool = _layer("AdaptiveAvgPool", d)(1)
        inner = max(1, channels // 2)
        if s.layers == "conv":
            conv = _layer("Conv", d)
            self.layers = nn.Sequential(
                conv(channels, inner, 1), nn.ReLU(), conv(inner, channels, 1)
            )
        else:
            self.layers = nn.Sequential(
                nn.Linear(channels, inner), nn.SiLU(), nn.Linear(inner, channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        match self.s.pool:
            case "mean":
                y = x.mean(self.axes, keepdim=True)
            case "max":
                y = torch.amax(x, dim=self.axes, keepdim=True)
            case _:
                y = self.pool(x)
        if self.s.layers == "linear":
            ones = (1,) * len(self.axes)
            y = self.layers(y.view(y.shape[0], y.shape[1])).view(y.size(0), -1, *ones)
        else:
            y = self.layers(y)
        match self.s.on:
            case "bias":
                return x + y
            case "concat":
                return torch.cat([x, y.expand_as(x)], dim=1)
            case _:
                return x * torch.sigmoid(y)


class _SpatialAttention(nn.Module):
    def __init__(self, s: SpatialAttention, d: int) -> None:
        super().__init__()
        self.conv = _layer("Conv", d)(2, 1, s.kernel, padding=s.kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.cat([x.mean(1, keepdim=True), x.max(dim=1, keepdim=True)[0]], dim=1)
        return torch.sigmoid(self.conv(seen)) * x


class _AxisAttention(nn.Module):
    def __init__(self, s: AxisAttention, d: int) -> None:
        super().__init__()
        self.joined = s.joined
        self.rows, self.columns = tuple(range(3, 2 + d)), (2,)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.mean(self.rows, True), torch.mean(x, self.columns, keepdim=True)
        weights = a * b if self.joined == "mul" else a + b
        return x * torch.sigmoid(weights)


class _ConvNext(nn.Module):
    def __init__(self, s: ConvNext, channels: int, d: int) -> None:
        super().__init__()
        self.layers = s.layers
        self.last, self.first = (0, *range(2, d + 2), 1), (0, d + 1, *range(1, d + 1))
        self.depthwise = _layer("Conv", d)(
            channels, channels, s.kernel, padding=s.kernel // 2, groups=channels
        )
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.layer_scale = nn.Parameter(torch.ones(channels)) if s.scale else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(self.last))
        y = self._linear(self.down, F.gelu(self._linear(self.up, y)))
        if self.layer_scale is not None:
            y = self.layer_scale * y
        return x + y.permute(self.first)

    def _linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        match self.layers:
            case "matmul":
                return x @ layer.weight.mT + layer.bias
            case "einsum":
                return torch.einsum("...c,dc->...d", x, layer.weight) + layer.bias
            case _:
                return layer(x)


class _Twice(nn.Module):
    def __init__(self, s: Twice, channels: int, d: int) -> None:
        super().__init__()
        self.conv = _layer("Conv", d)(channels, channels, s.kernel, padding=s.kernel // 2)
        self.norm, self.act = _layer("BatchNorm", d)(channels), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.act(self.norm(self.conv(x)))
        return x


class _SharedInPlace(nn.Module):
    def __init__(self, s: SharedInPlace) -> None:
        super().__init__()
        self.how, self.joined, self.act = s.how, s.joined, nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.5  # a tensor of its own, so that the image is left alone
        match self.how:
            case "module":
                y = self.act(x)
            case "function":
                y = F.relu(x, inplace=True)
            case _:
                y = x.relu_()
        return x + y if self.joined == "add" else torch.cat([x, y], 1)


class _Network(nn.Module):
    def __init__(self, spec: Network, body: nn.Sequential, shape: Shape) -> None:
        super().__init__()
        self.features, d = body, len(spec.grid)
        self.head: nn.Module
        match spec.head:
            case LinearHead(multi=True) as head if len(body) > 1:
                with torch.no_grad():
                    before = tuple(body[:-1](torch.zeros(1, spec.channels, *spec.grid)).shape[1:])
                self.head = _LinearHead(head, shape, d, extra=before[0])
            case LinearHead() as head:
                self.head = _LinearHead(head, shape, d)
            case FlattenHead() as head:
                self.head = _FlattenHead(head, shape, d)
            case ConvHead() as head:
                self.head = _ConvHead(head, shape[0], d)
            case GridHead():
                self.head = nn.Identity()
        self.multi = getattr(self.head, "multi", False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.multi:
            return self.head(self.features(x))
        for layer in self.features[:-1]:
            x = layer(x)
        return self.head(self.features[-1](x), x * 1.0)


class _Mlp(nn.Module):
    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        if hidden:
            self.layers = nn.Sequential(
                nn.Dropout(0.5),
                nn.Linear(inputs, hidden),
                nn.ReLU(True),
                nn.Linear(hidden, classes),
            )
        else:
            self.layers = nn.Sequential(nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _LinearHead(nn.Module):
    def __init__(self, s: LinearHead, shape: Shape, d: int, extra: int = 0) -> None:
        super().__init__()
        self.s, self.d, self.axes, self.multi = s, d, tuple(range(2, 2 + d)), extra > 0
        self.adaptive = _layer("AdaptiveAvgPool", d)(1)
        self.largest = _layer("AdaptiveMaxPool", d)((1,) * d)
        self.window = _layer("AvgPool", d)(shape[1:])
        self.function = _function("adaptive_avg_pool", d)
        self.flatten = nn.Flatten()
        widths = shape[0] * (2 if s.pool == "both" else 1)
        self.classifier = _Mlp(widths + extra, s.hidden, s.classes)

    def forward(self, x: Tensor, earlier: Tensor | None = None) -> Tensor:
        y = self._flat(self._pooled(x))
        if earlier is not None:
            y = torch.cat([y, earlier.mean(self.axes)], 1)
        return self.classifier(y)

    def _pooled(self, x: Tensor) -> Tensor:
        match self.s.pool:
            case "adaptive":
                return self.adaptive(x)
            case "function":
                return self.function(x, 1)
            case "window":
                return self.window(x)
            case "mean":
                return x.mean(self.axes, keepdim=True)
            case "sum":
                return torch.sum(x, dim=self.axes, keepdim=True) * 0.1
            case "max":
                return self.largest(x)
            case "amax":
                return x.amax(self.axes, keepdim=True)
            case _:
                return torch.cat([self.adaptive(x), self.largest(x)], dim=1)

    def _flat(self, x: Tensor) -> Tensor:
        match self.s.flat:
            case "flatten":
                return torch.flatten(x, 1)
            case "module":
                return self.flatten(x)
            case "view":
                return x.view(x.size(0), -1)
            case "squeeze":
                for _ in range(self.d):
                    x = x.squeeze(-1)
                return x
            case _:
                return x[(slice(None), slice(None), *(0,) * self.d)]


class _FlattenHead(nn.Module):
    def __init__(self, s: FlattenHead, shape: Shape, d: int) -> None:
        super().__init__()
        self.flat = s.flat
        self.pool = _layer("AdaptiveAvgPool", d)(s.grid[:d]) if s.grid else nn.Identity()
        cells = math.prod(s.grid[:d] if s.grid else shape[1:])
        self.flatten = nn.Flatten()
        self.classifier = _Mlp(shape[0] * cells, s.hidden, s.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        match self.flat:
            case "flatten":
                x = x.flatten(1)
            case "module":
                x = self.flatten(x)
            case "view":
                x = x.contiguous().view(x.shape[0], -1)
            case _:
                x = torch.reshape(x, (x.size(0), -1))
        return self.classifier(x)


class _ConvHead(nn.Module):
    def __init__(self, s: ConvHead, channels: int, d: int) -> None:
        super().__init__()
        self.conv = _layer("Conv", d)(channels, s.classes, 1)
        self.pool = _layer("AdaptiveAvgPool", d)(1)
        self.soft = s.soft

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(F.relu(self.conv(x), True)).flatten(1)
        return F.log_softmax(y, dim=1) if self.soft else y


# --- Strategies -----------------------------------------------------------------------------------

_widths = st.sampled_from([2, 4, 6, 8])
_spellings = st.sampled_from(["module", "function", "method"])
_small = st.integers(0, 2)
_sides = st.tuples(_small, _small, _small)


@st.composite
def _convs(draw: st.DrawFn) -> Conv:
    kernels = st.sampled_from([3, 1, 2, 4, 5])
    padding = draw(st.sampled_from(["same", "half", "valid", "text"]))
    if padding in ("same", "text"):
        # An even window cannot have the same padding on both sides.
        kernels = st.sampled_from([3, 1, 5])
    one = draw(kernels)
    kernel = draw(
        st.sampled_from([(one,) * 3, (one, 1, 1), (1, one, 3 if padding != "valid" else 1)])
    )
    stride = (
        (1, 1, 1) if padding == "text" else draw(st.sampled_from([(1,) * 3, (2,) * 3, (2, 1, 2)]))
    )
    return Conv(
        draw(_widths),
        kernel,
        stride,
        padding,
        draw(st.sampled_from([1, 1, 2])),
        draw(st.sampled_from(["one", "one", "two", "each"])),
        draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])),
        draw(st.booleans()),
        draw(_spellings),
    )


@st.composite
def _transposed(draw: st.DrawFn) -> Transposed:
    return Transposed(
        draw(_widths),
        draw(st.integers(1, 4)),
        draw(st.integers(2, 3)),
        draw(st.integers(0, 1)),
        draw(st.integers(0, 1)),
        draw(st.sampled_from(["one", "two", "each"])),
        draw(_spellings),
    )


@st.composite
def _pools(draw: st.DrawFn) -> Pool:
    kernel = draw(st.integers(2, 3))
    return Pool(
        draw(st.sampled_from(["max", "avg", "lp"])),
        kernel,
        draw(st.integers(1, 3)),
        draw(st.integers(0, kernel // 2)),
        # With an even window and dilation the middle is not read; see the tests of the reference.
        draw(st.sampled_from([1, 2])) if kernel == 3 else 1,
        draw(st.booleans()),
        draw(st.booleans()),
        draw(_spellings),
    )


_activations = st.builds(
    Activation,
    st.sampled_from(
        ["relu", "sigmoid", "gelu", "hardswish", "leaky_relu", "silu", "elu", "prelu", "softplus"]
    ),
    st.booleans(),
    _spellings,
)
_norms = st.builds(
    Norm,
    st.sampled_from(["batch", "batch", "group", "instance", "layer", "grid", "response"]),
    _spellings,
)
_pads = st.builds(
    Pad,
    st.sampled_from(["constant", "reflect", "replicate", "circular"]),
    _sides,
    _sides,
    st.sampled_from([0.0, 0.0, 1.5]),
    _spellings,
)
_crops = st.builds(Crop, _sides, _sides, st.sampled_from(["slice", "narrow", "pad"]))

_leaves: st.SearchStrategy[Block] = st.one_of(
    _convs(),
    _activations,
    _norms,
    _pools(),
    st.builds(
        Arithmetic,
        st.sampled_from(
            ["affine", "clamp", "square", "buffer", "sqrt", "compare", "dropout", "identity"]
        ),
    ),
    _pads,
    _crops,
    st.builds(
        Resize,
        st.sampled_from(["nearest", "linear"]),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["module", "size", "scale"]),
    ),
    st.builds(Shuffle, st.sampled_from(["view", "reshape", "function", "module"])),
    st.builds(Strided, st.sampled_from([0, 1])),
    st.builds(Turned, st.sampled_from(["pieces", "back", "flip"])),
    st.builds(
        Measured,
        st.sampled_from(["std", "var", "norm", "logsumexp"]),
        st.sampled_from(["channels", "grid", "row"]),
    ),
    st.builds(
        Pick,
        st.sampled_from(["channel", "first", "last"]),
        st.sampled_from(["list", "tensor", "index_select"]),
    ),
    _transposed(),
    st.builds(
        AdaptivePool,
        st.sampled_from(["max", "avg"]),
        st.tuples(st.integers(2, 5), st.integers(1, 5), st.integers(1, 3)),
        _spellings,
    ),
    st.builds(PixelShuffle, st.booleans(), st.sampled_from(["module", "function"])),
    st.builds(
        SqueezeExcite,
        st.sampled_from(["adaptive", "mean", "max"]),
        st.sampled_from(["conv", "linear"]),
        st.sampled_from(["scale", "bias", "concat"]),
    ),
    st.builds(SpatialAttention, st.sampled_from([1, 3])),
    st.builds(AxisAttention, st.sampled_from(["mul", "add"])),
    st.builds(
        ConvNext,
        st.sampled_from([3, 5]),
        st.booleans(),
        st.sampled_from(["linear", "matmul", "einsum"]),
    ),
    st.builds(Twice, st.sampled_from([1, 3])),
    st.builds(
        SharedInPlace,
        st.sampled_from(["module", "function", "method"]),
        st.sampled_from(["add", "cat"]),
    ),
)


def _composites(inner: st.SearchStrategy[Block]) -> st.SearchStrategy[Block]:
    bodies = st.lists(inner, min_size=0, max_size=3).map(tuple)
    joins = ["add", "iadd", "method", "sub", "alpha", "max", "min", "mul", "div"]
    return st.one_of(
        st.builds(
            Residual, bodies, st.sampled_from(["conv", "pool", "free"]), st.sampled_from(joins)
        ),
        st.builds(
            Concat,
            st.lists(bodies, min_size=1, max_size=3).map(tuple),
            st.booleans(),
            st.sampled_from([False, False, True]),
        ),
        st.builds(
            SplitHalf,
            bodies,
            st.sampled_from(["chunk", "split", "slice", "narrow", "unflatten"]),
            st.sampled_from(["cat", "sum", "gate"]),
        ),
    )


blocks: st.SearchStrategy[Block] = st.one_of(
    _leaves, _composites(_leaves), _composites(st.one_of(_leaves, _composites(_leaves)))
)

heads: st.SearchStrategy[Head] = st.one_of(
    st.builds(
        LinearHead,
        st.integers(2, 4),
        st.sampled_from(["adaptive", "function", "window", "mean", "sum", "max", "amax", "both"]),
        st.sampled_from(["flatten", "module", "view", "squeeze", "index"]),
        st.sampled_from([0, 5]),
        st.booleans(),
    ),
    st.builds(
        FlattenHead,
        st.integers(2, 4),
        st.sampled_from([None, (2, 2, 2), (3, 2, 1)]),
        st.sampled_from(["flatten", "module", "view", "reshape"]),
        st.sampled_from([0, 5]),
    ),
    st.builds(ConvHead, st.integers(2, 4), st.booleans()),
    st.just(GridHead()),
)


@st.composite
def networks(draw: st.DrawFn, max_blocks: int = 5) -> Network:
    """Mostly pictures, some spectra and volumes; mostly with a convolution."""
    d = draw(st.sampled_from([2, 2, 2, 2, 1, 3]))
    most = 17 if d < 3 else 9
    return Network(
        draw(st.integers(1, 3)),
        tuple(draw(st.integers(8, most)) for _ in range(d)),
        (
            *draw(st.lists(st.one_of(_leaves, _composites(_leaves)), max_size=1)),
            *([draw(_convs())] if draw(st.sampled_from([True, True, True, False])) else []),
            *draw(st.lists(blocks, max_size=max_blocks - 1)),
        ),
        draw(heads),
    )


seeds = st.integers(0, 2**16)


def images(spec: Network, seed: int, batch: int = 1) -> Tensor:
    """Images for `spec`, which depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, spec.channels, *spec.grid, generator=generator)


@st.composite
def masks(draw: st.DrawFn, grid: tuple[int, ...], batch: int = 1) -> Tensor:
    """Bool (batch, 1, *grid), True = kept; each of its own kind."""
    return torch.stack([draw(_one_mask(grid)) for _ in range(batch)])


@st.composite
def _one_mask(draw: st.DrawFn, grid: tuple[int, ...]) -> Tensor:
    kind = draw(st.sampled_from(["full", "empty", "pixel", "box", "hole", "checkerboard", "noise"]))
    mask = torch.zeros(1, *grid, dtype=torch.bool)
    match kind:
        case "full":
            mask[:] = True
        case "pixel":
            mask[(0, *(draw(st.integers(0, n - 1)) for n in grid))] = True
        case "box" | "hole":
            ends = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in grid]
            mask[(0, *(slice(a, b) for a, b in ends))] = True
            mask = mask if kind == "box" else ~mask
        case "checkerboard":
            axes = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
            mask[0] = torch.stack(axes).sum(0) % 2 == 0
        case "noise":
            generator = torch.Generator().manual_seed(draw(seeds))
            share = draw(st.sampled_from([0.1, 0.5, 0.9]))
            mask[0] = torch.rand(*grid, generator=generator) < share
    return mask


def policies(**fixed: Any) -> st.SearchStrategy[SimpleNamespace]:
    """The fields of a policy; `tau` is a short binary fraction, so no tie hangs on rounding."""
    choices: dict[str, list[Any]] = {
        "tau": [0.0, 0.125, 0.25, 0.5, 0.75],
        "attribution": ["positional", "receptive"],
        "input": ["gate", "raw", "strict"],
        "pool": ["dilute", "renormalize"],
        "fill": ["zero", "neighbour"],
    }
    return st.builds(
        SimpleNamespace,
        **{
            name: st.just(fixed[name]) if name in fixed else st.sampled_from(values)
            for name, values in choices.items()
        },
    )
