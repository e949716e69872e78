"""The executable definition: docs/meaning.md, carried out one operation after the other.

    logits = reference(model, image, mask, policy)  # (N, C, *grid), bool (N, 1, *grid)
    activities = reference_activity(model, image, mask, policy)  # node name -> bool tensor

Slow and obvious on purpose, and sharing no code with the compiler, so that the two can be compared.
Every tensor that the image reaches is carried as a `Cells`; after each operation the stored value
is gated, unless the tensor is global or, under raw input, at image level. So whatever an operation
reads is gated already, and only maxima have to look at the activity again.

A network that moves the batch axis, or merges it with others, is defined one image at a time: the
batch is then an axis of size 1 like any other (`reference_by_image`).

Places where meaning.md leaves room are marked with "Reading:".
"""

from __future__ import annotations

import contextvars
import inspect
import math
import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


class PolicyLike(Protocol):
    """What the reference reads of a policy; `convad_fx.Policy` is one."""

    @property
    def tau(self) -> float: ...
    @property
    def attribution(self) -> str: ...
    @property
    def input(self) -> str: ...
    @property
    def pool(self) -> str: ...
    @property
    def fill(self) -> str: ...


@dataclass(eq=False)
class Cells:
    """A tensor that the image reaches, and what is known of its cells.

    `active` and `exists` have the rank of `value`; along an axis they have its size where `full`
    says so and size 1 elsewhere. Axis 0, the batch, always has its own size. `same` names the
    activity as a function of the mask: equal names, one and the same activity. `family` holds the
    tensors that may share memory with this one.
    """

    value: Tensor
    active: Tensor
    exists: Tensor
    full: tuple[bool, ...]
    same: Hashable
    image: bool
    family: list[Cells] = field(default_factory=list)
    stale: bool = False

    @property
    def is_global(self) -> bool:
        return not any(self.full)

    def spread(self, which: Tensor) -> Tensor:
        """`active` or `exists` in the size of the value."""
        return which.expand(self.value.shape)


def reference(model: nn.Module, x: Tensor, mask: Tensor, policy: PolicyLike) -> Any:
    """What `model` answers to `x` with everything outside `mask` switched off."""
    return _Reference(model, policy).answer(x, mask)


def reference_by_image(model: nn.Module, x: Tensor, mask: Tensor, policy: PolicyLike) -> Tensor:
    """As `reference`, for each image and mask alone; the model returns one tensor."""
    batch = max(len(x), len(mask))
    x, mask = x.expand(batch, *x.shape[1:]), mask.expand(batch, *mask.shape[1:])
    pairs = zip(x.split(1), mask.split(1), strict=True)
    before = _by_image.set(True)
    try:
        return torch.cat([reference(model, image, kept, policy) for image, kept in pairs])
    finally:
        _by_image.reset(before)


def reference_activity(
    model: nn.Module, x: Tensor, mask: Tensor, policy: PolicyLike
) -> dict[str, Tensor]:
    """The activity of every node of the symbolic trace that is a tensor the image reaches."""
    run = _Reference(model, policy)
    run.answer(x, mask)
    return run.activity


#: Whether the reference runs on one image at a time.
_by_image: contextvars.ContextVar[bool] = contextvars.ContextVar("by_image", default=False)


def _of_one_image(what: str) -> None:
    """What may be done along axis 0 only on one image at a time."""
    if not _by_image.get():
        raise NotImplementedError(what)


