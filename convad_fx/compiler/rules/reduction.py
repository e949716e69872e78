"""Axes combined into one value: means, sums, extrema, linear layers."""

from __future__ import annotations

from typing import Any

from convad_fx.compiler.ops import OpView
from convad_fx.compiler.rules.join import is_tensor
from convad_fx.compiler.rules.registry import rule
from convad_fx.compiler.steps import Join, Reduce, Refused, Step

_INDICES = "it returns where the extremum is, which depends on values, over positions"


def axes_of(dim: Any, rank: int) -> tuple[int, ...]:
    """None or () -> every axis; -1 -> (rank - 1,)."""
    if dim is None or dim == ():
        return tuple(range(rank))
    axes = dim if isinstance(dim, tuple) else (dim,)
    return tuple(sorted(axis % rank for axis in axes))


@rule("linear")
def linear(op: OpView) -> Step:
    return Reduce((op.input.rank - 1,), keepdim=True)


@rule("mean")
def mean(op: OpView) -> Step:
    return Reduce(axes_of(op.dim, op.input.rank), bool(op.keepdim), "mean")


@rule("sum")
def total(op: OpView) -> Step:
    return Reduce(axes_of(op.dim, op.input.rank), bool(op.keepdim))


@rule("spread", "logsumexp", "norm", "vector_norm")
def spread(op: OpView) -> Step:
    return Reduce(axes_of(op.dim, op.input.rank), bool(op.keepdim))


@rule("amax")
def amax(op: OpView) -> Step:
    return Reduce(axes_of(op.dim, op.input.rank), bool(op.keepdim), "max")


@rule("amin")
def amin(op: OpView) -> Step:
    return Reduce(axes_of(op.dim, op.input.rank), bool(op.keepdim), "min")


@rule("max", "min")
def extremum(op: OpView) -> Step:
    """``torch.max`` is three operations: of all cells, along an axis, of two tensors."""
    dim = op.get("dim", op.other)
    if is_tensor(dim):
        return Join(op.kind)
    if dim is None:
        return Reduce(axes_of(None, op.input.rank), False, op.kind)
    if not isinstance(dim, int):
        return Refused(f"its axis is {dim!r}", "pass one axis as an integer")
    return Reduce(
        (dim % op.input.rank,), bool(op.keepdim), op.kind, results=2, refuse_full=_INDICES
    )
