"""One row for every kind of operation: how to build it, what to try, what has to be refused.

A row is a `Case`, its samples are networks of one operation (after a prelude, where the operation
has to meet an activity that an image alone does not have). `tests/oracle.py` judges them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor, nn

Build = Callable[[], nn.Module]
aten = torch.ops.aten


@dataclass(frozen=True)
class Sample:
    """One network with the operation in it.

    Attributes:
        build: of the network, whose answer is the operation's.
        shape: of one image, (C, *grid).
        refused: a part of the reason with which it has to be refused; "" where it must not.
        demand: which output cells docs/meaning.md wants active.
            "reads": Phi > tau over the cells that the operation reads (the oracle's finding);
            "any": the same with tau 0; "place": as the operand is at the same position;
            "both": where every operand is; "grid": as the operand that is not global.
        why: the reason, where that is not "reads".
        fill: what the operation is given for an inactive cell.
        window: a window or a resize that reads the image itself, which strict input restricts.
        keeps_grid: a window that positional attribution leaves where it is.
        nan: False where a NaN reaches cells by a weight of zero.
        only_tau_0: it reads cells more than once, which Phi counts and the oracle does not.
        needs: a package without which it is skipped.
        broken: a known fault of the compiler: the reason to expect a failure.
    """

    name: str
    build: Build
    shape: tuple[int, ...] = (2, 3, 3)
    refused: str = ""
    demand: str = "reads"
    why: str = ""
    fill: float = 0.0
    window: bool = False
    keeps_grid: bool = False
    nan: bool = True
    only_tau_0: bool = False
    needs: str = ""
    broken: str = ""


@dataclass(frozen=True)
class Case:
    """A kind of operation, as in `spellings.SPELLINGS`, and its samples."""

    kind: str
    samples: tuple[Sample, ...]


class Of(nn.Module):
    """A network from a function of the image and of modules."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.parts)


class Weights(nn.Module):
    """Parameters without an operation, for functions."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in zip("abcd", shapes, strict=False):
            setattr(self, name, nn.Parameter(0.1 + torch.rand(shape)))


def of(name: str, function: Callable[..., Any], *modules: Build, **fields: Any) -> Sample:
    """A sample from a function of the image and of modules that are built anew each time."""
    return Sample(name, lambda: Of(function, *(build() for build in modules)), **fields)


def to(name: str, build: Build, **fields: Any) -> Sample:
    """A sample that is a single module."""
    return Sample(name, lambda: Of(lambda x, m: m(x), build()), **fields)


def after(prelude: Callable[[Tensor], Tensor], sample: Sample, **fields: Any) -> Sample:
    """The same operation behind another."""
    name = f"{sample.name}-after-{prelude.__name__}"
    build = sample.build
    changes = {"name": name, "build": lambda: Of(lambda x, m: m(prelude(x)), build()), **fields}
    return replace(sample, **changes)


# Preludes. All but `shrunk` and `pooled` leave the image at image level.


def two(x: Tensor) -> Tensor:
    """Twice the channels, and activity that differs between them."""
    return torch.cat([x, x.flip(-1)], 1)


def padded(x: Tensor) -> Tensor:
    """A row and a column that do not exist for Phi."""
    return F.pad(x, (1, 0) * (x.dim() - 2))


def with_constants(x: Tensor) -> Tensor:
    """Channels that do not exist for Phi."""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


def shrunk(x: Tensor) -> Tensor:
    """No image any more."""
    return F.avg_pool2d(x, 2, 1)


def pooled(x: Tensor) -> Tensor:
    """A global tensor."""
    return x.mean((2, 3), keepdim=True)


def corner(x: Tensor) -> Tensor:
    """A global tensor that has another activity than `pooled`."""
    return x[:, :, :2, :2].mean((2, 3), keepdim=True)


def last(x: Tensor) -> Tensor:
    """Channels last."""
    return x.permute(0, 2, 3, 1)


WIN = {"window": True}
SAME = {"window": True, "keeps_grid": True}
EXTREME = {"fill": -math.inf}
LOW = {"fill": math.inf}
REDUCES = {"demand": "any", "why": "a reduction over all full axes: tau is not applied"}
COVERS = {"demand": "any", "why": "a pooling window as large as the grid is a reduction"}
STATISTIC = {"demand": "place", "why": "statistics leave activity where it is"}
PRODUCT = {"demand": "both", "why": "a product is visible where all its factors are"}
MIXED = {
    "demand": "both",
    "why": "where one operand is hidden, neither choice nor mix means anything",
}
INSTEAD = {"demand": "place", "why": "arithmetic with constants keeps cells in place"}
MEETS = {"demand": "grid", "why": "a global tensor joined with a grid: the grid's"}
GLOBALS = {"demand": "any", "why": "two global tensors: the union, whatever tau"}
CHANNELS = {"demand": "place", "why": "a padded channel has the activity of its position"}
LINE = {"shape": (2, 6)}
CUBE = {"shape": (2, 2, 2, 2)}
FOUR = {"shape": (1, 4, 4)}

BATCH = "the batch axis"
COPIES = {"only_tau_0": True}


# ------------------------------------------------------------------------------------- windows


def conv(*args: Any, **kwargs: Any) -> Build:
    return lambda: nn.Conv2d(*args, **kwargs)


def foreign(path: str, *args: Any, **kwargs: Any) -> Build:
    """A class that need not be installed."""
    home, _, name = path.rpartition(".")

    def build() -> nn.Module:
        module: nn.Module = getattr(__import__(home, fromlist=[name]), name)(*args, **kwargs)
        return module

    return build


TIMM = {"needs": "timm"}
FIRST = "as one sample without a batch"

WINDOWS = (
    Case(
        "conv",
        (
            to("plain", conv(2, 3, 2), **WIN),
            to("strided", conv(2, 1, 2, stride=2, padding=1), **WIN),
            to("same", conv(2, 2, 3, padding=1), **SAME),
            to("same-dilated", conv(2, 2, (1, 3), padding=(0, 2), dilation=(1, 2)), **SAME),
            to("padding-same", conv(2, 2, 3, padding="same"), **SAME),
            to("padding-same-even", conv(1, 2, (2, 3), padding="same"), shape=(1, 3, 3), **SAME),
            to("padding-valid", conv(2, 2, (2, 1), padding="valid"), **WIN),
            to("dilated", conv(1, 1, 2, dilation=2, padding=(0, 1)), shape=(1, 3, 3), **WIN),
            to("whole-grid", conv(2, 2, 3), **WIN),
            to("far-padding", conv(1, 1, 2, padding=2), shape=(1, 3, 3), **WIN),
            to("pointwise", conv(2, 3, 1), **SAME),
            to("pointwise-strided", conv(2, 3, 1, stride=2), **WIN),
            to("pointwise-padded", conv(2, 3, 1, padding=1), **WIN),
            to("depthwise", conv(2, 2, 3, padding=1, groups=2), **SAME),
            *(
                to(mode, conv(1, 1, 3, padding=1, padding_mode=mode), **FOUR, **SAME, **COPIES)
                for mode in ("reflect", "replicate", "circular")
            ),
            to(
                "circular-strided",
                conv(1, 1, 2, stride=2, padding=1, padding_mode="circular"),
                **FOUR,
                **WIN,
                **COPIES,
            ),
            to("1d", lambda: nn.Conv1d(2, 2, 3, stride=2, padding=1), **LINE, **WIN),
            to("3d", lambda: nn.Conv3d(2, 1, (1, 2, 2), padding=(0, 1, 0)), **CUBE, **WIN),
            of(
                "function",
                lambda x, m: F.conv2d(x, m.a, None, (1, 2), 1),
                lambda: Weights((1, 2, 2, 3)),
                **WIN,
            ),
            of(
                "torch",
                lambda x, m: torch.conv1d(x, m.a, dilation=2),
                lambda: Weights((1, 2, 2)),
                **LINE,
                **WIN,
            ),
            of(
                "aten",
                lambda x, m: aten.conv2d.default(x, m.a, None, [2, 1], [0, 1]),
                lambda: Weights((1, 2, 3, 2)),
                **WIN,
            ),
            after(two, to("same", conv(4, 2, 3, padding=1), **SAME)),
            after(two, to("groups", conv(4, 4, 2, groups=2), **WIN)),
            after(two, to("groups-same", conv(4, 2, 3, padding=1, groups=2), **SAME)),
            after(two, to("depthwise", conv(4, 4, 2, groups=4), **WIN)),
            after(two, to("multiplied", conv(4, 8, 2, groups=4), **WIN)),
            after(two, to("pointwise", conv(4, 2, 1), **SAME)),
            after(two, to("pointwise-groups", conv(4, 4, 1, groups=2), **SAME)),
            after(padded, to("strided", conv(2, 1, 2, stride=2), **WIN)),
            after(padded, to("same", conv(2, 1, 3, padding=1), **SAME)),
            after(
                with_constants,
                to("strided", conv(3, 1, 2, stride=2, padding=1), **WIN),
            ),
            after(with_constants, to("pointwise", conv(3, 1, 1), **SAME)),
            after(shrunk, to("plain", conv(2, 1, 2, padding=1))),
            of("global", lambda x, m: m(pooled(x)), conv(2, 3, 1)),
            of("dynamic", lambda x: F.conv2d(x, x[:1]), refused="computed from the image"),
            of(
                "unbatched",
                lambda x, m: m(x[:, 0]),
                conv(13, 1, 1),
                shape=(13, 3, 3),
                refused=FIRST,
            ),
        ),
    ),
    Case(
        "conv_same",
        (
            to(
                "strided",
                foreign("timm.layers.conv2d_same.Conv2dSame", 2, 1, 2, stride=2),
                **TIMM,
                **WIN,
            ),
            to(
                "stride-1",
                foreign("timm.layers.conv2d_same.Conv2dSame", 1, 1, 3, dilation=2),
                shape=(1, 3, 3),
                **TIMM,
                **SAME,
            ),
            of(
                "unbatched",
                lambda x, m: m(x[:, 0]),
                foreign("timm.layers.conv2d_same.Conv2dSame", 13, 1, 1),
                shape=(13, 3, 3),
                refused=FIRST,
                **TIMM,
            ),
        ),
    ),
    Case(
        "standardised_conv_same",
        (
            to(
                "strided",
                foreign("timm.layers.std_conv.StdConv2dSame", 2, 2, 3, stride=2),
                **TIMM,
                **WIN,
            ),
            to(
                "scaled",
                foreign("timm.layers.std_conv.ScaledStdConv2dSame", 2, 2, 2),
                **FOUR | {"shape": (2, 4, 3)},
                **TIMM,
                **SAME,
            ),
            of(
                "unbatched",
                lambda x, m: m(x[:, 0]),
                foreign("timm.layers.std_conv.StdConv2dSame", 13, 1, 1),
                shape=(13, 3, 3),
                refused=FIRST,
                **TIMM,
            ),
        ),
    ),
    Case(
        "max_pool_same",
        (
            to(
                "strided",
                foreign("timm.layers.pool2d_same.MaxPool2dSame", 2, 2),
                **TIMM,
                **WIN,
                **EXTREME,
            ),
            to(
                "wide",
                foreign("timm.layers.pool2d_same.MaxPool2dSame", (3, 2), 2),
                **TIMM,
                **WIN,
                **EXTREME,
            ),
            to(
                "stride-1",
                foreign("timm.layers.pool2d_same.MaxPool2dSame", 3, 1),
                **TIMM,
                **SAME,
                **EXTREME,
            ),
        ),
    ),
    Case(
        "avg_pool_same",
        (
            to("strided", foreign("timm.layers.pool2d_same.AvgPool2dSame", 2, 2), **TIMM, **WIN),
            to("wide", foreign("timm.layers.pool2d_same.AvgPool2dSame", (3, 2), 2), **TIMM, **WIN),
            to("stride-1", foreign("timm.layers.pool2d_same.AvgPool2dSame", 3, 1), **TIMM, **SAME),
        ),
    ),
    Case(
        "conv_transpose",
        (
            to("doubles", lambda: nn.ConvTranspose2d(2, 2, 2, 2), **WIN),
            to("odd", lambda: nn.ConvTranspose2d(2, 1, 3, 2, 1, output_padding=1), **WIN),
            to("gaps", lambda: nn.ConvTranspose2d(1, 1, 1, 2), shape=(1, 3, 3), **WIN),
            to("stride-1", lambda: nn.ConvTranspose2d(1, 1, 3, 1, 1), shape=(1, 3, 3), **WIN),
            to(
                "dilated",
                lambda: nn.ConvTranspose2d(1, 1, 2, (2, 1), (1, 0), dilation=2),
                shape=(1, 3, 3),
                **WIN,
            ),
            to("groups", lambda: nn.ConvTranspose2d(2, 4, 2, 1, groups=2), **WIN),
            to("cropped", lambda: nn.ConvTranspose2d(1, 1, 2, 1, 1), shape=(1, 3, 3), **WIN),
            to("1d", lambda: nn.ConvTranspose1d(2, 1, 3, 3, output_padding=2), shape=(2, 4), **WIN),
            to("3d", lambda: nn.ConvTranspose3d(2, 1, (1, 2, 2), (1, 2, 1)), **CUBE, **WIN),
            of(
                "function",
                lambda x, m: F.conv_transpose2d(x, m.a, None, 2, 1),
                lambda: Weights((2, 1, 3, 3)),
                **WIN,
            ),
            after(two, to("doubles", lambda: nn.ConvTranspose2d(4, 1, 3, 2), **WIN)),
            after(two, to("groups", lambda: nn.ConvTranspose2d(4, 4, 2, 2, groups=2), **WIN)),
            after(padded, to("doubles", lambda: nn.ConvTranspose2d(2, 1, 2, 2), **WIN)),
            of(
                "unbatched",
                lambda x, m: m(x[:, 0]),
                lambda: nn.ConvTranspose2d(13, 1, 1),
                shape=(13, 3, 3),
                refused=FIRST,
            ),
        ),
    ),
    Case(
        "max_pool",
        (
            to("strided", lambda: nn.MaxPool2d(2), **FOUR, **WIN, **EXTREME),
            to("overlaps", lambda: nn.MaxPool2d(2, 1), **WIN, **EXTREME),
            to("padded", lambda: nn.MaxPool2d(3, 2, 1), **WIN, **EXTREME),
            to("same", lambda: nn.MaxPool2d(3, 1, 1), **SAME, **EXTREME),
            to("dilated", lambda: nn.MaxPool2d(2, 1, dilation=(2, 1)), **WIN, **EXTREME),
            to("ceil", lambda: nn.MaxPool2d(2, ceil_mode=True), **WIN, **EXTREME),
            to(
                "ceil-padded",
                lambda: nn.MaxPool2d((2, 3), 2, 1, ceil_mode=True),
                **FOUR,
                **WIN,
                **EXTREME,
            ),
            to("whole-grid", lambda: nn.MaxPool2d(3), **COVERS, **EXTREME),
            to("1d", lambda: nn.MaxPool1d(3, 2, 1), **LINE, **WIN, **EXTREME),
            to("3d", lambda: nn.MaxPool3d((1, 2, 2), 1), **CUBE, **WIN, **EXTREME),
            of("function", lambda x: F.max_pool2d(x, 2, 1), **WIN, **EXTREME),
            of("torch", lambda x: torch.max_pool1d(x, 2, 2), **LINE, **WIN, **EXTREME),
            of("aten", lambda x: aten.max_pool2d.default(x, [2, 2], [1, 1]), **WIN, **EXTREME),
            of("aten-stride", lambda x: aten.max_pool2d.default(x, [2, 1]), **WIN, **EXTREME),
            after(two, to("padded", lambda: nn.MaxPool2d(3, 2, 1), **WIN, **EXTREME)),
            after(two, to("same", lambda: nn.MaxPool2d(3, 1, 1), **SAME, **EXTREME)),
            after(padded, to("overlaps", lambda: nn.MaxPool2d(2, 1), **WIN, **EXTREME)),
            of(
                "indices",
                lambda x, m: m(x)[0],
                lambda: nn.MaxPool2d(2, return_indices=True),
                refused="argmax indices",
            ),
            of(
                "indices-function",
                lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
                refused="no rule says",
            ),
        ),
    ),
    Case(
        "avg_pool",
        (
            to("overlaps", lambda: nn.AvgPool2d(2, 1), **WIN),
            to("padded", lambda: nn.AvgPool2d(3, 2, 1), **WIN),
            to("uncounted", lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), **WIN),
            to("same", lambda: nn.AvgPool2d(3, 1, 1), **SAME),
            to("ceil", lambda: nn.AvgPool2d(2, ceil_mode=True), **WIN),
            to("divisor", lambda: nn.AvgPool2d((1, 2), 1, divisor_override=3), **WIN),
            to("whole-grid", lambda: nn.AvgPool2d(3), **COVERS),
            to("1d", lambda: nn.AvgPool1d(2, 1, 1), **LINE, **WIN),
            to("3d", lambda: nn.AvgPool3d((2, 1, 2), 1, (1, 0, 0)), **CUBE, **WIN),
            of("function", lambda x: F.avg_pool2d(x, (2, 3), 1), **WIN),
            of("aten", lambda x: aten.avg_pool2d.default(x, [2, 2]), **WIN),
            after(two, to("overlaps", lambda: nn.AvgPool2d(2, 1), **WIN)),
            after(padded, to("overlaps", lambda: nn.AvgPool2d(2), **WIN)),
            after(with_constants, to("overlaps", lambda: nn.AvgPool2d(2, 1), **WIN)),
        ),
    ),
    Case(
        "lp_pool",
        (
            to("overlaps", lambda: nn.LPPool2d(2, 2, 1), **WIN),
            to("ceil", lambda: nn.LPPool2d(1, 2, ceil_mode=True), **WIN),
            to("whole-grid", lambda: nn.LPPool2d(3, 3), **COVERS),
            to("1d", lambda: nn.LPPool1d(2, 3), **LINE, **WIN),
            of("function", lambda x: F.lp_pool2d(x, 2, (2, 1), 1), **WIN),
        ),
    ),
    Case(
        "adaptive_avg_pool",
        (
            to("grid", lambda: nn.AdaptiveAvgPool2d(2), **WIN),
            to("unequal", lambda: nn.AdaptiveAvgPool2d((2, None)), **WIN),
            to("line", lambda: nn.AdaptiveAvgPool2d((2, 1)), **WIN),
            to("one-axis", lambda: nn.AdaptiveAvgPool2d((None, 1))),
            to("larger", lambda: nn.AdaptiveAvgPool2d(4), **WIN),
            to("one", lambda: nn.AdaptiveAvgPool2d(1), **REDUCES),
            to("1d", lambda: nn.AdaptiveAvgPool1d(4), **LINE, **WIN),
            to("3d", lambda: nn.AdaptiveAvgPool3d((2, 1, 2)), **CUBE, **WIN),
            of("function", lambda x: F.adaptive_avg_pool2d(x, (3, 2)), **WIN),
            of("torch", lambda x: torch.adaptive_avg_pool1d(x, 1), **LINE, **REDUCES),
            of("aten", lambda x: aten.adaptive_avg_pool2d.default(x, [2, 2]), **WIN),
            after(two, to("grid", lambda: nn.AdaptiveAvgPool2d(2), **WIN)),
            after(two, to("one", lambda: nn.AdaptiveAvgPool2d(1))),
            after(padded, to("grid", lambda: nn.AdaptiveAvgPool2d(3), **WIN)),
        ),
    ),
    Case(
        "adaptive_max_pool",
        (
            to("grid", lambda: nn.AdaptiveMaxPool2d(2), **WIN, **EXTREME),
            to("one", lambda: nn.AdaptiveMaxPool2d(1), **REDUCES, **EXTREME),
            to("one-axis", lambda: nn.AdaptiveMaxPool2d((1, None)), **EXTREME),
            to("1d", lambda: nn.AdaptiveMaxPool1d(4), **LINE, **WIN, **EXTREME),
            of("function", lambda x: F.adaptive_max_pool2d(x, (3, 2)), **WIN, **EXTREME),
            of(
                "aten",
                lambda x: aten.adaptive_max_pool1d.default(x, [1])[0],
                **LINE,
                **REDUCES,
                **EXTREME,
            ),
            of(
                "indices",
                lambda x, m: m(x)[0],
                lambda: nn.AdaptiveMaxPool2d(2, return_indices=True),
                refused="argmax indices",
            ),
        ),
    ),
    Case(
        "interpolate",
        tuple(
            replace(sample, window=True, nan=False)
            for sample in (
                to("nearest", lambda: nn.Upsample(scale_factor=2)),
                to("nearest-down", lambda: nn.Upsample(size=(2, 4))),
                to("module-nearest", lambda: nn.UpsamplingNearest2d(scale_factor=2)),
                to("module-bilinear", lambda: nn.UpsamplingBilinear2d(size=5)),
                of("half", lambda x: F.interpolate(x, scale_factor=0.5), **FOUR),
                of("uneven", lambda x: F.interpolate(x, scale_factor=(1.5, 0.7))),
                of(
                    "uneven-recomputed",
                    lambda x: F.interpolate(x, scale_factor=1.5, recompute_scale_factor=True),
                ),
                of("exact", lambda x: F.interpolate(x, size=(4, 2), mode="nearest-exact")),
                of("bilinear", lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
                of("bilinear-down", lambda x: F.interpolate(x, scale_factor=0.6, mode="bilinear")),
                of(
                    "corners",
                    lambda x: F.interpolate(x, size=(5, 2), mode="bilinear", align_corners=True),
                ),
                of(
                    "antialias",
                    lambda x: F.interpolate(x, size=2, mode="bilinear", antialias=True),
                ),
                of("bicubic", lambda x: F.interpolate(x, size=(4, 2), mode="bicubic"), **FOUR),
                of(
                    "bicubic-antialias",
                    lambda x: F.interpolate(x, size=2, mode="bicubic", antialias=True),
                    **FOUR,
                ),
                of("area", lambda x: F.interpolate(x, size=2, mode="area")),
                of(
                    "linear-1d", lambda x: F.interpolate(x, scale_factor=1.5, mode="linear"), **LINE
                ),
                of("nearest-1d", lambda x: F.interpolate(x, size=4), **LINE),
                of(
                    "trilinear",
                    lambda x: F.interpolate(x, scale_factor=(1, 2, 1), mode="trilinear"),
                    **CUBE,
                ),
                after(
                    two, of("bilinear", lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"))
                ),
                after(padded, of("bilinear", lambda x: F.interpolate(x, size=3, mode="bilinear"))),
                of(
                    "global",
                    lambda x: F.interpolate(
                        pooled(x), size=(3, 3), mode="bilinear", align_corners=True
                    ),
                ),
            )
        ),
    ),
    Case(
        "upsample_nearest",
        (
            of("vec", lambda x: aten.upsample_nearest2d.vec(x, None, [2.0, 1.0]), **WIN),
            of("size", lambda x: aten.upsample_nearest2d.vec(x, [4, 2], None), **WIN),
            of("default", lambda x: aten.upsample_nearest2d.default(x, [4, 2]), **WIN),
            of(
                "scales",
                lambda x: aten.upsample_nearest2d.default(x, [4, 2], 1.5, 0.7),
                **WIN,
            ),
            of("1d", lambda x: aten.upsample_nearest1d.vec(x, None, [1.5]), **LINE, **WIN),
            of(
                "scale-1d",
                lambda x: aten.upsample_nearest1d.default(x, [3], scales=0.6),
                **LINE,
                **WIN,
            ),
            of(
                "scale-h",
                lambda x: aten.upsample_nearest2d.default(x, [4, 2], scales_h=1.5),
                **WIN,
            ),
            of("exact", lambda x: aten._upsample_nearest_exact2d.vec(x, [4, 2], None), **WIN),
            of(
                "exact-1d",
                lambda x: aten._upsample_nearest_exact1d.default(x, [3], scales=0.6),
                **LINE,
                **WIN,
            ),
        ),
    ),
    Case(
        "upsample_linear",
        (
            of(
                "vec",
                lambda x: aten.upsample_bilinear2d.vec(x, None, False, [2.0, 1.5]),
                **WIN,
                nan=False,
            ),
            of(
                "corners",
                lambda x: aten.upsample_bilinear2d.vec(x, [5, 2], True, None),
                **WIN,
                nan=False,
            ),
            of(
                "default",
                lambda x: aten.upsample_bilinear2d.default(x, [4, 2], False),
                **WIN,
                nan=False,
            ),
            of(
                "scales",
                lambda x: aten.upsample_bilinear2d.default(x, [4, 2], False, 1.5, 0.7),
                **WIN,
                nan=False,
            ),
            of(
                "1d",
                lambda x: aten.upsample_linear1d.vec(x, None, False, [1.5]),
                **LINE,
                **WIN,
                nan=False,
            ),
            of(
                "antialias",
                lambda x: aten._upsample_bilinear2d_aa.vec(x, [2, 5], False, None),
                **FOUR,
                **WIN,
                nan=False,
            ),
            of(
                "antialias-scales",
                lambda x: aten._upsample_bilinear2d_aa.default(x, [2, 3], False, 0.55, 0.9),
                **FOUR,
                **WIN,
                nan=False,
            ),
        ),
    ),
    Case(
        "upsample_bicubic",
        (
            of(
                "vec",
                lambda x: aten.upsample_bicubic2d.vec(x, [3, 5], False, None),
                **FOUR,
                **WIN,
                nan=False,
            ),
            of(
                "default",
                lambda x: aten.upsample_bicubic2d.default(x, [4, 2], True),
                **WIN,
                nan=False,
            ),
            of(
                "antialias",
                lambda x: aten._upsample_bicubic2d_aa.vec(x, [2, 5], False, None),
                **FOUR,
                **WIN,
                nan=False,
            ),
            *(
                of(
                    "lanczos",
                    lambda x: aten._upsample_lanczos2d_aa.vec(x, [2, 3], False, None),
                    shape=(1, 5, 4),
                    **WIN,
                    nan=False,
                )
                for _ in range(hasattr(aten, "_upsample_lanczos2d_aa"))
            ),
        ),
    ),
)


# ---------------------------------------------------------------------------------- same cell

_TINY = {"shape": (1, 2, 2)}
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "Threshold": (0.5, 0.1),
    "threshold": (0.5, 0.1),
    "clamp": (0.3, 0.7),
    "clip": (0.3, 0.7),
    "clamp_min": (0.4,),
    "clamp_max": (0.6,),
    "to": (torch.float32,),
    "type": (torch.float32,),
}
_MODULES = """
    ReLU ReLU6 LeakyReLU ELU CELU SELU GELU SiLU Mish Sigmoid Tanh Hardsigmoid Hardswish Hardtanh
    Softplus Softsign LogSigmoid Softshrink Hardshrink Tanhshrink Threshold PReLU Identity
"""
_FUNCTIONS = """
    relu relu6 leaky_relu elu celu selu gelu silu mish hardsigmoid hardswish hardtanh softplus
    softsign logsigmoid softshrink hardshrink tanhshrink threshold sigmoid tanh exp expm1 log log1p
    log2 log10 sqrt rsqrt square abs absolute neg negative positive reciprocal sign sin cos tan asin
    acos atan sinh cosh erf erfc expit logit clamp clip clamp_min clamp_max round floor ceil trunc
    frac nan_to_num isnan isinf isfinite logical_not detach clone
"""
_METHODS = """
    relu sigmoid tanh exp expm1 log log1p log2 log10 sqrt rsqrt square abs absolute neg negative
    positive reciprocal sign sin cos tan asin acos atan sinh cosh erf erfc logit clamp clip
    clamp_min clamp_max round floor ceil trunc frac nan_to_num isnan isinf isfinite logical_not
    detach clone contiguous to type float half bfloat16 double cpu long bool
"""


def _elementwise() -> Iterator[Sample]:
    for name in _MODULES.split():
        build, given = getattr(nn, name), _ARGUMENTS.get(name, ())
        yield to(name, lambda build=build, given=given: build(*given), **_TINY)
    for name in _FUNCTIONS.split():
        home = next(home for home in (F, torch, torch.special) if hasattr(home, name))
        function, given = getattr(home, name), _ARGUMENTS.get(name, ())
        yield of(name, lambda x, f=function, given=given: f(x, *given), **_TINY)
    for name in _METHODS.split():
        given = _ARGUMENTS.get(name, ())
        yield of(f".{name}", lambda x, n=name, g=given: getattr(x, n)(*g), **_TINY)
    yield of("prelu", lambda x, m: F.prelu(x - 0.5, m.a), lambda: Weights((2,)))
    yield of("-x", lambda x: -x, **_TINY)
    yield of(".data", lambda x: x.data, **_TINY)
    yield of(".real", lambda x: x.real, **_TINY)
    yield of("+x", lambda x: +x, **_TINY)
    yield of("abs(x)", lambda x: abs(x), **_TINY)
    yield of("~x", lambda x: ~(x > 0.5), **_TINY)
    yield of("bitwise_not", lambda x: torch.bitwise_not(x > 0.5), **_TINY)
    yield of("type_as", lambda x: x.type_as(torch.ones(1)), **_TINY)
    yield of("type_as-image", lambda x: x.type_as(x), **_TINY)
    yield of("aten", lambda x: aten.relu.default(x), **_TINY)
    yield to("in-place", lambda: nn.ReLU(inplace=True), **_TINY)
    yield after(two, to("relu", nn.ReLU))
    yield after(pooled, to("relu", nn.ReLU))
    yield of("computed", lambda x: torch.clamp(x, x * 0.5), refused="computed from the image")


_depth_file = sys.modules[torchvision.ops.StochasticDepth.__module__]

POINTWISE = (
    Case("elementwise", tuple(_elementwise())),
    Case(
        "dropout",
        (
            to("module", nn.Dropout),
            to("channels", nn.Dropout2d),
            to("alpha", nn.AlphaDropout),
            of("function", lambda x: F.dropout(x, 0.5, training=False)),
            of("never", lambda x: F.dropout(x, 0.0)),
            of("always", lambda x: F.dropout(x, 0.5), refused="drops elements at random"),
        ),
    ),
    Case(
        "rrelu",
        (
            to("module", nn.RReLU),
            of("function", lambda x: F.rrelu(x)),
            of("always", lambda x: F.rrelu(x, training=True), refused="at random"),
        ),
    ),
    Case(
        "stochastic_depth",
        (
            to("module", lambda: torchvision.ops.StochasticDepth(0.5, "row")),
            # torch.fx keeps it whole where it is found in its own file
            of("function", lambda x: _depth_file.stochastic_depth(x, 0.5, "row", False)),
            of(
                "always",
                lambda x: _depth_file.stochastic_depth(x, 0.5, "row"),
                refused="drops whole branches at random",
            ),
            of(
                "traced-into",
                lambda x: torchvision.ops.stochastic_depth(x, 0.5, "row"),
                refused="random",
            ),
        ),
    ),
    Case(
        "constant_like",
        (
            of("zeros", lambda x: torch.zeros_like(x)),
            of("ones", lambda x: torch.ones_like(x)),
            of("full", lambda x: torch.full_like(x, 3.0)),
            of("new_zeros", lambda x: x.new_zeros(x.shape[0], 2, 3, 3)),
            of("new_ones", lambda x: x.new_ones(x.size())),
            of("new_full", lambda x: x.new_full((x.shape[0], 1), 2.0)),
        ),
    ),
)


# ---------------------------------------------------------------------------------- statistics

BATCH_STATISTICS = "statistics of the batch"
ATTENDS = "a softmax over positions is attention"


def _running(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, m: function(x, m.running_mean, m.running_var, m.weight, m.bias)


STATISTICS = (
    Case(
        "batch_norm",
        (
            to("module", lambda: nn.BatchNorm2d(2)),
            to("1d", lambda: nn.BatchNorm1d(2), **LINE),
            to("3d", lambda: nn.BatchNorm3d(2), **CUBE),
            of("function", _running(F.batch_norm), lambda: nn.BatchNorm2d(2)),
            after(two, to("module", lambda: nn.BatchNorm2d(4))),
            to("foreign", foreign("timm.layers.norm_act.BatchNormAct2d", 2), **TIMM),
            to(
                "batch",
                lambda: nn.BatchNorm2d(2, track_running_stats=False),
                refused=BATCH_STATISTICS,
            ),
            of(
                "training",
                lambda x, m: F.batch_norm(x, m.running_mean, m.running_var, training=True),
                lambda: nn.BatchNorm2d(2),
                refused=BATCH_STATISTICS,
            ),
        ),
    ),
    Case(
        "native_batch_norm",
        (
            of(
                "torch",
                lambda x, m: torch.batch_norm(
                    x, m.weight, m.bias, m.running_mean, m.running_var, False, 0.1, 1e-5, False
                ),
                lambda: nn.BatchNorm2d(2),
            ),
            of(
                "batch",
                lambda x, m: torch.batch_norm(
                    x, m.weight, m.bias, None, None, True, 0.1, 1e-5, False
                ),
                lambda: nn.BatchNorm2d(2),
                refused=BATCH_STATISTICS,
            ),
        ),
    ),
    Case(
        "instance_norm",
        (
            to("module", lambda: nn.InstanceNorm2d(2), **STATISTIC),
            to("affine-1d", lambda: nn.InstanceNorm1d(2, affine=True), **LINE, **STATISTIC),
            to("3d", lambda: nn.InstanceNorm3d(2), **CUBE, **STATISTIC),
            to("running", lambda: nn.InstanceNorm2d(2, track_running_stats=True)),
            of("function", lambda x: F.instance_norm(x), **STATISTIC),
            of(
                "function-default",
                lambda x, m: F.instance_norm(x, m.running_mean, m.running_var),
                lambda: nn.BatchNorm2d(2),
                **STATISTIC,
            ),
            of(
                "function-running",
                lambda x, m: F.instance_norm(
                    x, m.running_mean, m.running_var, use_input_stats=False
                ),
                lambda: nn.BatchNorm2d(2),
            ),
            after(two, to("module", lambda: nn.InstanceNorm2d(4), **STATISTIC)),
        ),
    ),
    Case(
        "native_instance_norm",
        (
            of(
                "torch",
                lambda x: torch.instance_norm(x, None, None, None, None, True, 0.1, 1e-5, False),
                **STATISTIC,
            ),
            of(
                "running",
                lambda x, m: torch.instance_norm(
                    x, None, None, m.running_mean, m.running_var, False, 0.1, 1e-5, False
                ),
                lambda: nn.BatchNorm2d(2),
            ),
        ),
    ),
    Case(
        "group_norm",
        (
            to("module", lambda: nn.GroupNorm(1, 2), **STATISTIC),
            to("groups", lambda: nn.GroupNorm(2, 2), **STATISTIC),
            of("function", lambda x: F.group_norm(x, 1), **STATISTIC),
            after(two, to("module", lambda: nn.GroupNorm(2, 4), **STATISTIC)),
            after(pooled, to("module", lambda: nn.GroupNorm(1, 2))),
        ),
    ),
    Case(
        "layer_norm",
        (
            to("image", lambda: nn.LayerNorm((2, 3, 3)), **STATISTIC),
            to("row", lambda: nn.LayerNorm(3), **STATISTIC),
            after(last, to("channels", lambda: nn.LayerNorm(2))),
            after(last, to("rms", lambda: nn.RMSNorm(2))),
            of("function", lambda x: F.layer_norm(last(x), (2,))),
            of("rms-function", lambda x: F.rms_norm(x, (3, 3)), **STATISTIC),
            of("mixed", lambda x: F.layer_norm(last(two(x)), (4,)), **STATISTIC),
        ),
    ),
    Case(
        "local_response_norm",
        (
            to("module", lambda: nn.LocalResponseNorm(2)),
            of("function", lambda x: F.local_response_norm(x, 3)),
            after(two, to("module", lambda: nn.LocalResponseNorm(3), **STATISTIC)),
        ),
    ),
    Case(
        "normalize",
        (
            of("channels", lambda x: F.normalize(x)),
            of("grid", lambda x: F.normalize(x, dim=(2, 3)), **STATISTIC),
            of("row", lambda x: F.normalize(x, p=1.0, dim=-1), **STATISTIC),
            of("batch", lambda x: F.normalize(x, dim=0), refused=BATCH),
        ),
    ),
    Case(
        "softmax",
        (
            to("module", lambda: nn.Softmax(1)),
            to("log", lambda: nn.LogSoftmax(-3)),
            to("min", lambda: nn.Softmin(1)),
            of("function", lambda x: F.softmax(x, dim=1)),
            of("torch", lambda x: torch.log_softmax(x, 1)),
            of("method", lambda x: x.softmax(1)),
            of("global", lambda x: x.mean((2, 3)).softmax(-1)),
            of("positions", lambda x: x.softmax(2), refused=ATTENDS),
            after(two, to("module", lambda: nn.Softmax(1), refused=ATTENDS)),
            to("no-axis", lambda: nn.Softmax(None), refused="chooses its axis by the rank"),
        ),
    ),
    Case(
        "softmax2d",
        (
            to("module", nn.Softmax2d),
            after(two, to("module", nn.Softmax2d, refused=ATTENDS)),
        ),
    ),
    Case(
        "glu",
        (
            to("module", lambda: nn.GLU(1)),
            of("function", lambda x: F.glu(x, 1)),
            of("positions", lambda x: F.glu(x), **FOUR, refused="multiplies distant elements"),
        ),
    ),
)


# --------------------------------------------------------------------------------------- joins


def other(x: Tensor) -> Tensor:
    """A grid whose activity is another than the image's."""
    return x.flip(-1)


def _changed_by_and(a: Tensor, b: Tensor) -> Tensor:
    held = a
    a &= b
    return held


def per_channel() -> nn.Module:
    return Weights((1, 2, 1, 1))


RANKS = "different ranks"
STRETCHED = "it repeats a position along an axis"

JOINS = (
    Case(
        "add",
        (
            of("grids", lambda x: x + other(x)),
            of("difference", lambda x: x - other(x)),
            of("torch", lambda x: torch.add(x, other(x), alpha=2)),
            of("sub", lambda x: torch.sub(x, other(x))),
            of("method", lambda x: x.add(other(x))),
            of("aten", lambda x: aten.add.Tensor(x, other(x))),
            of("pieces", lambda x: (p := x.chunk(2, 3)[::-1])[0] - p[1], **FOUR),
            of("itself", lambda x: x + x),
            of("number", lambda x: 1 + x),
            of("from-number", lambda x: 1 - x),
            of("parameter", lambda x, m: x + m.a, per_channel),
            of("in-place", lambda x: x.clone().add_(other(x))),
            of("operator", lambda x: torch.subtract(x, 2)),
            of("per-channel", lambda x: two(x) + two(x).flip(2)),
            of("grid-and-channels", lambda x: x[:, :1] + two(x)),
            of("global", lambda x: x + pooled(x), **MEETS),
            of("globals", lambda x: pooled(x) + corner(x), **GLOBALS),
            of("row-and-column", lambda x: x.mean(2, keepdim=True) + x.mean(3, keepdim=True)),
            of("padded", lambda x: padded(x) + padded(x).flip(3)),
            of("padded-both", lambda x: padded(x) + F.pad(x.flip(3), (1, 0, 1, 0))),
            of("ranks", lambda x: x + x.mean(1), shape=(13, 3, 3), refused=RANKS),
            of(
                "stretched",
                lambda x, m: x + m.a,
                lambda: Weights((1, 1, 3, 3)),
                shape=(2, 1, 3),
                refused=STRETCHED,
            ),
        ),
    ),
    Case(
        "mul",
        (
            of("grids", lambda x: x * other(x), **PRODUCT),
            of("quotient", lambda x: x / other(x), **PRODUCT),
            of("floor", lambda x: (9 * x) // other(x), **PRODUCT),
            of("remainder", lambda x: x % other(x), **PRODUCT),
            of("torch", lambda x: torch.div(x, other(x), rounding_mode="floor"), **PRODUCT),
            of("method", lambda x: x.mul(other(x)), **PRODUCT),
            of("aten", lambda x: aten.mul.Tensor(x, other(x)), **PRODUCT),
            of("itself", lambda x: x * x),
            of("number", lambda x: 2 * x),
            of("by-number", lambda x: x / 3),
            of("of-number", lambda x: 1 / x),
            of("parameter", lambda x, m: x * m.a, per_channel),
            of("squeeze-excite", lambda x: x * pooled(x), **MEETS),
            of("globals", lambda x: pooled(x) * corner(x), **PRODUCT),
            of("row", lambda x: x * x.mean(3, keepdim=True), **PRODUCT),
            of("per-channel", lambda x: two(x) * x[:, :1], **PRODUCT),
            of("ranks", lambda x: x * x.mean(1), shape=(13, 3, 3), refused=RANKS),
        ),
    ),
    Case(
        "pow",
        (
            of("square", lambda x: x**2),
            of("base", lambda x: 2**x),
            of("torch", lambda x: torch.pow(x, 0.5)),
            of("method", lambda x: x.pow(3)),
            of("grids", lambda x: x ** other(x), **PRODUCT),
            of("global", lambda x: x ** pooled(x), **MEETS),
            of("by-name", lambda x: torch.pow(input=x, exponent=other(x)), **PRODUCT),
        ),
    ),
    Case(
        "compare",
        (
            of("number", lambda x: x > 0.5),
            of("torch", lambda x: torch.le(x, 0.5)),
            of("method", lambda x: x.ge(0.5)),
            of("grids", lambda x: x < other(x), **PRODUCT),
            of("global", lambda x: x > pooled(x), **MEETS),
            of("equal", lambda x: x == 0),
        ),
    ),
    Case(
        "addcmul",
        (
            of("constants", lambda x, m: torch.addcmul(x, m.a, m.a), per_channel),
            of("factor", lambda x, m: torch.addcmul(m.a, x, m.a), per_channel),
            of("quotient", lambda x, m: x.addcdiv(m.a, m.a, value=0.5), per_channel),
            of("sum", lambda x, m: torch.addcmul(x, other(x), m.a), per_channel),
            of("product", lambda x, m: torch.addcmul(m.a, x, other(x)), per_channel, **PRODUCT),
            of("several", lambda x: torch.addcmul(x, x, x), refused="three tensors"),
        ),
    ),
    Case(
        "logical",
        (
            of("and", lambda x: (x > 0.5) & (other(x) > 0.3), **PRODUCT),
            of("and-torch", lambda x: torch.bitwise_and(x > 0.5, other(x) > 0.3), **PRODUCT),
            of("or", lambda x: torch.logical_or(x > 0.5, other(x) > 0.3), **PRODUCT),
            of("xor", lambda x: (x > 0.5).logical_xor(x < 0.7)),
            of("constant", lambda x: (x > 0.5) | True, **INSTEAD),
            of("in-place", lambda x: _changed_by_and(x > 0.5, other(x) > 0.3), **PRODUCT),
        ),
    ),
    Case(
        "where",
        (
            of("constants", lambda x, m: torch.where(x > 0.5, m.a, 0.0), per_channel),
            of("choice", lambda x: torch.where(x > 0.5, other(x), 0.0), **MIXED),
            of("branches", lambda x, m: torch.where(m.a > 0.5, x, other(x)), per_channel, **MIXED),
            of(
                "by-name",
                lambda x: torch.where(condition=x > 0.5, input=other(x), other=torch.zeros(1)),
                **MIXED,
            ),
            of("several", lambda x: torch.where(x > 0.5, x, other(x)), refused="three tensors"),
        ),
    ),
    Case(
        "masked_fill",
        (
            of("method", lambda x: x.masked_fill(x > 0.5, 0.0)),
            of("torch", lambda x: torch.masked_fill(x, other(x) > 0.5, 0.0), **MIXED),
            of("constant", lambda x, m: x.masked_fill(m.a > 0.5, 2.0), per_channel, **INSTEAD),
        ),
    ),
    Case(
        "lerp",
        (
            of("grids", lambda x: torch.lerp(x, other(x), 0.3), **MIXED),
            of("method", lambda x, m: x.lerp(m.a.expand(1, 2, 3, 3), 0.3), per_channel),
            of(
                "weight",
                lambda x, m: torch.lerp(m.a.expand(1, 2, 3, 3), m.a.expand(1, 2, 3, 3), x),
                per_channel,
            ),
            of("several", lambda x: torch.lerp(x, other(x), x), refused="three tensors"),
        ),
    ),
    *(
        Case(
            kind,
            (
                of("grids", lambda x, f=f: f(x, other(x)), fill=fill),
                of("f", lambda x, f=g: f(x, other(x)), fill=fill),
                of("method", lambda x, n=kind: getattr(x, n)(other(x)), fill=fill),
                of("itself", lambda x, f=f: f(x, x.clone())),
                of("parameter", lambda x, m, f=f: f(x, m.a), per_channel),
                of("global", lambda x, f=f: f(x, pooled(x)), **MEETS),
                of("globals", lambda x, f=f: f(pooled(x), corner(x)), **GLOBALS),
                of("per-channel", lambda x, f=f: f(two(x), x[:, :1]), fill=fill),
            ),
        )
        for kind, f, g, fill in (
            ("maximum", torch.maximum, torch.fmax, -math.inf),
            ("minimum", torch.minimum, torch.fmin, math.inf),
        )
    ),
)


# ---------------------------------------------------------------------------------- reductions


def reductions(f: Callable[..., Tensor], **fields: Any) -> tuple[Sample, ...]:
    """The same over every choice of axes that has a meaning of its own."""
    everything = of("everything", lambda x: f(x, dim=(1, 2, 3)), **fields, **REDUCES)
    return (
        *((everything,) if f is not torch.norm else ()),  # a matrix norm takes two axes
        of("grid", lambda x: f(x, dim=(2, 3)), **fields, **REDUCES),
        of("kept", lambda x: f(x, dim=(-1, -2), keepdim=True), **fields, **REDUCES),
        of("rows", lambda x: f(x, dim=2), **fields),
        of("channels", lambda x: f(x, dim=1, keepdim=True), **fields),
        of("channels-dropped", lambda x: f(x, dim=1), **fields),
        of("line", lambda x: f(x, dim=2), **LINE, **fields, **REDUCES),
        after(two, of("grid", lambda x: f(x, dim=(2, 3)), **fields)),
        after(two, of("channels", lambda x: f(x, dim=1), **fields)),
        after(padded, of("grid", lambda x: f(x, dim=(2, 3)), **fields, **REDUCES)),
        after(padded, of("rows", lambda x: f(x, dim=2), **fields)),
        of("batch", lambda x: f(x, dim=0), refused=BATCH),
    )


FRONT = "it adds axes in front of the batch"
PRODUCTS = "combines positions by weights"


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _einsum(name: str, equation: str, weights: tuple[int, ...], **fields: Any) -> Sample:
    return of(name, lambda x, m: torch.einsum(equation, x, m.a), lambda: Weights(weights), **fields)


def extremum(name: str, fill: float) -> tuple[Sample, ...]:
    """``torch.max`` and ``min`` are three operations each."""
    f: Callable[..., Any] = getattr(torch, name)
    return (
        of("channels", lambda x: f(x, 1)[0], fill=fill),
        of("channels-values", lambda x: f(x, 1, keepdim=True).values, fill=fill),
        of("channels-both", lambda x: _both(f(x, 1)), fill=fill),
        of("method", lambda x: getattr(x, name)(dim=1)[0], fill=fill),
        of("grids", lambda x: f(x, other(x)), fill=fill),
        of("global", lambda x: f(x.mean((2, 3)), dim=-1)[0]),
        of("positions", lambda x: f(x, 2)[0], fill=fill),
        of("line", lambda x: f(x, 2).values, fill=fill, **LINE, **REDUCES),
        of("places", lambda x: _both(f(x, 2)), refused="indices of the extremum"),
        of("all", lambda x: f(x), refused=BATCH),
    )


def _both(pair: Any) -> tuple[Tensor, Tensor]:
    return pair[0], pair[1]


REDUCTIONS = (
    Case(
        "linear",
        (
            of("flat", lambda x, m: m(x.flatten(1)), lambda: nn.Linear(18, 2), **REDUCES),
            of("global", lambda x, m: m(x.mean((2, 3))), lambda: nn.Linear(2, 3)),
            to("row", lambda: nn.Linear(3, 2)),
            after(last, to("channels", lambda: nn.Linear(2, 3))),
            of("channels-mixed", lambda x, m: m(last(two(x))), lambda: nn.Linear(4, 3)),
            of("line", lambda x, m: m(x), lambda: nn.Linear(6, 1), **LINE, **REDUCES),
            of("function", lambda x, m: F.linear(x, m.a), lambda: Weights((2, 3))),
            of("padded", lambda x, m: m(padded(x)), lambda: nn.Linear(4, 1)),
            of(
                "padded-flat",
                lambda x, m: m(padded(x).flatten(1)),
                lambda: nn.Linear(32, 1),
                **REDUCES,
            ),
            of("dynamic", lambda x: F.linear(x, x[0, 0]), refused="computed from the image"),
        ),
    ),
    Case(
        "matmul",
        (
            of("operator", lambda x, m: last(x) @ m.a, lambda: Weights((2, 3))),
            of("vector", lambda x, m: torch.matmul(last(x), m.a), lambda: Weights((2,))),
            of("mixed", lambda x, m: last(two(x)).matmul(m.a), lambda: Weights((4, 3))),
            of("global", lambda x, m: x.mean((2, 3)).mm(m.a), lambda: Weights((2, 3))),
            of("flat", lambda x, m: x.flatten(1) @ m.a, lambda: Weights((18, 2)), **REDUCES),
            of("row", lambda x, m: x @ m.a, lambda: Weights((3, 2))),
            of("column", lambda x, m: m.a @ x, lambda: Weights((2, 3))),
            of("column-vector", lambda x, m: m.a @ x, lambda: Weights((3,))),
            of("per-channel", lambda x, m: x @ m.a, lambda: Weights((2, 3, 1))),
            of("left", lambda x, m: m.a @ tokens(x).mT, lambda: Weights((3, 2))),
            of(
                "bmm",
                lambda x, m: tokens(x).bmm(m.a.expand(x.shape[0], 2, 3)),
                lambda: Weights((1, 2, 3)),
            ),
            of("aten", lambda x, m: aten.matmul.default(last(x), m.a), lambda: Weights((2, 3))),
            of("products", lambda x: x @ x.transpose(2, 3), refused=PRODUCTS),
            of("attention", lambda x: tokens(x).bmm(tokens(x).transpose(1, 2)), refused=PRODUCTS),
            of(
                "batch", lambda x, m: m.a @ x.mean((2, 3)), lambda: Weights((13, 13)), refused=BATCH
            ),
            of("front", lambda x, m: x @ m.a, lambda: Weights((1, 1, 1, 3, 2)), refused=FRONT),
            of(
                "stretched",
                lambda x, m: x @ m.a,
                lambda: Weights((2, 3, 1)),
                shape=(1, 3, 3),
                refused=STRETCHED,
            ),
        ),
    ),
    Case(
        "addmm",
        (
            of(
                "torch",
                lambda x, m: torch.addmm(m.b, x.mean((2, 3)), m.a),
                lambda: Weights((2, 3), (3,)),
            ),
            of(
                "baddbmm",
                lambda x, m: torch.baddbmm(m.b, tokens(x), m.a.expand(x.shape[0], 2, 3)),
                lambda: Weights((1, 2, 3), (1, 1, 3)),
            ),
            of(
                "bias",
                lambda x, m: torch.addmm(x.mean((2, 3)), x.mean((2, 3)), m.a),
                lambda: Weights((2, 2)),
                refused="computed from the image",
            ),
        ),
    ),
    Case(
        "einsum",
        (
            _einsum("channels", "nchw,ck->nkhw", (2, 3)),
            _einsum("last", "nchw,kc->nhwk", (3, 2)),
            _einsum("dots", "...hw,wk->...hk", (3, 2)),
            _einsum("rows", "nchw,hk->nckw", (3, 2)),
            _einsum("everything", "nchw,chwk->nk", (2, 3, 3, 2), **REDUCES),
            _einsum("grid", "nchw,hw->nc", (3, 3), **REDUCES),
            _einsum("scaled", "nchw,c->nchw", (2,), **INSTEAD),
            _einsum("turned", "n c h w, c -> n w h c", (2,)),
            _einsum("implicit", "abcd,ed", (2, 3)),
            of("alone", lambda x: torch.einsum("nchw->nhw", [x])),
            of(
                "mixed",
                lambda x, m: torch.einsum("nchw,ck->nkhw", two(x), m.a),
                lambda: Weights((4, 3)),
            ),
            of("products", lambda x: torch.einsum("nchw,nckw->nhk", x, x), refused=PRODUCTS),
            of("diagonal", lambda x: torch.einsum("ncii->nci", x), refused="a diagonal"),
            of("batch", lambda x: torch.einsum("nchw->chw", x), refused=BATCH),
        ),
    ),
    Case(
        "mean",
        (
            *reductions(torch.mean),
            of("method", lambda x: x.mean([2, 3]), **REDUCES),
            of("axis", lambda x: x.mean(axis=(2, 3)), **REDUCES),
            of("numpy", lambda x: torch.mean(a=x, axis=2, keepdims=True)),
            of("all", lambda x: x.mean(), refused=BATCH),
        ),
    ),
    Case("sum", (*reductions(torch.sum), of("method", lambda x: x.sum(-1)))),
    Case(
        "spread",
        (
            *(replace(s, name=f"std-{s.name}") for s in reductions(torch.std)),
            of("var", lambda x: x.var((2, 3)), **REDUCES),
            of("biased", lambda x: torch.var(x, (2, 3), unbiased=False), **REDUCES),
            of("method", lambda x: x.std(2)),
        ),
    ),
    Case("logsumexp", (*reductions(torch.logsumexp), of("method", lambda x: x.logsumexp(2)))),
    Case(
        "norm",
        (
            *reductions(torch.norm),
            of("method", lambda x: x.norm(dim=1, keepdim=True)),
            of("one", lambda x: x.norm(1, 2)),
        ),
    ),
    Case(
        "vector_norm",
        (*reductions(torch.linalg.vector_norm), of("norm", lambda x: torch.linalg.norm(x, dim=1))),
    ),
    Case(
        "amax",
        (
            *reductions(torch.amax, **EXTREME),
            of("method", lambda x: x.amax((2, 3)), **EXTREME, **REDUCES),
        ),
    ),
    Case("amin", (*reductions(torch.amin, **LOW), of("method", lambda x: x.amin(3), **LOW))),
    Case("max", extremum("max", -math.inf)),
    Case("min", extremum("min", math.inf)),
)


# -------------------------------------------------------------------------------------- layout

CUT = "mixes spatial and non-spatial axes"
TWICE = "at several positions"
PICKED = "something else than a list of indices"


def pads(kind: str, module: str, *args: Any) -> Case:
    """The padding modules of one mode, in one, two and three dimensions."""
    build = {d: getattr(nn, f"{module}{d}d") for d in (1, 2, 3)}
    return Case(
        kind,
        (
            to("all", lambda: build[2](1, *args)),
            to("sides", lambda: build[2]((1, 0, 0, 2), *args)),
            to("cropped", lambda: build[2]((-1, 1, 1, 0), *args)),
            to("1d", lambda: build[1]((2, 1), *args), **LINE),
            to("3d", lambda: build[3]((1, 0, 0, 1, 1, 1), *args), **CUBE),
            after(two, to("sides", lambda: build[2]((1, 0, 2, 0), *args))),
            after(padded, to("sides", lambda: build[2]((1, 0, 0, 1), *args))),
        ),
    )


LAYOUT = (
    Case(
        "reshape",
        (
            of("flat", lambda x: x.reshape(x.shape[0], -1)),
            of("torch", lambda x: torch.reshape(x, (-1, 2, 9))),
            of("view", lambda x: x.view(x.size(0), 1, 2, 3, 3)),
            of("view_as", lambda x: x.view_as(torch.ones_like(x))),
            of("rows-cut", lambda x: x.view(-1, 1, 2, 2, 2, 2), **FOUR),
            of("groups", lambda x: two(x).view(x.shape[0], 2, 2, 3, 3)),
            of("merged", lambda x: two(x).reshape(x.shape[0], 4, -1)),
            of("and-back", lambda x: x.flatten(2).view(-1, 2, 3, 3)),
            of("aten", lambda x: aten.view.default(x, [-1, 2, 9])),
            of("batch", lambda x: x.reshape(1, -1, 3, 3), refused=BATCH),
            of("interleaved", lambda x: x.reshape(x.shape[0], 3, 6), refused=CUT),
            of("memory", lambda x: x.view(torch.int64), refused="reinterprets memory"),
        ),
    ),
    Case(
        "flatten",
        (
            of("torch", lambda x: torch.flatten(x, 1)),
            of("method", lambda x: x.flatten(2)),
            of("middle", lambda x: x.flatten(1, 2)),
            after(two, of("channels", lambda x: x.flatten(1))),
            after(pooled, of("global", lambda x: x.flatten(1))),
            of("batch", lambda x: x.flatten(), refused=BATCH),
        ),
    ),
    Case(
        "flatten_module",
        (
            to("default", nn.Flatten),
            to("grid", lambda: nn.Flatten(2)),
            to("batch", lambda: nn.Flatten(0, 1), refused=BATCH),
        ),
    ),
    Case(
        "unflatten",
        (
            of("torch", lambda x: torch.unflatten(x, 1, (2, 1))),
            of("method", lambda x: x.unflatten(2, (2, 2)), **FOUR),
            of("last", lambda x: x.unflatten(-1, (1, 3))),
        ),
    ),
    Case(
        "unflatten_module",
        (
            to("channels", lambda: nn.Unflatten(1, (1, 2))),
            to("grid", lambda: nn.Unflatten(3, (2, 2)), **FOUR),
            after(two, to("channels", lambda: nn.Unflatten(1, (2, 2)))),
        ),
    ),
    Case(
        "permute",
        (
            of("last", lambda x: x.permute(0, 2, 3, 1)),
            of("turned", lambda x: torch.permute(x, (0, 1, 3, 2))),
            after(two, of("method", lambda x: x.permute(0, -1, 1, 2))),
            of("batch", lambda x: x.permute(1, 0, 2, 3), refused=BATCH),
        ),
    ),
    Case(
        "transpose",
        (
            of("grid", lambda x: x.transpose(2, 3)),
            of("torch", lambda x: torch.transpose(x, 1, -1)),
            of("swapped", lambda x: x.swapaxes(1, 2)),
            of("batch", lambda x: x.transpose(0, 1), refused=BATCH),
        ),
    ),
    Case(
        "swap_last",
        (
            of("mT", lambda x: x.mT),
            of("tokens", lambda x: two(x).flatten(2).mT),
            of("adjoint", lambda x: torch.adjoint(x)),
            of("batch", lambda x: x.mean((2, 3)).mT, refused=BATCH),
        ),
    ),
    Case(
        "reverse_axes",
        (
            of("T", lambda x: x.mean((2, 3)).T, refused=BATCH),
            of("t", lambda x: x.mean((2, 3)).t(), refused=BATCH),
        ),
    ),
    Case(
        "movedim",
        (
            of("last", lambda x: x.movedim(1, -1)),
            of("several", lambda x: torch.movedim(x, (1, 2), (3, 1))),
            of("axis", lambda x: torch.moveaxis(x, 3, 1)),
        ),
    ),
    Case(
        "squeeze",
        (
            of("grid", lambda x: x.squeeze(2), shape=(2, 1, 4)),
            of("pooled", lambda x: x.mean(3, keepdim=True).squeeze(-1)),
            of("nothing", lambda x: torch.squeeze(x, 1)),
            of("channel", lambda x: x.squeeze(), shape=(1, 3, 3)),
        ),
    ),
    Case(
        "unsqueeze",
        (
            of("method", lambda x: x.unsqueeze(2)),
            of("last", lambda x: torch.unsqueeze(x, -1)),
            of("batch", lambda x: x.unsqueeze(0), refused=BATCH),
        ),
    ),
    Case(
        "expand",
        (
            of("channels", lambda x: x.expand(-1, 3, -1, -1), shape=(1, 3, 3)),
            of("global", lambda x: pooled(x).expand(-1, -1, 3, 2)),
            of("as", lambda x: pooled(x).expand_as(torch.ones_like(x))),
            of("as-image", lambda x: pooled(x).expand_as(x)),
            of(
                "constant-as-image",
                lambda x, m: m.a.expand_as(x),
                per_channel,
            ),
            of("positions", lambda x: x.expand(-1, -1, 3, -1), shape=(2, 1, 3), refused=TWICE),
            of("front", lambda x: x.expand(2, -1, -1, -1, -1), refused=FRONT),
        ),
    ),
    Case(
        "repeat",
        (
            of("channels", lambda x: x.repeat(1, 3, 1, 1), shape=(1, 3, 3)),
            of("global", lambda x: pooled(x).repeat(1, 1, 3, 2)),
            of("tile", lambda x: torch.tile(x, (1, 2, 1, 1)), shape=(1, 3, 3)),
            of("positions", lambda x: x.repeat(1, 1, 2, 1), refused="appears at several positions"),
        ),
    ),
    Case(
        "getitem",
        (
            of("slice", lambda x: x[:, :, 1:, :2]),
            of("step", lambda x: x[:, :, ::2, 1::2]),
            of("ellipsis", lambda x: x[..., 0]),
            of("channel", lambda x: x[:, 0]),
            of("new-axis", lambda x: x[:, :, None, 1]),
            of("negative", lambda x: x[:, :, -2:, -1]),
            of("by-size", lambda x: x[:, :, : x.shape[2] // 2]),
            after(two, of("channels", lambda x: x[:, 1:3])),
            after(padded, of("slice", lambda x: x[:, :, :2])),
            of("batch", lambda x: x[0], refused=BATCH),
            of("part-of-batch", lambda x: x[:1], refused=BATCH),
            of("list", lambda x: x[:, :, [0, 2]]),
            of("list-channels", lambda x: two(x)[:, [2, 1, -1]]),
            of("list-one", lambda x: x[:, [1, 0]]),
            of("list-new-axis", lambda x: x[:, 0, None, [2, 0, 0]]),
            of("tensor", lambda x: x[:, :, torch.tensor([1, 0])]),
            of("tensor-channels", lambda x: two(x)[:, torch.tensor([-1, 0]), 1:, None]),
            of("tensor-padded", lambda x: padded(x)[..., torch.tensor([3, 1, 0])]),
            of("tensor-one", lambda x: x[:, torch.tensor([1, 0, 1])]),
            of("lists", lambda x: x[:, :, [0, 1], [0, 2]], refused=PICKED),
            of("table", lambda x: x[:, :, torch.tensor([[0, 1], [0, 2]])], refused=PICKED),
            of("list-batch", lambda x: x[[0]], refused=BATCH),
            of(
                "by-value",
                lambda x: x[:, :, x[0, 0, 0].long()],
                refused="computed from the image",
            ),
        ),
    ),
    Case(
        "slice",
        (
            of("aten", lambda x: aten.slice.Tensor(x, 2, 1, 9223372036854775807)),
            of("step", lambda x: aten.slice.Tensor(x, -1, 0, 3, 2)),
            of("channels", lambda x: aten.slice.Tensor(x, 1, 1)),
            of("whole-batch", lambda x: aten.slice.Tensor(x, 0, 0, 9223372036854775807)),
            of("batch", lambda x: aten.slice.Tensor(x, 0, 1), refused=BATCH),
        ),
    ),
    Case(
        "index",
        (
            of("grid", lambda x: aten.index.Tensor(x, [None, None, torch.tensor([2, 0])])),
            of("channels", lambda x: aten.index.Tensor(two(x), [None, torch.tensor([3, 0])])),
            of("batch", lambda x: aten.index.Tensor(x, [torch.tensor([0])]), refused=BATCH),
            of(
                "lists",
                lambda x: aten.index.Tensor(x, [None, *[torch.tensor([1, 0])] * 2]),
                refused=PICKED,
            ),
        ),
    ),
    Case(
        "index_select",
        (
            of("torch", lambda x: torch.index_select(x, 2, torch.tensor([2, 0]))),
            of("method", lambda x: two(x).index_select(-3, torch.tensor([2, 0]))),
            of("batch", lambda x: x.index_select(0, torch.tensor([0])), refused=BATCH),
            of(
                "by-value",
                lambda x: x.index_select(2, x[0, 0, 0].long()),
                refused="computed from the image",
            ),
        ),
    ),
    Case(
        "narrow",
        (
            of("method", lambda x: x.narrow(2, 1, 2)),
            of("torch", lambda x: torch.narrow(x, -1, 0, 1)),
            of("from-the-end", lambda x: x.narrow(3, -1, 1)),
            of("batch", lambda x: x.narrow(0, 0, 1), refused=BATCH),
        ),
    ),
    Case(
        "select",
        (
            of("method", lambda x: x.select(3, 1)),
            of("torch", lambda x: torch.select(x, 1, 0)),
            of("from-the-end", lambda x: x.select(-1, -1)),
            of("batch", lambda x: x.select(0, 0), refused=BATCH),
        ),
    ),
    Case(
        "flip",
        (
            of("grid", lambda x: torch.flip(x, (2, 3))),
            of("method", lambda x: x.flip(-1)),
            of("channels", lambda x: x.flip(1)),
            after(two, of("channels", lambda x: x.flip(1, 2))),
            of("batch", lambda x: x.flip(0), refused=BATCH),
        ),
    ),
    Case(
        "chunk",
        (
            of("channels", lambda x: _both(x.chunk(2, 1))),
            of("grid", lambda x: _both(torch.chunk(x, 2, -1))),
            of("uneven", lambda x: _both(torch.tensor_split(x, 2, 2))),
            after(two, of("channels", lambda x: _both(x.chunk(2, dim=1)))),
            of("batch", lambda x: x.chunk(2)[0], refused=BATCH),
        ),
    ),
    Case(
        "split",
        (
            of("sizes", lambda x: _both(x.split([1, 2], 2))),
            of("size", lambda x: _both(torch.split(x, 2, 3))),
            after(two, of("channels", lambda x: _both(x.split([1, 3], dim=1)))),
            of("batch", lambda x: x.split(1)[0], refused=BATCH),
        ),
    ),
    Case(
        "unbind",
        (
            of("channels", lambda x: _both(x.unbind(1))),
            of("grid", lambda x: _both(torch.unbind(x, 2)), shape=(2, 2, 3)),
            of("batch", lambda x: x.unbind()[0], refused=BATCH),
        ),
    ),
    Case(
        "cat",
        (
            of("grids", lambda x: torch.cat([x, other(x)], 1)),
            of("same", lambda x: torch.cat([x, x + 1], 1)),
            of("positions", lambda x: torch.cat([x, other(x)], 2)),
            of("concat", lambda x: torch.concat((x, other(x)), dim=-1)),
            of("constants", lambda x: torch.cat([torch.ones_like(x), x], 1)),
            of("global", lambda x: torch.cat([x, pooled(x).expand(-1, -1, 3, 3)], 1)),
            of("globals", lambda x: torch.cat([pooled(x), corner(x)], 1)),
            of("per-channel", lambda x: torch.cat([two(x), x], 1)),
            of(
                "pieces",
                lambda x: torch.cat(two(x).chunk(2, 1), 1),
            ),
            of("pieces-turned", lambda x: torch.cat(two(x).chunk(2, 1)[::-1], 1)),
            of("same-pieces", lambda x: torch.cat(x.chunk(2, 1), 1)),
            of("axis", lambda x: torch.cat((x, other(x)), axis=2)),
            of("by-name", lambda x: torch.cat(tensors=[x, other(x)], dim=1)),
            of("padded", lambda x: torch.cat([padded(x), F.pad(x, (0, 1, 0, 1))], 1)),
            of("batch", lambda x: torch.cat([x, x]), refused=BATCH),
        ),
    ),
    Case(
        "stack",
        (
            of("grids", lambda x: torch.stack([x, other(x)], 1)),
            of("last", lambda x: torch.stack([x, other(x)], -1)),
            of("same", lambda x: torch.stack([x, x * 2], 2)),
            of("constants", lambda x: torch.stack([x, torch.ones_like(x)], 1)),
            of("batch", lambda x: torch.stack([x, x]), refused=BATCH),
        ),
    ),
    Case(
        "pad",
        (
            of("zeros", lambda x: F.pad(x, (1, 0, 0, 2))),
            of("value", lambda x: F.pad(x, (1, 1), value=2.0)),
            of("cropped", lambda x: F.pad(x, (-1, 1, 0, -1))),
            of("channels", lambda x: F.pad(x, (0, 0, 0, 0, 1, 0)), **CHANNELS),
            *(
                of(mode, lambda x, m=mode: F.pad(x, (1, 0, 2, 1), mode=m))
                for mode in ("reflect", "replicate", "circular")
            ),
            of("torch-1d", lambda x: torch.nn.functional.pad(x, (2, 0), "reflect"), **LINE),
            after(two, of("channels", lambda x: F.pad(x, (0, 0, 0, 0, 1, 0)))),
            after(padded, of("reflect", lambda x: F.pad(x, (2, 0, 1, 0), mode="reflect"))),
            of("batch", lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0)), refused=BATCH),
        ),
    ),
    pads("constant_pad", "ConstantPad", 2.0),
    pads("zero_pad", "ZeroPad"),
    pads("reflection_pad", "ReflectionPad"),
    pads("replication_pad", "ReplicationPad"),
    pads("circular_pad", "CircularPad"),
    Case(
        "pixel_shuffle",
        (
            to("module", lambda: nn.PixelShuffle(2), shape=(4, 2, 3)),
            of("function", lambda x: F.pixel_shuffle(x, 2), shape=(8, 2, 2)),
            after(two, to("channels", lambda: nn.PixelShuffle(2))),
            after(with_constants, to("constants", lambda: nn.PixelShuffle(2), shape=(3, 2, 2))),
        ),
    ),
    Case(
        "pixel_unshuffle",
        (
            to("module", lambda: nn.PixelUnshuffle(2), shape=(2, 2, 4)),
            of("function", lambda x: torch.pixel_unshuffle(x, 2), **FOUR),
            after(two, to("channels", lambda: nn.PixelUnshuffle(2), shape=(1, 2, 4))),
        ),
    ),
    Case(
        "channel_shuffle",
        (
            to("module", lambda: nn.ChannelShuffle(2), shape=(4, 2, 2)),
            of("function", lambda x: torch.channel_shuffle(two(x), 2)),
            of("native", lambda x: torch.native_channel_shuffle(two(x), 2)),
        ),
    ),
)


# ------------------------------------------------------------------------------------- refused

VALUES = "selects elements by value"


def _attend(x: Tensor, m: nn.Module) -> Tensor:
    answer: Tensor = m(tokens(x), tokens(x), tokens(x))[0]
    return answer


REFUSED = (
    Case(
        "attention",
        tuple(
            replace(sample, refused="lets every position read every other")
            for sample in (
                of("module", _attend, lambda: nn.MultiheadAttention(2, 1, batch_first=True)),
                of("function", lambda x: F.scaled_dot_product_attention(x, x, x)),
            )
        ),
    ),
    Case(
        "data_dependent",
        tuple(
            replace(sample, refused=VALUES)
            for sample in (
                of("gather", lambda x: x.gather(2, (x > 0.5).long())),
                of("take_along_dim", lambda x: torch.take_along_dim(x, (x > 0.5).long(), 3)),
                of("sort", lambda x: x.sort(2)[0]),
                of("argsort", lambda x: torch.argsort(x, 2)),
                of("topk", lambda x: x.topk(2, 3)[0]),
                of("kthvalue", lambda x: x.kthvalue(2, 3)[0]),
                of("median", lambda x: torch.median(x, 2)[0]),
                of("argmax", lambda x: x.argmax(1)),
                of("scatter", lambda x: torch.ones_like(x).scatter(2, (x > 0.5).long(), 0.0)),
            )
        ),
    ),
    Case(
        "grid_sample",
        (
            of(
                "function",
                lambda x: F.grid_sample(x, last(x), align_corners=False),
                refused="at computed positions",
            ),
        ),
    ),
    Case(
        "deform_conv",
        (
            of(
                "module",
                lambda x, m, n: m(x, n(x)),
                lambda: torchvision.ops.DeformConv2d(2, 1, 1),
                conv(2, 2, 1),
                refused="its offsets depend on the image",
            ),
        ),
    ),
    Case(
        "roll",
        (
            of("torch", lambda x: torch.roll(x, 1, 2), refused="across the border"),
            of("method", lambda x: x.roll((1, 1), (2, 3)), refused="across the border"),
        ),
    ),
    Case(
        "cumulative",
        (
            of("cumsum", lambda x: x.cumsum(2), refused="all elements before it"),
            of("cummax", lambda x: torch.cummax(x, 3)[0], refused="all elements before it"),
            of("diff", lambda x: torch.diff(x, dim=2), refused="all elements before it"),
        ),
    ),
    Case(
        "unfold",
        (
            to("module", lambda: nn.Unfold(2), refused="each window out as channels"),
            of("function", lambda x: F.unfold(x, 2), refused="each window out as channels"),
            of("method", lambda x: x.unfold(2, 2, 1), refused="each window out as channels"),
            of(
                "fold",
                lambda x: F.fold(x, (2, 2), 1),
                shape=(2, 4),
                refused="each window out as channels",
            ),
        ),
    ),
    Case(
        "fft",
        (
            of("fft2", lambda x: torch.fft.fft2(x), refused="over the whole grid"),
            of("rfft", lambda x: torch.fft.rfft(x), refused="over the whole grid"),
        ),
    ),
)

CASES: tuple[Case, ...] = (
    *WINDOWS,
    *POINTWISE,
    *STATISTICS,
    *JOINS,
    *REDUCTIONS,
    *LAYOUT,
    *REFUSED,
)