class _InPlaceProxy(fx.Proxy):
    """torch.fx takes ``z += 1`` for ``z = z + 1``, and forgets who else holds z."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _InPlaceProxy(node, self)


class _Reference(fx.Interpreter):
    def __init__(self, model: nn.Module, policy: PolicyLike) -> None:
        if model.training:
            raise ValueError("the reference describes evaluation mode: call model.eval()")
        super().__init__(fx.GraphModule(model, _Tracer().trace(model)))
        self.policy = policy
        self.activity: dict[str, Tensor] = {}

    def answer(self, x: Tensor, mask: Tensor) -> Any:
        assert mask.dtype == torch.bool
        assert mask.shape[1:] == (1, *x.shape[2:])
        batch = max(len(x), len(mask))
        x, mask = x.expand(batch, *x.shape[1:]), mask.expand(batch, *mask.shape[1:])
        full = (False, False) + (True,) * (x.dim() - 2)
        image = Cells(x.clone(), mask, torch.ones_like(mask), full, "image", image=True)
        with torch.no_grad():
            return self.run(image)

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        operands = _cells_in((args, kwargs))
        if n.op == "placeholder":
            result = super().run_node(n)
        elif not operands:
            return super().run_node(n)
        elif any(operand.stale for operand in operands):
            raise NotImplementedError(f"{n.name} reads a tensor changed in place through a view")
        elif n.op == "output":
            return fx.node.map_aggregate(args[0], _answer_of)
        else:
            result = self._apply(n, args, kwargs)
        for cells in _cells_in(result):
            _check(cells)
            if not cells.is_global and not (cells.image and self.policy.input == "raw"):
                cells.value = _gate(cells)
            self.activity[n.name] = cells.active
        return result

    def _apply(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            result = _call_module(self.policy, module, *args, **kwargs)
            in_place = getattr(module, "inplace", False)
        elif n.op == "call_method":
            name = str(n.target)
            in_place = name.endswith("_")
            handler = _METHODS.get(name) or _METHODS.get(name.removesuffix("_"))
            if handler is None:
                raise NotImplementedError(f"method {name}")
            result = handler(self.policy, *args, **kwargs)
        else:
            handler, in_place = _function_handler(n.target, args, kwargs)
            result = handler(self.policy, *args, **kwargs)
        if in_place and isinstance(result, Cells) and result is not args[0]:
            return _overwrite(args[0], result)
        return result


# --- Small pieces ---------------------------------------------------------------------------------


def _cells_in(tree: Any) -> list[Cells]:
    found: list[Cells] = []
    match tree:
        case Cells():
            found = [tree]
        case dict():
            found = [cells for part in tree.values() for cells in _cells_in(part)]
        case tuple() | list():
            found = [cells for part in tree for cells in _cells_in(part)]
    return found


def _gate(cells: Cells) -> Tensor:
    return torch.where(cells.active, cells.value, torch.zeros_like(cells.value))


def _answer_of(result: Any) -> Any:
    """An output is gated under raw input too, even where it is at image level still."""
    if not isinstance(result, Cells):
        return result
    return result.value if result.is_global else _gate(result)


def _check(cells: Cells) -> None:
    """The promise that `Cells` makes about its fields."""
    assert cells.active.dtype == cells.exists.dtype == torch.bool
    assert len(cells.full) == cells.value.dim()
    if cells.full[0]:
        _of_one_image("activity that differs along the batch")
    for axis, is_full in enumerate(cells.full):
        size = cells.value.shape[axis] if is_full or axis == 0 else 1
        assert cells.active.shape[axis] == cells.exists.shape[axis] == size


def _overwrite(target: Cells, result: Cells) -> Cells:
    """An in-place operation: whoever holds `target` sees the result from now on."""
    for relative in target.family:
        relative.stale = relative is not target
    for name in (f.name for f in fields(Cells) if f.name not in ("family", "stale")):
        setattr(target, name, getattr(result, name))
    return target


def _with(x: Cells, value: Tensor, **changes: Any) -> Cells:
    """`x` with another value, and a memory of its own."""
    kept = {
        "active": x.active,
        "exists": x.exists,
        "full": x.full,
        "same": x.same,
        "image": x.image,
    }
    return Cells(value, **(kept | changes))


def _settle(which: Tensor, full: Sequence[bool]) -> Tensor:
    """Store size 1 along the axes that are one, having made sure that nothing differs there."""
    for axis in range(1, which.dim()):
        if not full[axis]:
            first = which.narrow(axis, 0, 1)
            assert torch.equal(which, first.expand(which.shape)), "an axis that is one differs"
            which = first
    return which


def _per_axis(value: Any, rank: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank


def _share(policy: PolicyLike, active_cells: Tensor, cells: Tensor) -> Tensor:
    """Phi > tau, written without a division; a cell that reads nothing that exists is active."""
    return (active_cells > policy.tau * cells) | (cells == 0)


# --- Same-cell operations and joins ---------------------------------------------------------------


def _same_cell(fn: Callable[..., Tensor]) -> Callable[..., Any]:
    def handler(policy: PolicyLike, x: Any, *args: Any, **kwargs: Any) -> Any:
        if _cells_in((args, kwargs)):
            raise NotImplementedError(f"{fn} of two tensors that the image reaches")
        kwargs.pop("inplace", None)
        value = fn(x.value, *args, **kwargs)
        return x if value is x.value else _broadcast(x, value)  # a cast may do nothing

    return handler


def _broadcast(x: Cells, value: Tensor) -> Cells:
    """The activity of `x` for a value that a constant may have broadcast to a larger size."""
    if value.dim() != x.value.dim() or value.shape[0] != x.value.shape[0]:
        raise NotImplementedError("a constant that changes the rank or the batch")
    shape = [
        size if is_full or axis == 0 else 1
        for axis, (size, is_full) in enumerate(zip(value.shape, x.full, strict=True))
    ]
    return _with(x, value, active=x.active.expand(shape), exists=x.exists.expand(shape))


def _joined(kind: str, fn: Callable[..., Tensor]) -> Callable[..., Any]:
    """A binary operation; `kind` says what happens to the activities of two `Cells`."""

    def handler(policy: PolicyLike, a: Any, b: Any, **kwargs: Any) -> Any:
        if isinstance(a, Cells) and isinstance(b, Cells):
            return _join(policy, kind, lambda p, q: fn(p, q, **kwargs), a, b)
        if isinstance(a, Cells):
            return _broadcast(a, fn(a.value, b, **kwargs))
        return _broadcast(b, fn(a, b.value, **kwargs))

    return handler


def _join(
    policy: PolicyLike, kind: str, fn: Callable[[Tensor, Tensor], Tensor], a: Cells, b: Cells
) -> Cells:
    if a.value.dim() != b.value.dim():
        raise NotImplementedError("a join of two tensors of different rank")
    left, right = a.value, b.value
    grids = not a.is_global and not b.is_global
    if kind in ("maximum", "minimum") and grids and a.same != b.same:
        # Reading: an image-level operand is not gated under raw input, so it is not kept from
        # winning either.
        left, right = _filled(policy, kind, a), _filled(policy, kind, b)
    value = fn(left, right)
    full = tuple(p or q for p, q in zip(a.full, b.full, strict=True))
    shape = [n if axis == 0 or full[axis] else 1 for axis, n in enumerate(value.shape)]
    act_a, act_b = a.active.expand(shape), b.active.expand(shape)
    ex_a, ex_b = a.exists.expand(shape), b.exists.expand(shape)
    # Reading: a join is at image level as long as all that it joins is.
    image = a.image and b.image

    if a.same == b.same:
        return Cells(value, act_a, ex_a, full, a.same, image)
    if a.is_global != b.is_global:
        grid = b if a.is_global else a
        active, exists = (act_b, ex_b) if a.is_global else (act_a, ex_a)
        return Cells(value, active, exists, full, grid.same, image)

    names = tuple(sorted((a.same, b.same), key=repr))
    if kind == "product":
        # Reading: a cell of a join exists where either of the cells does.
        return Cells(value, act_a & act_b, ex_a | ex_b, full, ("both", names), image)
    if not grids:
        return Cells(value, act_a | act_b, ex_a | ex_b, full, ("either", names), image)
    count = ex_a.double() + ex_b.double()
    active = _share(policy, (act_a & ex_a).double() + (act_b & ex_b).double(), count)
    if kind in ("maximum", "minimum"):
        value = torch.where(active, value, torch.zeros_like(value))
    return Cells(value, active, ex_a | ex_b, full, ("pair", names), image)


def _filled(policy: PolicyLike, kind: str, x: Cells) -> Tensor:
    """The value as a maximum (or minimum) reads it: an inactive cell never wins."""
    if x.image and policy.input == "raw":
        return x.value
    never = -math.inf if kind == "maximum" else math.inf
    return torch.where(x.active, x.value, torch.full_like(x.value, never))


def _extreme(policy: PolicyLike, kind: str, x: Cells, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """`fn`, a maximum or minimum over cells of `x`; 0 where it saw no active cell."""
    if x.is_global:
        return fn(x.value)
    value = fn(_filled(policy, kind, x))
    never = -math.inf if kind == "maximum" else math.inf
    return torch.where(value == never, torch.zeros_like(value), value)


# --- Windows --------------------------------------------------------------------------------------
# What a window operation reads is the product, over the grid axes, of a table reads[output, input].


def _window_reads(n: int, out: int, kernel: int, stride: int, low: int, dilation: int) -> Tensor:
    reads = torch.zeros(out, n, dtype=torch.float64)
    for o in range(out):
        for k in range(kernel):
            i = o * stride - low + k * dilation
            if 0 <= i < n:
                reads[o, i] = 1
    return reads


def _transposed_reads(
    n: int, out: int, kernel: int, stride: int, low: int, dilation: int
) -> Tensor:
    return _window_reads(out, n, kernel, stride, low, dilation).T


def _adaptive_reads(n: int, out: int) -> Tensor:
    reads = torch.zeros(out, n, dtype=torch.float64)
    for o in range(out):
        reads[o, math.floor(o * n / out) : math.ceil((o + 1) * n / out)] = 1
    return reads


def _resize_reads(
    n: int, mode: str, size: int | None, scale: float | None, **options: Any
) -> Tensor:
    """The cells of non-zero weight, seen by resizing each unit vector of the axis."""
    unit = torch.eye(n, dtype=torch.float64)[None]
    if mode == "bicubic":
        two = (None, None) if scale is None else (scale, 1.0)
        sizes = None if size is None else (size, 1)
        weights = F.interpolate(
            unit[..., None], sizes, two if scale else None, mode, **options
        ).squeeze(-1)
    else:
        linear = mode in ("bilinear", "trilinear")
        weights = F.interpolate(unit, size, scale, "linear" if linear else mode, **options)
    return (weights[0].T != 0).double()


def _count(cells: Tensor, reads: Sequence[Tensor | None]) -> Tensor:
    """How many of `cells` (N, C, *grid) each output cell reads, channel by channel."""
    cells = cells.double()
    for axis, table in enumerate(reads, start=2):
        if table is not None:
            cells = torch.tensordot(cells, table, dims=([axis], [1])).movedim(-1, axis)
    return cells


def _window(
    policy: PolicyLike,
    x: Cells,
    value: Tensor,
    reads: Sequence[Tensor],
    *,
    keeps_grid: bool,
    groups: int | None,
    name: Hashable,
    one_cell: bool = False,
    mean: bool = False,
) -> Cells:
    """Any operation that reads a window of each grid axis.

    `groups` is None where channels are not combined. `one_cell` says that the window is a single
    cell by the operation's own parameters; with `keeps_grid`, that it is the cell itself.
    """
    if mean and _renormalises(policy, x):
        value = _renormalise(value, x, _grid_tables(x, reads))
    if x.is_global:
        # Reading: a window over an axis that is one leaves it one; so a 1x1 convolution of a pooled
        # tensor is global.
        return _with(x, value, image=False)
    if groups == x.value.shape[1] == value.shape[1]:
        groups = None
    if one_cell and keeps_grid and not (x.full[1] and groups is not None):
        # Reading: a window that reads a cell for itself moves nothing, under whatever policy.
        return _with(x, value, image=False)
    tables = _grid_tables(x, reads)
    full = list(x.full)
    active_cells, cells = _count(x.active & x.exists, tables), _count(x.exists, tables)
    if x.full[1] and groups is not None:
        active_cells, cells = (
            _over_groups(c, groups, value.shape[1]) for c in (active_cells, cells)
        )
        full[1] = groups > 1
        active_cells, cells = (c if full[1] else c[:, :1] for c in (active_cells, cells))
        name = (name, groups)

    if x.image and policy.input == "strict":
        active, same = active_cells == cells, ("whole", name, x.same)
    elif keeps_grid and policy.attribution == "positional":
        if not (x.full[1] and groups is not None):
            # Reading: cell (i, j) stays cell (i, j), so a padded cell still does not exist after
            # this.
            return _with(x, value, image=False)
        cells = _over_groups(x.exists.double(), groups, value.shape[1])
        active_cells = _over_groups((x.active & x.exists).double(), groups, value.shape[1])
        active_cells, cells = (c if full[1] else c[:, :1] for c in (active_cells, cells))
        active, same = _share(policy, active_cells, cells), ("channels", groups, x.same)
    else:
        active, same = _share(policy, active_cells, cells), ("window", name, x.same)
    # Reading: what a window computes exists, even where it reads nothing that does (a corner of
    # explicit padding, a gap between the windows of a transposed convolution).
    return Cells(value, active, torch.ones_like(active), tuple(full), same, image=False)


def _grid_tables(x: Cells, reads: Sequence[Tensor]) -> list[Tensor | None]:
    return [table if is_full else None for table, is_full in zip(reads, x.full[2:], strict=True)]


def _over_groups(counts: Tensor, groups: int, channels: int) -> Tensor:
    n, c, *grid = counts.shape
    per_group = counts.reshape(n, groups, c // groups, *grid).sum(2)
    return per_group.repeat_interleave(channels // groups, dim=1)


def _renormalises(policy: PolicyLike, x: Cells) -> bool:
    """Reading: a mean over ungated cells (image level, raw input) counts them all already."""
    return policy.pool == "renormalize" and not (x.image and policy.input == "raw")


def _renormalise(value: Tensor, x: Cells, tables: Sequence[Tensor | None]) -> Tensor:
    cells, active = _count(x.exists, tables), _count(x.active & x.exists, tables)
    return value * _factor(cells, active).to(value.dtype)


def _factor(cells: Tensor, active: Tensor) -> Tensor:
    return torch.where(active > 0, cells / active.clamp(min=1), torch.ones_like(cells))


def _with_neighbours(policy: PolicyLike, x: Cells, total: Sequence[int]) -> Cells:
    """`x` with each inactive cell replaced by the mean of the active cells around it.

    Around it: up to half of `total`, the window's length less one, rounded down, on every side.
    """
    if x.is_global or (x.image and policy.input == "raw") or not any(k > 0 for k in total):
        return x
    grid = x.value.shape[2:]
    near = []
    for n, t in zip(grid, total, strict=True):
        table = torch.zeros(n, n, dtype=torch.float64)
        for i in range(n):
            for j in range(n):
                table[i, j] = abs(i - j) <= t // 2
        near.append(table)
    real = x.spread(x.active) & x.spread(x.exists)
    zero = torch.zeros_like(x.value)
    number = _count(real, near)
    mean = _count(torch.where(real, x.value, zero), near) / number.clamp(min=1)
    return _with(x, torch.where(x.active, x.value, mean.to(x.value.dtype)))


def _conv(
    policy: PolicyLike,
    x: Cells,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Cells:
    rank = weight.dim() - 2
    kernel, stride, dilation = (
        weight.shape[2:],
        _per_axis(stride, rank),
        _per_axis(dilation, rank),
    )
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if padding == "same":
        low, high = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        low = high = [0] * rank if padding == "valid" else list(_per_axis(padding, rank))
    keeps = all(s == 1 and p + q == t for s, p, q, t in zip(stride, low, high, total, strict=True))
    name = ("conv", tuple(kernel), stride, tuple(low), tuple(high), dilation, padding_mode)
    if policy.fill == "neighbour":
        x = _with_neighbours(policy, x, total)
    before = x
    convolution = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    if padding_mode == "zeros":
        value = convolution(x.value, weight, bias, stride, padding, dilation, groups)
    else:
        sides = [
            side for p, q in zip(reversed(low), reversed(high), strict=True) for side in (p, q)
        ]
        x = _pad(policy, x, sides, padding_mode)
        low = [0] * rank
        value = convolution(x.value, weight, bias, stride, 0, dilation, groups)
    reads = [
        _window_reads(n, out, k, s, p, d)
        for n, out, k, s, p, d in zip(
            x.value.shape[2:], value.shape[2:], kernel, stride, low, dilation, strict=True
        )
    ]
    if keeps and policy.attribution == "positional" and not (x.image and policy.input == "strict"):
        # The cell stays where it was before the operation's own padding.
        reads = [torch.eye(n, dtype=torch.float64) for n in value.shape[2:]]
        x = before
    one = all(k == 1 for k in kernel)
    return _window(
        policy, x, value, reads, keeps_grid=keeps, groups=groups, name=name, one_cell=one
    )


def _conv_transpose(
    policy: PolicyLike,
    x: Cells,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Cells:
    rank = weight.dim() - 2
    stride, padding, dilation = (_per_axis(v, rank) for v in (stride, padding, dilation))
    convolution = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    value = convolution(x.value, weight, bias, stride, padding, output_padding, groups, dilation)
    kernel = tuple(weight.shape[2:])
    reads = [
        _transposed_reads(n, out, k, s, p, d)
        for n, out, k, s, p, d in zip(
            x.value.shape[2:], value.shape[2:], kernel, stride, padding, dilation, strict=True
        )
    ]
    # Reading: "transposed" stands among the windows that change the grid, so even at stride 1 it
    # does.
    name = ("transposed", kernel, stride, padding, dilation, tuple(value.shape[2:]))
    return _window(policy, x, value, reads, keeps_grid=False, groups=groups, name=name)


def _pool(kind: str, rank: int) -> Callable[..., Any]:
    pool = getattr(F, f"{'avg' if kind == 'mean' else 'max'}_pool{rank}d")

    def handler(
        policy: PolicyLike,
        x: Cells,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        *args: Any,
        **kwargs: Any,
    ) -> Cells:
        names = (
            ("ceil_mode", "count_include_pad", "divisor_override")
            if kind == "mean"
            else ("dilation", "ceil_mode", "return_indices")
        )
        options = dict(zip(names, args, strict=False)) | kwargs
        if options.pop("return_indices", False):
            raise NotImplementedError("the indices of a maximum depend on the data")
        if not stride:  # a method or function may say None, (), or nothing at all
            stride = kernel_size
        kernel, strides, pads = (_per_axis(v, rank) for v in (kernel_size, stride, padding))
        dilation = _per_axis(options.get("dilation", 1), rank)
        grid = tuple(x.value.shape[2:])

        def plain(v: Tensor) -> Tensor:
            return pool(v, kernel_size, stride, padding, **options)

        value = plain(x.value) if kind == "mean" else _extreme(policy, "maximum", x, plain)
        if kernel == grid and not any(pads):
            axes = tuple(range(2, 2 + rank))
            return _reduce(policy, x, value, axes, keepdim=True, mean=kind == "mean")
        reads = [
            _window_reads(n, out, k, s, p, d)
            for n, out, k, s, p, d in zip(
                grid, value.shape[2:], kernel, strides, pads, dilation, strict=True
            )
        ]
        # Reading: pooling at stride 1 with padding of its own keeps the grid like any other window.
        keeps = all(
            s == 1 and 2 * p == d * (k - 1)
            for k, s, p, d in zip(kernel, strides, pads, dilation, strict=True)
        )
        name = ("conv", kernel, strides, pads, pads, dilation, "zeros")
        return _window(
            policy,
            x,
            value,
            reads,
            keeps_grid=keeps,
            groups=None,
            name=name,
            one_cell=all(k == 1 for k in kernel),
            mean=kind == "mean",
        )

    return handler


def _lp_pool(rank: int) -> Callable[..., Any]:
    pool = getattr(F, f"lp_pool{rank}d")

    def handler(
        policy: PolicyLike,
        x: Cells,
        norm_type: float,
        kernel_size: Any,
        stride: Any = None,
        ceil_mode: bool = False,
    ) -> Cells:
        value = pool(x.value, norm_type, kernel_size, stride, ceil_mode)
        kernel, strides = (_per_axis(v, rank) for v in (kernel_size, stride or kernel_size))
        grid, none, ones = tuple(x.value.shape[2:]), (0,) * rank, (1,) * rank
        if kernel == grid:
            return _reduce(policy, x, value, tuple(range(2, 2 + rank)), keepdim=True)
        reads = [
            _window_reads(n, out, k, s, 0, 1)
            for n, out, k, s in zip(grid, value.shape[2:], kernel, strides, strict=True)
        ]
        keeps = kernel == strides == ones
        name = ("conv", kernel, strides, none, none, ones, "zeros")
        return _window(
            policy, x, value, reads, keeps_grid=keeps, groups=None, name=name, one_cell=keeps
        )

    return handler


def _adaptive_pool(kind: str, rank: int) -> Callable[..., Any]:
    pool = getattr(F, f"adaptive_{'avg' if kind == 'mean' else 'max'}_pool{rank}d")

    def handler(
        policy: PolicyLike, x: Cells, output_size: Any, return_indices: bool = False
    ) -> Cells:
        if return_indices:
            raise NotImplementedError("the indices of a maximum depend on the data")

        def plain(v: Tensor) -> Tensor:
            return pool(v, output_size)

        value = plain(x.value) if kind == "mean" else _extreme(policy, "maximum", x, plain)
        if all(size == 1 for size in _per_axis(output_size, rank)):
            axes = tuple(range(2, 2 + rank))
            return _reduce(policy, x, value, axes, keepdim=True, mean=kind == "mean")
        grid, out = x.value.shape[2:], value.shape[2:]
        reads = [_adaptive_reads(n, m) for n, m in zip(grid, out, strict=True)]
        name = ("adaptive", tuple(grid), tuple(out))
        result = _window(
            policy, x, value, reads, keeps_grid=False, groups=None, name=name, mean=kind == "mean"
        )
        # Reading: an axis that is pooled to one cell by the operation's own parameters is one, as
        # after a mean over that axis.
        pooled = [False, False, *(size == 1 for size in _per_axis(output_size, rank))]
        result.full = tuple(f and not p for f, p in zip(result.full, pooled, strict=True))
        return result

    return handler


def _interpolate(
    policy: PolicyLike,
    x: Cells,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Cells:
    if antialias or mode == "area":
        raise NotImplementedError(f"interpolate with mode={mode!r}, antialias={antialias}")
    options = {"align_corners": align_corners, "recompute_scale_factor": recompute_scale_factor}
    value = F.interpolate(x.value, size, scale_factor, mode, **options)
    grid = tuple(x.value.shape[2:])
    sizes, scales = _per_axis(size, len(grid)), _per_axis(scale_factor, len(grid))
    reads = [
        _resize_reads(n, mode, m, s, **options) for n, m, s in zip(grid, sizes, scales, strict=True)
    ]
    name = ("resize", mode, sizes, scales, align_corners, recompute_scale_factor)
    return _window(policy, x, value, reads, keeps_grid=False, groups=None, name=name)


# --- Reductions and statistics --------------------------------------------------------------------


def _reduce(
    policy: PolicyLike,
    x: Cells,
    value: Tensor,
    axes: Sequence[int],
    *,
    keepdim: bool,
    mean: bool = False,
) -> Cells:
    """`value` is `x` reduced over `axes`, which become one, or disappear where not kept."""
    if 0 in axes:
        _of_one_image("a reduction over the batch")
    hot = [axis for axis in axes if x.full[axis]]
    if 0 in axes and 0 not in hot:  # of its own size, and nothing differs along it
        x = _with(x, x.value, active=x.active[:1], exists=x.exists[:1])
    full = [is_full and axis not in axes for axis, is_full in enumerate(x.full)]
    active, exists, same = x.active, x.exists, x.same
    image = x.image and not hot
    if hot:
        cells = x.exists.sum(hot, keepdim=True).double()
        active_cells = (x.active & x.exists).sum(hot, keepdim=True).double()
        exists = torch.ones_like(cells, dtype=torch.bool)
        if any(full):
            active, same = _share(policy, active_cells, cells), ("share", tuple(hot), same)
        else:
            active, same = (active_cells > 0) | (cells == 0), ("any", same)
        if mean and _renormalises(policy, x):
            factor = _factor(cells, active_cells).to(value.dtype)
            value = value * (factor if keepdim else _drop(factor, axes))
    if not keepdim:
        active, exists = _drop(active, axes), _drop(exists, axes)
        full = [is_full for axis, is_full in enumerate(full) if axis not in axes]
        same = _relabelled(("drop", tuple(axes)), same, any(full))
    return Cells(value, active, exists, tuple(full), same, image)


def _drop(which: Tensor, axes: Sequence[int]) -> Tensor:
    return which.squeeze(tuple(axes))


def _reduction(kind: str, fn: Callable[..., Tensor]) -> Callable[..., Any]:
    def handler(
        policy: PolicyLike, x: Cells, dim: Any = None, keepdim: bool = False, **kwargs: Any
    ) -> Cells:
        if kwargs or dim is None:
            raise NotImplementedError("a reduction without axes or with further options")
        axes = tuple(sorted(d % x.value.dim() for d in _per_axis(dim, 1)))

        def plain(v: Tensor) -> Tensor:
            return fn(v, axes, keepdim)

        value = plain(x.value) if kind in ("mean", "sum") else _extreme(policy, kind, x, plain)
        return _reduce(policy, x, value, axes, keepdim=keepdim, mean=kind == "mean")

    return handler


def _norm(
    policy: PolicyLike, x: Cells, p: Any = 2, dim: Any = None, keepdim: bool = False
) -> Cells:
    reduced = _reduction("sum", lambda v, axes, keep: torch.linalg.vector_norm(v, p, axes, keep))
    return reduced(policy, x, dim, keepdim)


def _max_or_min(
    kind: str, join: Callable[..., Any], reduce: Callable[..., Any]
) -> Callable[..., Any]:
    """torch.max(a, b) joins, torch.max(a, dim) reduces and returns (values, indices)."""

    def handler(policy: PolicyLike, x: Any, other: Any = None, *args: Any, **kwargs: Any) -> Any:
        dim = kwargs.pop("dim", other)
        if isinstance(dim, int):
            # The indices depend on the data: nothing may read them.
            return _Extremes(reduce(policy, x, dim, *args, **kwargs))
        return join(policy, x, kwargs.pop("other", other))

    return handler


class _Extremes(tuple[Any, ...]):
    """What `max` over an axis returns, of which only the values mean anything here."""

    def __new__(cls, values: Cells) -> _Extremes:
        return super().__new__(cls, (values, None))

    @property
    def values(self) -> Cells:
        return self[0]


def _linear(policy: PolicyLike, x: Cells, weight: Tensor, bias: Tensor | None = None) -> Cells:
    last = x.value.dim() - 1
    return _reduce(policy, x, F.linear(x.value, weight, bias), (last,), keepdim=True)


def _matmul(policy: PolicyLike, x: Any, weight: Any) -> Cells:
    """A linear layer in other words: constant weights over the last axis."""
    if not isinstance(x, Cells) or isinstance(weight, Cells) or weight.dim() != 2:
        raise NotImplementedError("a product that is no linear layer")
    return _linear(policy, x, weight.T)


def _einsum(policy: PolicyLike, equation: str, x: Any, weight: Any) -> Cells:
    if equation != "...c,dc->...d":
        raise NotImplementedError(f"einsum {equation}")
    return _matmul(policy, x, weight.T)


def _statistics(x: Cells, value: Tensor, axes: Sequence[int]) -> Cells:
    """The activity stays; what is read is gated already."""
    return _with(x, value, image=x.image and not any(x.full[axis] for axis in axes))


def _layer_norm(
    policy: PolicyLike, x: Cells, normalized_shape: Any, *args: Any, **kwargs: Any
) -> Cells:
    rank = x.value.dim()
    axes = range(rank - len(tuple(normalized_shape)), rank)
    return _statistics(x, F.layer_norm(x.value, normalized_shape, *args, **kwargs), axes)


def _group_norm(policy: PolicyLike, x: Cells, *args: Any, **kwargs: Any) -> Cells:
    return _statistics(x, F.group_norm(x.value, *args, **kwargs), range(1, x.value.dim()))


def _batch_norm(policy: PolicyLike, x: Cells, *args: Any, **kwargs: Any) -> Cells:
    return _with(x, F.batch_norm(x.value, *args, **kwargs))


def _instance_norm(policy: PolicyLike, x: Cells, *args: Any, **kwargs: Any) -> Cells:
    bound = inspect.signature(F.instance_norm).bind(x.value, *args, **kwargs)
    value = F.instance_norm(x.value, *args, **kwargs)
    if not bound.arguments.get("use_input_stats", True):
        return _with(x, value)
    return _statistics(x, value, range(2, x.value.dim()))


def _local_response_norm(policy: PolicyLike, x: Cells, *args: Any, **kwargs: Any) -> Cells:
    return _statistics(x, F.local_response_norm(x.value, *args, **kwargs), (1,))


def _normalize(
    policy: PolicyLike, x: Cells, p: float = 2.0, dim: int = 1, eps: float = 1e-12
) -> Cells:
    return _statistics(x, F.normalize(x.value, p, dim, eps), (dim % x.value.dim(),))


def _softmax(fn: Callable[..., Tensor]) -> Callable[..., Any]:
    def handler(policy: PolicyLike, x: Cells, dim: int | None = None, **kwargs: Any) -> Cells:
        if dim is None or x.full[dim % x.value.dim()]:
            raise NotImplementedError("softmax over an axis that is full, or unnamed")
        kwargs.pop("_stacklevel", None)
        return _with(x, fn(x.value, dim, **kwargs))

    return handler


# --- Relabellings ---------------------------------------------------------------------------------


def _relabelled(step: Hashable, same: Hashable, hot: bool) -> Hashable:
    """The name of a relabelled activity.

    A global one keeps its name, and undoing a step restores the name before it.
    """
    if not hot:
        return same
    if isinstance(same, tuple) and len(same) == 3 and same[0] == "relabel":
        _, before, source = same
        if isinstance(before, tuple) and isinstance(step, tuple):
            undone = {("new", *before[1:])} if before[0] == "drop" else set()
            undone |= {("drop", *before[1:])} if before[0] == "new" else set()
            if step in undone:
                return source
            if step[0] == before[0] == "permute":
                step, same = ("permute", tuple(before[1][axis] for axis in step[1])), source
    if isinstance(step, tuple) and step[0] == "permute" and step[1] == tuple(range(len(step[1]))):
        return same
    return ("relabel", step, same)


def _relabel(
    x: Cells,
    fn: Callable[[Tensor], Tensor],
    full: Sequence[bool],
    step: Hashable,
    *,
    view: bool = True,
    unchanged: bool = False,
) -> Cells:
    """Move cells as `fn` does.

    `unchanged` where the step concerns axes that are one, and so moves no activity.
    """
    value = fn(x.value)
    active, exists = (_settle(fn(x.spread(w)), full) for w in (x.active, x.exists))
    same = x.same if unchanged else _relabelled(step, x.same, any(x.full))
    result = Cells(value, active, exists, tuple(full), same, x.image)
    if view:
        if not x.family:
            x.family.append(x)
        x.family.append(result)
        result.family = x.family
    return result


def _reshape(policy: PolicyLike, x: Cells, *shape: Any, **kwargs: Any) -> Cells:
    shape = kwargs.get("shape", shape)
    target = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return _to_shape(x, tuple(x.value.reshape(tuple(target)).shape))


def _flatten(policy: PolicyLike, x: Cells, start_dim: int = 0, end_dim: int = -1) -> Cells:
    if start_dim % x.value.dim() == 0:
        _of_one_image("a flatten that takes in the batch")
    return _to_shape(x, tuple(x.value.flatten(start_dim, end_dim).shape))


def _unflatten(policy: PolicyLike, x: Cells, dim: int, sizes: Any) -> Cells:
    return _to_shape(x, tuple(x.value.unflatten(dim, sizes).shape))


def _to_shape(x: Cells, shape: tuple[int, ...]) -> Cells:
    if not shape or shape[0] != x.value.shape[0]:
        _of_one_image("a reshape that touches the batch")
    full = [False] * len(shape)
    for inputs, outputs in _reshape_groups(tuple(x.value.shape), shape):
        hot = any(x.full[axis] for axis in inputs)
        wide = any(shape[axis] > 1 for axis in outputs)
        for axis in outputs:
            # Reading: a new axis of size 1 beside a longer one is one.
            full[axis] = hot and (shape[axis] > 1 or not wide)
    return _relabel(
        x, lambda v: v.reshape(shape), full, ("reshape", tuple(x.value.shape[1:]), shape[1:])
    )


def _reshape_groups(
    old: tuple[int, ...], new: tuple[int, ...]
) -> list[tuple[list[int], list[int]]]:
    """Which axes of `old` make up which of `new`; leftover axes of size 1 join the group before."""
    groups: list[tuple[list[int], list[int]]] = []
    i, j = 0, 0
    while i < len(old) and j < len(new):
        group, size_i, size_j = ([i], [j]), old[i], new[j]
        i, j = i + 1, j + 1
        while size_i != size_j:
            if size_i < size_j:
                size_i *= old[i]
                group[0].append(i)
                i += 1
            else:
                size_j *= new[j]
                group[1].append(j)
                j += 1
        groups.append(group)
    groups[-1][0].extend(range(i, len(old)))
    groups[-1][1].extend(range(j, len(new)))
    return groups


def _permute(policy: PolicyLike, x: Cells, *dims: Any, **kwargs: Any) -> Cells:
    dims = kwargs.get("dims", dims)
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    order = tuple(d % x.value.dim() for d in order)
    if order[0] != 0:
        _of_one_image("a permutation that moves the batch")
    full = [x.full[axis] for axis in order]
    return _relabel(x, lambda v: v.permute(order), full, ("permute", order))


def _transpose(policy: PolicyLike, x: Cells, dim0: int, dim1: int) -> Cells:
    order = list(range(x.value.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permute(policy, x, order)


def _squeeze(policy: PolicyLike, x: Cells, dim: Any = None) -> Cells:
    if dim is None:
        raise NotImplementedError("squeeze without axes may drop the batch")
    dims = [d % x.value.dim() for d in _per_axis(dim, 1)]
    gone = tuple(sorted(d for d in dims if x.value.shape[d] == 1 and d != 0))
    full = [is_full for axis, is_full in enumerate(x.full) if axis not in gone]
    return _relabel(x, lambda v: v.squeeze(gone), full, ("drop", gone))


def _unsqueeze(policy: PolicyLike, x: Cells, dim: int) -> Cells:
    axis = dim % (x.value.dim() + 1)
    if axis == 0:
        _of_one_image("a new axis before the batch")
    full = [*x.full[:axis], False, *x.full[axis:]]
    return _relabel(x, lambda v: v.unsqueeze(axis), full, ("new", (axis,)))


def _expand(policy: PolicyLike, x: Cells, *sizes: Any) -> Cells:
    shape = (
        sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list, torch.Size)) else sizes
    )
    if len(shape) != x.value.dim():
        raise NotImplementedError("expand to another rank")
    hot = any(
        is_full and size not in (-1, old)
        for is_full, size, old in zip(x.full, shape, x.value.shape, strict=True)
    )
    step = ("expand", tuple(shape[1:]))
    return _relabel(x, lambda v: v.expand(shape), x.full, step, unchanged=not hot)


def _expand_as(policy: PolicyLike, x: Any, other: Any) -> Any:
    other_value = other.value if isinstance(other, Cells) else other
    if not isinstance(x, Cells):
        return x.expand_as(other_value)
    return _expand(policy, x, tuple(other_value.shape))


def _index(policy: PolicyLike, x: Any, index: Any) -> Any:
    if not isinstance(x, Cells):
        return x[index]  # a tuple of tensors, or the shape of one
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [i for i in index if not isinstance(i, (Tensor, list))]:
        at = next(k for k, i in enumerate(index) if i is Ellipsis)
        named = sum(i is not None for i in index) - 1
        index = index[:at] + (slice(None),) * (x.value.dim() - named) + index[at + 1 :]
    if not (isinstance(index[0], slice) and index[0] == slice(None)):
        _of_one_image("an index that picks from the batch")
    axis, result = 0, x
    for item in index:
        match item:
            case None:
                result, axis = _unsqueeze(policy, result, axis), axis + 1
            case int():
                result = _pick(result, axis, [item % result.value.shape[axis]])
                result = _relabel(
                    result,
                    lambda v, axis=axis: v.squeeze(axis),
                    [f for k, f in enumerate(result.full) if k != axis],
                    ("drop", (axis,)),
                )
            case slice():
                size = result.value.shape[axis]
                result, axis = _pick(result, axis, list(range(size))[item]), axis + 1
            case list() | Tensor():
                chosen = torch.as_tensor(item)
                if chosen.dtype == torch.bool or chosen.dim() != 1:
                    raise NotImplementedError("an index that is not a list of positions")
                size = result.value.shape[axis]
                result, axis = _pick(result, axis, [int(i) % size for i in chosen]), axis + 1
            case _:
                raise NotImplementedError(f"index {item!r}")
    return result


def _pick(x: Cells, axis: int, positions: list[int]) -> Cells:
    if positions == list(range(x.value.shape[axis])):
        return x
    chosen = torch.tensor(positions)
    return _relabel(
        x,
        lambda v: v.index_select(axis, chosen.to(v.device)),
        x.full,
        ("pick", axis, tuple(positions)),
        unchanged=not x.full[axis],
    )


def _flip(policy: PolicyLike, x: Cells, *dims: Any) -> Cells:
    given = dims[0] if isinstance(dims[0], (tuple, list)) else dims
    axes = tuple(sorted(d % x.value.dim() for d in given))
    if 0 in axes:
        raise NotImplementedError("a flip of the batch")
    still = not any(x.full[axis] for axis in axes)
    step = ("flip", axes)
    return _relabel(x, lambda v: v.flip(axes), x.full, step, view=False, unchanged=still)


def _narrow(policy: PolicyLike, x: Cells, dim: int, start: int, length: int) -> Cells:
    return _pick(x, dim % x.value.dim(), list(range(start, start + length)))


def _index_select(policy: PolicyLike, x: Cells, dim: int, index: Tensor) -> Cells:
    return _pick(x, dim % x.value.dim(), [int(i) for i in index])


def _select(policy: PolicyLike, x: Cells, dim: int, index: int) -> Cells:
    axis = dim % x.value.dim()
    return _index(policy, x, (slice(None),) * axis + (index,))


def _chunk(policy: PolicyLike, x: Cells, chunks: int, dim: int = 0) -> tuple[Cells, ...]:
    return _parts(x, [p.shape[dim] for p in x.value.chunk(chunks, dim)], dim)


def _split(
    policy: PolicyLike, x: Cells, split_size_or_sections: Any, dim: int = 0
) -> tuple[Cells, ...]:
    return _parts(x, [p.shape[dim] for p in x.value.split(split_size_or_sections, dim)], dim)


def _parts(x: Cells, sizes: list[int], dim: int) -> tuple[Cells, ...]:
    axis = dim % x.value.dim()
    if axis == 0:
        _of_one_image("a split of the batch")
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return tuple(
        _pick(x, axis, list(range(start, start + size)))
        for start, size in zip(starts, sizes, strict=True)
    )


def _glu(policy: PolicyLike, x: Cells, dim: int = -1) -> Cells:
    a, b = _chunk(policy, x, 2, dim)
    gate = _with(b, torch.sigmoid(b.value))
    return _join(policy, "product", torch.mul, a, gate)


def _pixel_shuffle(policy: PolicyLike, x: Cells, upscale_factor: int) -> Cells:
    step = ("pixel_shuffle", upscale_factor)
    return _relabel(x, lambda v: _on_bytes(F.pixel_shuffle, v, upscale_factor), x.full, step)


def _pixel_unshuffle(policy: PolicyLike, x: Cells, downscale_factor: int) -> Cells:
    full = list(x.full)
    full[1] |= any(x.full[2:])  # each output channel shows its own part of the grid
    step = ("pixel_unshuffle", downscale_factor)
    return _relabel(x, lambda v: _on_bytes(F.pixel_unshuffle, v, downscale_factor), full, step)


def _channel_shuffle(policy: PolicyLike, x: Cells, groups: int) -> Cells:
    return _relabel(
        x,
        lambda v: _on_bytes(F.channel_shuffle, v, groups),
        x.full,
        ("channel_shuffle", groups),
        unchanged=not x.full[1],
    )


def _on_bytes(fn: Callable[..., Tensor], v: Tensor, *args: Any) -> Tensor:
    """`fn` of a bool tensor too, where it knows only numbers."""
    return fn(v.double(), *args).bool() if v.dtype == torch.bool else fn(v, *args)


# --- Padding, concatenation -----------------------------------------------------------------------


def _pad(
    policy: PolicyLike,
    x: Cells,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Cells:
    sides = list(pad)
    rank = x.value.dim()
    if mode in ("constant", "zeros"):
        padded = F.pad(x.value, sides, "constant", 0.0 if value is None else value)
    else:
        padded = F.pad(x.value, sides, mode)
    axes = [rank - 1 - k for k in range(len(sides) // 2)]
    moves = [
        axis for k, axis in enumerate(axes) if x.full[axis] and (sides[2 * k] or sides[2 * k + 1])
    ]
    if not moves:
        return _with(x, padded)
    hot_sides = [
        side if x.full[axis] else 0
        for k, axis in enumerate(axes)
        for side in (sides[2 * k], sides[2 * k + 1])
    ]
    active, exists = (
        _pad_cells(which, hot_sides, mode, outside)
        for which, outside in ((x.active, True), (x.exists, False))
    )
    step = ("pad", tuple(hot_sides), mode if mode != "zeros" else "constant")
    same = _relabelled(step, x.same, hot=True)
    return _with(x, padded, active=active, exists=exists, same=same)


def _pad_cells(which: Tensor, sides: list[int], mode: str, outside: bool) -> Tensor:
    if mode in ("constant", "zeros"):
        return F.pad(which, sides, "constant", outside)
    return F.pad(which.double(), sides, mode).bool()


def _cat(policy: PolicyLike, tensors: Any = None, dim: int = 0, **kwargs: Any) -> Cells:
    tensors = kwargs.get("tensors", tensors)
    dim = kwargs.get("axis", dim)
    first = next(t for t in tensors if isinstance(t, Cells))
    axis = dim % first.value.dim()
    if axis == 0:
        _of_one_image("a concatenation of batches")
    value = torch.cat([t.value if isinstance(t, Cells) else t for t in tensors], axis)
    return _concatenated(value, tensors, axis, "cat")


def _concatenated(value: Tensor, tensors: Sequence[Any], axis: int, step: str) -> Cells:
    reached = [t for t in tensors if isinstance(t, Cells)]
    image = all(t.image for t in reached)
    names = tuple(t.same if isinstance(t, Cells) else "constant" for t in tensors)
    if len(set(names)) == 1 and not any(t.full[axis] for t in reached):
        first = reached[0]
        active, exists = (w.expand(len(value), *w.shape[1:]) for w in (first.active, first.exists))
        return Cells(value, active, exists, first.full, first.same, image)
    full = [any(t.full[k] for t in reached) or k == axis for k in range(value.dim())]
    shape = [n if k == 0 or full[k] else 1 for k, n in enumerate(value.shape)]

    def laid_out(name: str, constant: bool) -> Tensor:
        parts = []
        for t in tensors:
            size = t.value.shape[axis] if isinstance(t, Cells) else t.shape[axis]
            part_shape = [*shape[:axis], size, *shape[axis + 1 :]]
            part = (
                getattr(t, name)
                if isinstance(t, Cells)
                else torch.full([1] * value.dim(), constant)
            )
            parts.append(part.to(value.device).expand(part_shape))
        return torch.cat(parts, axis)

    sizes = tuple(t.value.shape[axis] if isinstance(t, Cells) else t.shape[axis] for t in tensors)
    active, exists = laid_out("active", True), laid_out("exists", False)
    return Cells(value, active, exists, tuple(full), (step, axis, names, sizes), image)


def _stack(policy: PolicyLike, tensors: Any, dim: int = 0) -> Cells:
    first = next(t for t in tensors if isinstance(t, Cells))
    axis = dim % (first.value.dim() + 1)
    lifted = [
        _unsqueeze(policy, t, axis) if isinstance(t, Cells) else t.unsqueeze(axis) for t in tensors
    ]
    return _cat(policy, lifted, axis)


# --- Dispatch -------------------------------------------------------------------------------------


def _shape_of(policy: PolicyLike, x: Cells, *args: Any) -> Any:
    return x.value.size(*args)


def _getattr(policy: PolicyLike, x: Any, name: str) -> Any:
    if isinstance(x, Cells) and name in ("shape", "dtype", "device", "ndim"):
        return getattr(x.value, name)
    if isinstance(x, _Extremes) and name == "values":
        return x.values
    raise NotImplementedError(f"attribute {name}")


def _constant_like(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A tensor in the likeness of one that the image reaches, but that no image reaches."""

    def handler(policy: PolicyLike, x: Cells, *args: Any, **kwargs: Any) -> Tensor:
        return fn(x.value, *args, **kwargs)

    return handler


