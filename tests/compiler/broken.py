"""Networks that break Assumption 1, one fault each, and what the checker must say about them.

Every network is a `Host` with a fault in its middle. The stem reads one cell at a time, so what is
hidden in the image arrives at the fault as it is; with the identity in the fault's place the
network is accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor, nn

SHAPE = (1, 3, 8, 8)
WIDTH = 4


class Host(nn.Module):
    """A 1x1 convolution, the fault, a 3x3 convolution, the mean."""

    def __init__(self, fault: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 1)
        self.fault = fault
        self.last = nn.Conv2d(WIDTH, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fault(self.stem(x))).mean((2, 3))


# ----------------------------------------------- cells move, or are picked by value


class Gather(nn.Module):
    """Every cell is fetched from the place that it names itself."""

    def forward(self, x: Tensor) -> Tensor:
        places = (x.sigmoid() * 63).long().flatten(2)
        return x.flatten(2).gather(2, places).view(-1, WIDTH, 8, 8)


class Roll(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, 2)


class Rotate(nn.Module):
    """An operation that has no row."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.rot90(x, 1, (2, 3))


class Sort(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(x, -1)[0]


class TopK(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).topk(16)[0].view(-1, WIDTH, 4, 4)


class Median(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.flatten(2).median(-1)[0][:, :, None, None]


class Scatter(nn.Module):
    """The strongest channel of each cell is marked."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0)


class Unpool(nn.Module):
    """Back to the places that max pooling remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y, places = self.pool(x)
        return self.unpool(y, places)


class Keep(nn.Module):
    """A boolean index: how much is left depends on the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0].mean() + x


class ByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


class PeakRouting(nn.Module):
    """The features at the strongest position scale all others."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        peak = flat.sum(1, keepdim=True).argmax(2, keepdim=True).expand(-1, WIDTH, -1)
        return x * flat.gather(2, peak)[:, :, :, None]


class ChannelRouting(nn.Module):
    """The channel whose mean is largest is added to all others."""

    def forward(self, x: Tensor) -> Tensor:
        best = x.mean((2, 3), keepdim=True).argmax(1, keepdim=True)
        return x + torch.take_along_dim(x, best, 1)


class GridSample(nn.Module):
    """A spatial transformer: what it sees decides where it looks."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(WIDTH, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.look(x).mean((2, 3)).view(-1, 2, 3)
        grid = F.affine_grid(theta, x.shape, False)
        return F.grid_sample(x, grid, align_corners=False)


class Warp(nn.Module):
    """Sampled along a grid that no image changes."""

    def __init__(self) -> None:
        super().__init__()
        ys, xs = torch.meshgrid(*(torch.linspace(-1, 1, 8) for _ in "yx"), indexing="ij")
        self.register_buffer("grid", torch.stack([ys, xs], -1)[None])

    def forward(self, x: Tensor) -> Tensor:
        return F.grid_sample(x, self.grid.expand(x.shape[0], -1, -1, -1), align_corners=True)


class Deform(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Conv2d(WIDTH, 18, 1)
        self.conv = torchvision.ops.DeformConv2d(WIDTH, WIDTH, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.offset(x))


class Interleave(nn.Module):
    """``view`` where ``permute`` was meant: positions and channels end up in one axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 8, 8, WIDTH).permute(0, 3, 1, 2)


class Tile(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :4, :4].repeat(1, 1, 2, 2)


class RollFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.roll(1, 3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.roll(-1, 3)


class CustomFunction(nn.Module):
    """Tracing looks inside."""

    def forward(self, x: Tensor) -> Tensor:
        return RollFunction.apply(x)


class NumpyFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy()[..., ::-1].copy())


class OutsideTorch(nn.Module):
    """A custom function whose work is not torch's: nothing can look inside."""

    def forward(self, x: Tensor) -> Tensor:
        return NumpyFunction.apply(x)


# ------------------------------------------------------- every position reads every other


class Cumsum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(3)


class DotProduct(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(y, y, y).transpose(1, 2).view(-1, WIDTH, 8, 8)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        return self.attention(y, y, y)[0].transpose(1, 2).view(-1, WIDTH, 8, 8)


class NonLocal(nn.Module):
    """Similarities of positions, without a softmax."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2)
        alike = y.transpose(1, 2) @ y / 64
        return torch.bmm(y, alike).view(-1, WIDTH, 8, 8)


class SpatialSoftmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.flatten(2).softmax(-1).view(-1, WIDTH, 8, 8)


class Fourier(nn.Module):
    """Frequencies, as in FNet."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).abs()


class Windows(nn.Module):
    """Every window written out, and summed up again."""

    def forward(self, x: Tensor) -> Tensor:
        return F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1)


class DynamicWeights(nn.Module):
    """A kernel that is computed from the images."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(WIDTH, WIDTH * WIDTH * 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.look(x).mean((0, 2, 3)).view(WIDTH, WIDTH, 3, 3)
        return F.conv2d(x, kernel, padding=1)


class Conditional(nn.Module):
    """A kernel per image: the images of the batch become groups of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(WIDTH, WIDTH * 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        kernel = self.look(x).mean((2, 3)).view(n * WIDTH, 1, 3, 3)
        y = F.conv2d(x.reshape(1, n * WIDTH, 8, 8), kernel, padding=1, groups=n * WIDTH)
        return y.view(n, WIDTH, 8, 8)


@torch.fx.wrap
def swirl(x: Tensor) -> Tensor:
    """Somebody's own operation, opaque on purpose."""
    return x.transpose(2, 3).flip(2)


class Wrapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return swirl(x)


# ------------------------------------------------------- the batch, and memory


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(WIDTH, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class BatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class AlwaysDropout(nn.Module):
    """Dropout that forgets to ask whether it is training."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


class ChangedView(nn.Module):
    """One half is changed in place, and the whole is read afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        half = x[:, :2]
        half.mul_(2.0)
        return x


class Several(nn.Module):
    """Faults one after the other and side by side; each can be taken out by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), Roll())
        self.right = BatchStatistics()
        self.down = Cumsum()
        self.end = Fourier()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.left(x) + self.down(self.right(x)))


# ------------------------------------------------------- the table

GRID = "(N, 4, 8, 8)"
SAME = f"{GRID} -> {GRID}"
FLAT = "(N, 4, 64)"
TOKENS = "(N, 64, 4)"


@dataclass(frozen=True, slots=True)
class Says:
    """A finding: where, what, the shapes as they are printed, and a part of why."""

    path: str
    op: str
    shapes: str
    why: str

    @property
    def place(self) -> str:
        """How the printed finding begins. A finding on no single operation has no shapes."""
        return f"{self.path} ({self.op}{', ' * bool(self.shapes)}{self.shapes}): "


@dataclass(frozen=True, slots=True)
class Broken:
    """A fault, the findings in their order, and the law that breaks where conversion is forced.

    Attributes:
        breaks: a law of docs/meaning.md: "theorem 1", "hidden" (non-interference), "batch", or
            "none", with the reason in ``because``. "untraceable": there is nothing to force.
    """

    fault: Callable[[], nn.Module]
    says: tuple[Says, ...]
    breaks: str = "hidden"
    because: str = ""


BY_VALUE = "selects elements by value"
NO_RULE = "no rule says what"
BATCH = "slices or reorders the batch axis"
ATTENTION = "lets every position read every other"
PRODUCT = "combines positions by weights that no window bounds"

BROKEN = (
    Broken(Gather, (Says("fault.gather", ".gather()", f"{FLAT}, {FLAT} -> {FLAT}", BY_VALUE),)),
    Broken(Sort, (Says("fault.sort", "torch.sort", f"{SAME} and {GRID}", BY_VALUE),)),
    Broken(
        TopK,
        (Says("fault.topk", ".topk()", f"{FLAT} -> (N, 4, 16) and (N, 4, 16)", BY_VALUE),),
    ),
    Broken(Median, (Says("fault.median", ".median()", f"{FLAT} -> (N, 4) and (N, 4)", BY_VALUE),)),
    Broken(
        Scatter,
        (
            Says("fault.argmax", ".argmax()", f"{GRID} -> (N, 1, 8, 8)", BY_VALUE),
            Says("fault.scatter", ".scatter()", f"(N, 1, 8, 8) -> {GRID}", BY_VALUE),
        ),
    ),
    Broken(
        Unpool,
        (
            Says(
                "fault.pool",
                "MaxPool2d",
                f"{GRID} -> (N, 4, 4, 4) and (N, 4, 4, 4)",
                "returns data-dependent argmax indices",
            ),
            Says("fault.unpool", "MaxUnpool2d", f"(N, 4, 4, 4), (N, 4, 4, 4) -> {GRID}", NO_RULE),
        ),
    ),
    Broken(
        PeakRouting,
        (
            Says("fault.argmax", ".argmax()", "(N, 1, 64) -> (N, 1, 1)", BY_VALUE),
            Says("fault.gather", ".gather()", f"{FLAT}, (N, 4, 1) -> (N, 4, 1)", BY_VALUE),
        ),
    ),
    Broken(
        ChannelRouting,
        (
            Says("fault.argmax", ".argmax()", "(N, 4, 1, 1) -> (N, 1, 1, 1)", BY_VALUE),
            Says(
                "fault.take_along_dim",
                "torch.take_along_dim",
                f"{GRID}, (N, 1, 1, 1) -> (N, 1, 8, 8)",
                BY_VALUE,
            ),
        ),
        "none",
        "it chooses among channels, which share one activity at each position, and chooses by the"
        " gated mean: no cell moves. No rule looks at what the indices of take_along_dim mean",
    ),
    Broken(Roll, (Says("fault.roll", ".roll()", SAME, "across the border"),)),
    Broken(Rotate, (Says("fault.rot90", "torch.rot90", SAME, NO_RULE),)),
    Broken(Wrapped, (Says("fault.swirl", "tests.compiler.broken.swirl", SAME, NO_RULE),)),
    Broken(CustomFunction, (Says("fault.roll", ".roll()", SAME, "across the border"),)),
    Broken(
        Interleave,
        (
            Says(
                "fault.reshape",
                ".reshape()",
                f"{GRID} -> (N, 8, 8, 4)",
                "mixes spatial and non-spatial axes",
            ),
        ),
    ),
    Broken(
        Tile,
        (Says("fault.repeat", ".repeat()", f"(N, 4, 4, 4) -> {GRID}", "at several positions"),),
    ),
    Broken(
        GridSample,
        (
            Says(
                "fault.affine_grid", "functional.affine_grid", "(N, 2, 3) -> (N, 8, 8, 2)", NO_RULE
            ),
            Says(
                "fault.grid_sample",
                "functional.grid_sample",
                f"{GRID}, (N, 8, 8, 2) -> {GRID}",
                "at computed positions",
            ),
        ),
    ),
    Broken(
        Warp,
        (
            Says(
                "fault.grid_sampler.default",
                "grid_sampler.default",
                SAME,
                "at computed positions",
            ),
        ),
    ),
    Broken(
        Deform,
        (
            Says(
                "fault.conv.deform_conv2d.default",
                "deform_conv2d.default",
                f"{GRID}, (N, 18, 8, 8) -> {GRID}",
                "its offsets depend on the image",
            ),
        ),
    ),
    Broken(
        Cumsum,
        (Says("fault.cumsum", ".cumsum()", SAME, "every element reads all elements before it"),),
    ),
    Broken(
        DotProduct,
        (
            Says(
                "fault.scaled_dot_product_attention",
                "scaled_dot_product_attention",
                f"{TOKENS}, {TOKENS}, {TOKENS} -> {TOKENS}",
                ATTENTION,
            ),
        ),
    ),
    Broken(
        Heads,
        (
            Says(
                "fault.attention",
                "MultiheadAttention",
                f"{TOKENS}, {TOKENS}, {TOKENS} -> {TOKENS} and (N, 64, 64)",
                ATTENTION,
            ),
        ),
    ),
    Broken(
        NonLocal,
        (
            Says("fault.matmul", "matmul", f"{TOKENS}, {FLAT} -> (N, 64, 64)", PRODUCT),
            Says("fault.bmm", "torch.bmm", f"{FLAT}, (N, 64, 64) -> {FLAT}", PRODUCT),
        ),
    ),
    Broken(
        SpatialSoftmax,
        (
            Says(
                "fault.softmax",
                ".softmax()",
                f"{FLAT} -> {FLAT}",
                "a softmax over positions is attention",
            ),
        ),
    ),
    Broken(Fourier, (Says("fault.fft2", "torch.fft.fft2", SAME, "over the whole grid"),)),
    Broken(
        Windows,
        (
            Says(
                "fault.unfold",
                "functional.unfold",
                f"{GRID} -> (N, 36, 64)",
                "writes each window out as channels",
            ),
            Says(
                "fault.fold",
                "functional.fold",
                f"(N, 36, 64) -> {GRID}",
                "writes each window out as channels",
            ),
        ),
    ),
    Broken(
        DynamicWeights,
        (
            Says("fault.mean", ".mean()", "(N, 144, 8, 8) -> (144)", BATCH),
            Says(
                "fault.conv2d",
                "torch.conv2d",
                f"{GRID}, (4, 4, 3, 3) -> {GRID}",
                "its parameter 'weight' is computed from the image",
            ),
        ),
    ),
    Broken(
        Conditional,
        (
            Says(
                "fault.conv2d",
                "torch.conv2d",
                "(1, 52, 8, 8), (52, 1, 3, 3) -> (1, 52, 8, 8)",
                "is computed from the image",
            ),
        ),
    ),
    Broken(
        BatchStatistics,
        (Says("fault.norm", "BatchNorm2d", SAME, "normalises by statistics of the batch"),),
        "batch",
    ),
    Broken(
        BatchMean,
        (Says("fault.mean", ".mean()", f"{GRID} -> (1, 4, 8, 8)", BATCH),),
        "batch",
    ),
    Broken(
        AlwaysDropout,
        (Says("fault.dropout", "functional.dropout", SAME, "drops elements at random"),),
        "theorem 1",
    ),
    Broken(
        ChangedView,
        (
            Says(
                "fault.mul_",
                "in place",
                "",
                "changes fault.getitem in place, and stem, which shares its memory, is read",
            ),
        ),
        "theorem 1",
    ),
    Broken(
        Several,
        (
            Says("fault.left.1.roll", ".roll()", SAME, "across the border"),
            Says("fault.right.norm", "BatchNorm2d", SAME, "statistics of the batch"),
            Says(
                "fault.down.cumsum", ".cumsum()", SAME, "every element reads all elements before it"
            ),
            Says("fault.end.fft2", "torch.fft.fft2", SAME, "over the whole grid"),
        ),
        "batch",
    ),
    Broken(
        Keep,
        (Says("fault.getitem", "forward", "", "the values of a tensor decide on shapes"),),
        "untraceable",
    ),
    Broken(
        ByValue,
        (Says("fault", "forward", "", "inputs to control flow"),),
        "untraceable",
    ),
    Broken(
        OutsideTorch,
        (Says("fault", "forward", "", "torch.fx cannot trace Host"),),
        "untraceable",
    ),
)


# ------------------------------------------------------- what gets away


class Call(nn.Module):
    """Any function as a fault."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def roll_in_a_hook() -> Host:
    host = Host(nn.Conv2d(WIDTH, WIDTH, 1))
    host.fault.register_forward_hook(lambda module, args, output: output.roll(1, 2))
    return host


def forward_replaced() -> Host:
    conv = nn.Conv2d(WIDTH, WIDTH, 1)
    conv.forward = lambda x: F.conv2d(x.roll(1, 2), conv.weight, conv.bias)
    return Host(conv)


def copied_into_zeros() -> Host:
    def fault(x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        z.copy_(x)
        return z

    return Host(Call(fault))


def zeroed() -> Host:
    def fault(x: Tensor) -> Tensor:
        x[:, :2].zero_()
        return x

    return Host(Call(fault))


def noise() -> Host:
    return Host(Call(lambda x: x + torch.randn(WIDTH, 1, 1)))


def random_slope() -> Host:
    return Host(Call(lambda x: F.rrelu(x, training=True)))


def place_in_batch() -> Host:
    return Host(Call(lambda x: x * torch.arange(x.shape[0]).view(-1, 1, 1, 1)))


def size_of_batch() -> Host:
    return Host(Call(lambda x: x / x.shape[0]))


#: Faults that hide from a look at the graph alone, and are found all the same.
HIDDEN: tuple[Callable[[], Host], ...] = (
    roll_in_a_hook,
    forward_replaced,
    copied_into_zeros,
    zeroed,
    noise,
    random_slope,
    place_in_batch,
)

#: Accepted, and wrong: known gaps of the checker, to be closed.
ESCAPED: tuple[tuple[Callable[[], Host], str], ...] = (
    (size_of_batch, "the batch's size is a number like any other"),
)
