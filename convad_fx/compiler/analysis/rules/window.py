"""Windows: convolution, pooling, adaptive pooling, interpolation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from convad_fx.compiler.analysis.rules.registry import rule
from convad_fx.compiler.analysis.steps import (
    SAME,
    AdaptivePool,
    Pairs,
    Refused,
    Resize,
    Step,
    Window,
)
from convad_fx.compiler.capture.op_schema import OpView

# The names differ, the geometry does not: see F.pad.
_COPYING = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}


def per_axis(value: Any, dims: int) -> tuple[int, ...]:
    """3 -> (3, 3); (3,) -> (3, 3); (3, 5) -> (3, 5)."""
    if not isinstance(value, Sequence):
        return (int(value),) * dims
    values = tuple(int(v) for v in value)
    return values * dims if len(values) == 1 else values


def both_sides(padding: tuple[int, ...]) -> Pairs:
    """The same padding before and after."""
    return tuple((p, p) for p in padding)


def unbatched(op: OpView, dims: int) -> Refused | None:
    """Windows also take a single sample without a batch axis; activity needs one."""
    if op.input.rank == dims + 2:
        return None
    return Refused(
        f"it reads a tensor of rank {op.input.rank} as one sample without a batch",
        "keep the batch axis",
    )


@rule("conv")
def conv(op: OpView) -> Step:
    channels, _, *kernel = op.weight.shape
    dims = len(kernel)
    dilation = per_axis(op.dilation, dims)
    if op.padding == "valid":
        padding = both_sides((0,) * dims)
    elif op.padding == "same":  # torch puts the odd element at the end
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        padding = tuple((total // 2, total - total // 2) for total in totals)
    else:
        padding = both_sides(per_axis(op.padding, dims))
    return unbatched(op, dims) or Window(
        tuple(kernel),
        per_axis(op.stride, dims),
        padding,
        dilation,
        groups=op.groups,
        channels=channels,
        mode=_COPYING[op.get("padding_mode", "zeros")],
    )


@rule("conv_same", "standardised_conv_same")
def conv_same(op: OpView) -> Step:
    step = conv(op)
    return replace(step, padding=(SAME,) * len(step.kernel)) if isinstance(step, Window) else step


@rule("conv_transpose")
def conv_transpose(op: OpView) -> Step:
    _, per_group, *kernel = op.weight.shape
    dims = len(kernel)
    padding, extra = per_axis(op.padding, dims), per_axis(op.output_padding, dims)
    return unbatched(op, dims) or Window(
        tuple(kernel),
        per_axis(op.stride, dims),
        # output_padding adds elements at the end: less is cut off there
        tuple((p, p - e) for p, e in zip(padding, extra, strict=True)),
        per_axis(op.dilation, dims),
        groups=op.groups,
        channels=per_group * op.groups,
        transposed=True,
    )


@rule("max_pool", "max_pool_same")
def max_pool(op: OpView) -> Step:
    return _indices(op) or _pool(op, "max", per_axis(op.dilation, op.input.rank - 2))


@rule("avg_pool", "avg_pool_same")
def avg_pool(op: OpView) -> Step:
    return _pool(op, "mean", (1,) * (op.input.rank - 2))


@rule("lp_pool")
def lp_pool(op: OpView) -> Step:
    return _pool(op, "sum", (1,) * (op.input.rank - 2))


def _pool(op: OpView, reads: str, dilation: tuple[int, ...]) -> Step:
    dims = op.input.rank - 2
    spelled = re.search(r"[123](?=d)", op.spelling)  # a subclass may be called anything
    if spelled and (refused := unbatched(op, int(spelled[0]))):
        return refused
    kernel = per_axis(op.kernel_size, dims)
    # functional pooling takes an empty list for "as the kernel"
    stride = per_axis(op.stride, dims) if op.get("stride", ()) != () else kernel
    # "same" padding never counts: in a maximum it is minus infinity, as implicit padding is
    padding = (SAME,) * dims
    if not op.kind.endswith("_same"):
        padding = both_sides(per_axis(op.get("padding", 0), dims))
    return Window(
        kernel,
        stride,
        padding,
        dilation,
        channels=op.input.shape[1],
        reads=reads,
        ceil_mode=bool(op.ceil_mode),
    )


def _indices(op: OpView) -> Refused | None:
    if not op.get("return_indices"):
        return None
    return Refused("it returns data-dependent argmax indices", "pool without return_indices")


@rule("adaptive_avg_pool")
def adaptive_avg_pool(op: OpView) -> Step:
    return _adaptive(op, "mean")


@rule("adaptive_max_pool")
def adaptive_max_pool(op: OpView) -> Step:
    return _indices(op) or _adaptive(op, "max")


def _adaptive(op: OpView, reads: str) -> Step:
    dims = op.input.rank - 2
    size = op.output_size
    sizes = tuple(size) if isinstance(size, Sequence) else (size,) * dims
    sizes = sizes * dims if len(sizes) == 1 else sizes
    return AdaptivePool(tuple(None if n is None else int(n) for n in sizes), reads)


@rule("upsample_nearest", "upsample_linear", "upsample_bicubic")
def upsample(op: OpView) -> Step:
    mode = op.kind.removeprefix("upsample_")
    if mode == "linear":
        mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[op.input.rank]
    elif variant := re.search("nearest_exact|lanczos", op.spelling):
        mode = variant[0].replace("_", "-")
    # one list of factors, or one number per axis; None where torch derives it from the two sizes
    dims = op.input.rank - 2
    names = ("scales",) if dims == 1 else ("scales_d", "scales_h", "scales_w")[-dims:]
    named = dict(zip(names, op.scale_factor, strict=False)) | dict(op.params)
    factors = tuple(named.get(name) for name in names)
    scale = factors if any(factors) else None
    return Resize(mode, op.get("align_corners"), scale, antialias="_aa" in op.spelling)


@rule("interpolate")
def interpolate(op: OpView) -> Step:
    dims = op.input.rank - 2
    factor = op.get("scale_factor")
    if factor is not None and not op.get("recompute_scale_factor"):
        factors = tuple(factor) if isinstance(factor, Sequence) else (factor,) * dims
        scale = tuple(float(f) for f in (factors * dims if len(factors) == 1 else factors))
    else:
        scale = None  # torch derives it from the two sizes, and so do we
    return Resize(
        op.mode, op.get("align_corners"), scale, antialias=bool(op.get("antialias", False))
    )