def _identity(policy: PolicyLike, x: Any, *args: Any, **kwargs: Any) -> Any:
    """The same memory: who changes it in place changes what the other holds."""
    return x


def _contiguous(policy: PolicyLike, x: Any) -> Any:
    """The same tensor where it is contiguous already, else a copy."""
    return x if x.value.is_contiguous() else _with(x, x.value.contiguous())


def _dropout(
    policy: PolicyLike, x: Cells, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Cells:
    if training:
        raise NotImplementedError("dropout in training mode")
    return x


def _activation_of(name: str) -> Callable[..., Any]:
    return _same_cell(getattr(F, name))


_ACTIVATIONS = [
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "softplus",
    "softsign",
    "logsigmoid",
    "rrelu",
    "prelu",
    "threshold",
    "tanhshrink",
]
_POINTWISE = [
    "abs",
    "neg",
    "exp",
    "log",
    "log1p",
    "expm1",
    "sqrt",
    "rsqrt",
    "square",
    "sigmoid",
    "tanh",
    "sin",
    "cos",
    "erf",
    "clamp",
    "pow",
    "reciprocal",
    "sign",
    "round",
    "floor",
]

_COMPARISONS = ["gt", "ge", "lt", "le", "eq", "ne"]

_add = _joined("sum", torch.add)
_sub = _joined("sum", torch.sub)
_mul = _joined("product", torch.mul)
_div = _joined("product", torch.div)
_maximum = _joined("maximum", torch.maximum)
_minimum = _joined("minimum", torch.minimum)
_mean = _reduction("mean", lambda v, axes, keepdim: v.mean(axes, keepdim))
_sum = _reduction("sum", lambda v, axes, keepdim: v.sum(axes, keepdim))
_amax = _reduction("maximum", lambda v, axes, keepdim: v.amax(axes, keepdim))
_amin = _reduction("minimum", lambda v, axes, keepdim: v.amin(axes, keepdim))
_max = _max_or_min("maximum", _maximum, _amax)
_min = _max_or_min("minimum", _minimum, _amin)

# Names that functions of torch, functions of torch.nn.functional and methods of a tensor share.
_NAMED: dict[str, Callable[..., Any]] = {
    **{name: _activation_of(name) for name in _ACTIVATIONS},
    **{name: _same_cell(getattr(torch, name)) for name in _POINTWISE},
    "clamp_min": _same_cell(torch.clamp_min),
    "clamp_max": _same_cell(torch.clamp_max),
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "multiply": _mul,
    "div": _div,
    "maximum": _maximum,
    "minimum": _minimum,
    "max": _max,
    "min": _min,
    "mean": _mean,
    "sum": _sum,
    "amax": _amax,
    "amin": _amin,
    "std": _reduction("sum", lambda v, axes, keepdim: v.std(axes, keepdim=keepdim)),
    "var": _reduction("sum", lambda v, axes, keepdim: v.var(axes, keepdim=keepdim)),
    "logsumexp": _reduction("sum", torch.logsumexp),
    "norm": _norm,
    "flip": _flip,
    **{name: _joined("product", getattr(torch, name)) for name in _COMPARISONS},
    "reshape": _reshape,
    "flatten": _flatten,
    "unflatten": _unflatten,
    "permute": _permute,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "narrow": _narrow,
    "select": _select,
    "index_select": _index_select,
    "chunk": _chunk,
    "split": _split,
    "softmax": _softmax(torch.softmax),
    "log_softmax": _softmax(torch.log_softmax),
    "clone": _same_cell(torch.clone),
    "dropout": _dropout,
}

_METHODS: dict[str, Callable[..., Any]] = _NAMED | {
    "view": _reshape,
    "expand": _expand,
    "expand_as": _expand_as,
    "contiguous": _contiguous,
    "detach": _identity,
    "float": _same_cell(Tensor.float),
    "double": _same_cell(Tensor.double),
    "to": _same_cell(Tensor.to),
    "size": _shape_of,
    "dim": lambda policy, x: x.value.dim(),
    "new_zeros": _constant_like(Tensor.new_zeros),
    "new_ones": _constant_like(Tensor.new_ones),
    "new_full": _constant_like(Tensor.new_full),
}

_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    operator.add: _add,
    operator.iadd: _add,
    operator.sub: _sub,
    operator.isub: _sub,
    operator.mul: _mul,
    operator.imul: _mul,
    operator.truediv: _div,
    operator.itruediv: _div,
    operator.pow: _same_cell(operator.pow),
    operator.neg: _same_cell(operator.neg),
    **{getattr(operator, name): _NAMED[name] for name in _COMPARISONS},
    operator.getitem: _index,
    getattr: _getattr,
    torch.cat: _cat,
    torch.concat: _cat,
    torch.stack: _stack,
    torch.zeros_like: _constant_like(torch.zeros_like),
    torch.ones_like: _constant_like(torch.ones_like),
    F.linear: _linear,
    operator.matmul: _matmul,
    torch.matmul: _matmul,
    torch.einsum: _einsum,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.conv3d: _conv,
    F.conv_transpose1d: _conv_transpose,
    F.conv_transpose2d: _conv_transpose,
    F.conv_transpose3d: _conv_transpose,
    F.interpolate: _interpolate,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.local_response_norm: _local_response_norm,
    F.normalize: _normalize,
    F.softmax: _NAMED["softmax"],
    F.log_softmax: _NAMED["log_softmax"],
    F.glu: _glu,
    F.pad: _pad,
    F.pixel_shuffle: _pixel_shuffle,
    F.pixel_unshuffle: _pixel_unshuffle,
    F.channel_shuffle: _channel_shuffle,
    **{
        pool: handler
        for rank in (1, 2, 3)
        for pool, handler in (
            (getattr(F, f"max_pool{rank}d"), _pool("maximum", rank)),
            (getattr(F, f"avg_pool{rank}d"), _pool("mean", rank)),
            (getattr(F, f"lp_pool{rank}d"), _lp_pool(rank)),
            (getattr(F, f"adaptive_max_pool{rank}d"), _adaptive_pool("maximum", rank)),
            (getattr(F, f"adaptive_avg_pool{rank}d"), _adaptive_pool("mean", rank)),
        )
    },
    **{getattr(F, f"dropout{rank}d"): _dropout for rank in (1, 2, 3)},
}


