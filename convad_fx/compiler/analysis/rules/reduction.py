"""Axes combined into one value: means, sums, extrema, linear layers."""

from __future__ import annotations

from typing import Any

from convad_fx.compiler.analysis.rules.join import is_tensor
from convad_fx.compiler.analysis.rules.registry import rule
from convad_fx.compiler.analysis.steps import Join, Reduce, Refused, Step
from convad_fx.compiler.capture.op_schema import OpView, TensorView

_INDICES = "it returns data-dependent indices of the extremum, over positions"


def axes_of(dim: Any, rank: int) -> tuple[int, ...]:
    """None or () -> every axis; -1 -> (rank - 1,)."""
    if dim is None or dim == ():
        return tuple(range(rank))
    axes = dim if isinstance(dim, tuple) else (dim,)
    return tuple(sorted(axis % rank for axis in axes))


@rule("linear")
def linear(op: OpView) -> Step:
    return Reduce((op.input.rank - 1,), keepdim=True)


_TWO_OPERANDS = Refused(
    "a product of two tensors that depend on the image combines positions by weights that no window"
    " bounds",
    "use a convolution or a linear layer where it is one",
)


@rule("matmul", "addmm")
def matmul(op: OpView) -> Step:
    """With constant weights it is a linear layer over the last axis, or the one before."""
    if op.input.masked and op.other.masked:
        return _TWO_OPERANDS
    right = op.other.masked
    x, weights = (op.other, op.input) if right else (op.input, op.other)
    if weights.rank > x.rank:
        return Refused("it adds axes in front of the batch", "unsqueeze first, behind the batch")
    axis = x.rank - 1 - right
    new = (None,) if weights.rank > 1 else ()
    order = (*range(axis), *new, *range(axis + 1, x.rank))
    return _contraction(op, x, (axis,), order, "other" if right else "input")


@rule("einsum")
def einsum(op: OpView) -> Step:
    terms, result = _letters(op.equation, [item.rank for item in op.input])
    reached = [pair for pair in zip(op.input, terms, strict=True) if pair[0].masked]
    if len(reached) > 1:
        return _TWO_OPERANDS
    x, letters = reached[0]
    if len(set(letters)) < len(letters):
        return Refused("it takes a diagonal of two axes", "name every axis differently")
    axes = tuple(axis for axis, letter in enumerate(letters) if letter not in result)
    order = tuple(letters.index(letter) if letter in letters else None for letter in result)
    return _contraction(op, x, axes, order, "input")


def _contraction(
    op: OpView, x: TensorView, axes: tuple[int, ...], order: tuple[int | None, ...], operand: str
) -> Step:
    sizes = zip(order, op.output, strict=True)
    if any(axis is not None and x.shape[axis] != size for axis, size in sizes):
        return Refused("it repeats a position along an axis", "expand the weights, not the image")
    return Reduce(axes, keepdim=False, order=order, operand=operand)


def _letters(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """``"...c,cd->...d"`` -> (["01c", "cd"], "01d"): one letter per axis, digits for dots."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    counts = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    dots = "0123456789"[: max([n for t, n in zip(terms, counts, strict=True) if "..." in t] or [0])]
    spread = [
        term.replace("...", dots[len(dots) - n :]) for term, n in zip(terms, counts, strict=True)
    ]
    if not arrow:  # what appears once, in the order of the alphabet
        every = "".join(spread)
        result = "..." + "".join(c for c in sorted(set(every) - set(dots)) if every.count(c) == 1)
    return spread, result.replace("...", dots)


@rule("mean")
def mean(op: OpView) -> Step:
    return Reduce(axes_of(op.dim, op.input.rank), bool(op.keepdim), "mean")


@rule("sum", "spread", "logsumexp", "norm", "vector_norm")
def total(op: OpView) -> Step:
    return Reduce(axes_of(op.dim, op.input.rank), bool(op.keepdim))


@rule("amax", "amin")
def amax(op: OpView) -> Step:
    return Reduce(axes_of(op.dim, op.input.rank), bool(op.keepdim), op.kind.removeprefix("a"))


@rule("max", "min")
def extremum(op: OpView) -> Step:
    """``torch.max`` is three operations: of all elements, along an axis, of two tensors."""
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
