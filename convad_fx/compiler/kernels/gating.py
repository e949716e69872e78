"""Gates: what an operation reads of a tensor whose inactive elements must not matter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gate(z: Tensor, activity: Tensor, fill: float = 0.0) -> Tensor:
    """``where(activity, z, fill)``: what an operation that combines elements reads.

    >>> gate(torch.tensor([[1.0, float("nan")]]), torch.tensor([[True, False]]))
    tensor([[1., 0.]])
    """
    if z.dtype == torch.bool:
        return z & activity
    bits = _BITS.get(z.dtype) if fill == 0 else None
    if torch.is_grad_enabled() and z.requires_grad:
        bits = None  # bitwise operations have no gradient
    if torch.compiler.is_compiling():  # strides are inductor's choice; one operation, to be fused
        # a maximum over the whole image has no second axis
        few_channels = z.dtype == torch.float32 and z.dim() > 1 and z.shape[1] < FEW_CHANNELS
        if bits is not None and few_channels and is_compiled_for_cpu(z):
            return _bitwise(z, activity, bits)
        return torch.where(activity, z, fill)
    repeated = len(z) == 1 != len(activity)  # one image, many masks; other axes need no expansion
    if z.is_cuda and z.is_floating_point():
        result = torch.where(activity, z, fill)
        first = int(repeated)  # the stride of a new batch axis may be any
        if result.stride()[first:] == z.stride()[first:]:
            return result
    elif bits is not None and (repeated or z.is_contiguous() or not _has_gaps(z)):
        return _bitwise(z, activity, bits)  # one pass over the tensor, not two
    # Copying keeps the strides. where() may use those of the activity, and masked_fill() makes its
    # result contiguous: the network would run other kernels than the model, or fail to view() it.
    shape = (len(activity), *z.shape[1:]) if repeated else z.shape
    return _copied(z, shape).masked_fill_(~activity, fill)


def _bitwise(z: Tensor, activity: Tensor, bits: torch.dtype) -> Tensor:
    return (z.view(bits) & -activity.to(bits)).view(z.dtype)


#: With fewer channels than float32 numbers in a vector register, inductor does not vectorise, and
#: `where` becomes a branch that is hard to predict. (It never vectorises 16-bit integers.)
FEW_CHANNELS = 8
#: Integer types of the same size.
_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def _copied(z: Tensor, shape: Sequence[int]) -> Tensor:
    """A copy with the strides of ``z``, also with gaps such as those of ``x[..., ::2]``.

    With other strides, kernels add in another order, and Theorem 1 would not hold bit for bit. If
    the batch is repeated, gaps do not matter.
    """
    wide = z.expand(shape)
    if wide.shape != z.shape or not _has_gaps(z):
        return wide.clone()
    return torch.empty_strided(shape, z.stride(), dtype=z.dtype, device=z.device).copy_(z)


def _has_gaps(z: Tensor) -> bool:
    """Some addresses between its first and last element are unused, and none is used twice."""
    span = 1 + sum((n - 1) * step for n, step in zip(z.shape, z.stride(), strict=True))
    return span > z.numel() > 0 and 0 not in z.stride()


def per_mask(x: Tensor, mask: Tensor) -> Tensor:
    """The image repeated for every mask, as a view; used where no gate repeats it."""
    return x.expand(max(x.shape[0], mask.shape[0]), *x.shape[1:])


def materialised(t: Tensor) -> Tensor:
    """The same bools or counts, stored as integers in code that is compiled for a CPU.

    Inductor would recompute pointwise operations in every gate and window that reads them, without
    vectorising, and converts bools slowly. `as_strided` makes it store them once. Does nothing in
    eager mode, on a GPU, when exporting, and to floats.
    """
    if t.is_floating_point() or not is_compiled_for_cpu(t):
        return t
    # always a copy, which is fused with the computation of t: as_strided of a slice would address
    # the sliced tensor's memory
    numbers = t.to(torch.int32, copy=True, memory_format=torch.contiguous_format)
    stored = torch.as_strided(numbers, numbers.shape, numbers.stride())
    return stored != 0 if t.dtype == torch.bool else stored


def is_compiled_for_cpu(t: Tensor) -> bool:
    """Whether torch.compile is tracing code for a tensor on a CPU."""
    compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiled and t.device.type == "cpu"