def _function_handler(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], bool]:
    """The handler of a function, and whether this call of it changes its first argument."""
    name = getattr(target, "__name__", "")
    in_place = target in (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    in_place |= kwargs.get("inplace", False) or (name.endswith("_") and not name.endswith("__"))
    if target in _FUNCTIONS:
        return _FUNCTIONS[target], in_place
    if inspect.isfunction(target):
        # Python-level functions of torch.nn.functional take `inplace` by position too.
        bound = inspect.signature(target).bind(*args, **kwargs)
        in_place |= bound.arguments.get("inplace", False)
    module = str(getattr(target, "__module__", ""))
    if module.startswith("torchvision.ops") and name == "stochastic_depth":
        return _identity, False
    known = _NAMED.get(name.removesuffix("_"))
    ours = module.startswith("torch") or getattr(torch, name, None) is target
    if known is None or not ours:
        raise NotImplementedError(f"function {module}.{name}")
    return known, in_place


_SAME_CELL_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Softplus,
    nn.Softsign,
    nn.LogSigmoid,
    nn.PReLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Threshold,
)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)


def _call_module(policy: PolicyLike, m: nn.Module, x: Cells, *args: Any) -> Cells:
    """One line per kind of module: the same handlers as for the functional spelling."""
    name = type(m).__name__
    match m:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return _conv(
                policy,
                x,
                m.weight,
                m.bias,
                m.stride,
                m.padding,
                m.dilation,
                m.groups,
                m.padding_mode,
            )
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return _conv_transpose(
                policy,
                x,
                m.weight,
                m.bias,
                m.stride,
                m.padding,
                m.output_padding,
                m.groups,
                m.dilation,
            )
        case nn.MaxPool1d() | nn.MaxPool2d() | nn.MaxPool3d():
            pool = _pool("maximum", int(name[-2]))
            return pool(
                policy,
                x,
                m.kernel_size,
                m.stride,
                m.padding,
                m.dilation,
                m.ceil_mode,
                m.return_indices,
            )
        case nn.AvgPool1d() | nn.AvgPool2d() | nn.AvgPool3d():
            options = {"ceil_mode": m.ceil_mode, "count_include_pad": m.count_include_pad}
            if getattr(m, "divisor_override", None):
                options["divisor_override"] = m.divisor_override
            return _pool("mean", int(name[-2]))(
                policy, x, m.kernel_size, m.stride, m.padding, **options
            )
        case nn.LPPool1d() | nn.LPPool2d() | nn.LPPool3d():
            return _lp_pool(int(name[-2]))(
                policy, x, m.norm_type, m.kernel_size, m.stride, m.ceil_mode
            )
        case nn.AdaptiveMaxPool1d() | nn.AdaptiveMaxPool2d() | nn.AdaptiveMaxPool3d():
            return _adaptive_pool("maximum", int(name[-2]))(
                policy, x, m.output_size, m.return_indices
            )
        case nn.AdaptiveAvgPool1d() | nn.AdaptiveAvgPool2d() | nn.AdaptiveAvgPool3d():
            return _adaptive_pool("mean", int(name[-2]))(policy, x, m.output_size)
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            if m.running_mean is None:
                raise NotImplementedError("batch normalisation by the statistics of the batch")
            return _with(x, m(x.value))
        case nn.InstanceNorm1d() | nn.InstanceNorm2d() | nn.InstanceNorm3d():
            if m.track_running_stats:
                return _with(x, m(x.value))
            return _statistics(x, m(x.value), range(2, x.value.dim()))
        case nn.GroupNorm():
            return _group_norm(policy, x, m.num_groups, m.weight, m.bias, m.eps)
        case nn.LayerNorm():
            return _layer_norm(policy, x, m.normalized_shape, m.weight, m.bias, m.eps)
        case nn.LocalResponseNorm():
            return _local_response_norm(policy, x, m.size, m.alpha, m.beta, m.k)
        case nn.Linear():
            return _linear(policy, x, m.weight, m.bias)
        case nn.Flatten():
            return _flatten(policy, x, m.start_dim, m.end_dim)
        case nn.Unflatten():
            return _unflatten(policy, x, m.dim, m.unflattened_size)
        case nn.Upsample():
            factor = m.scale_factor
            return _interpolate(
                policy, x, m.size, factor, m.mode, m.align_corners, m.recompute_scale_factor
            )
        case nn.PixelShuffle():
            return _pixel_shuffle(policy, x, m.upscale_factor)
        case nn.PixelUnshuffle():
            return _pixel_unshuffle(policy, x, m.downscale_factor)
        case nn.ChannelShuffle():
            return _channel_shuffle(policy, x, m.groups)
        case nn.Softmax() | nn.LogSoftmax():
            return _NAMED["softmax" if isinstance(m, nn.Softmax) else "log_softmax"](
                policy, x, m.dim
            )
        case nn.GLU():
            return _glu(policy, x, m.dim)
    if isinstance(m, _SAME_CELL_MODULES):
        return _with(x, m(x.value.clone()))
    if isinstance(m, _DROPOUTS):
        return x
    for kind, mode in (("Zero", "constant"), ("Constant", "constant"), ("Reflection", "reflect")):
        if name.startswith(f"{kind}Pad"):
            return _pad(policy, x, m.padding, mode, getattr(m, "value", 0.0))
    for kind, mode in (("Replication", "replicate"), ("Circular", "circular")):
        if name.startswith(f"{kind}Pad"):
            return _pad(policy, x, m.padding, mode)
    raise NotImplementedError(f"module {name}")
