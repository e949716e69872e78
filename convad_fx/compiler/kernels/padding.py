"""Padding of values and activities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Pairs = tuple[tuple[int, int], ...]


def same_padding(n: int, k: int, s: int, d: int) -> tuple[int, int]:
    """TensorFlow's "SAME" padding (before, after), for an output of ceil(n / s) elements.

    Args:
        n, k, s, d: size of the grid, size of the window, stride and dilation.
    """
    total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
    return total // 2, total - total // 2


def same_padded(
    z: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    value: float = 0,
) -> Tensor:
    """A batch (N, C, H, W) with TensorFlow's "SAME" padding, as in timm's layers of that name.

    >>> same_padded(torch.ones(1, 1, 5, 4), (3, 3), (2, 2)).shape
    torch.Size([1, 1, 7, 5])
    """
    pairs = [
        same_padding(n, k, s, d)
        for n, k, s, d in zip(z.shape[-2:], kernel, stride, dilation, strict=True)
    ]
    return F.pad(z, [n for pair in reversed(pairs) for n in pair], value=value)


def ceil_mode_extra(n: int, k: int, s: int, lo: int, hi: int, d: int) -> int:
    """Elements after the end that ``ceil_mode`` reads, by torch's rule for the last window.

    Args:
        n, k, s, d: as in `same_padding`.
        lo, hi: padding before and after.
    """
    span = d * (k - 1) + 1
    count = -(-(n + lo + hi - span) // s) + 1
    if (count - 1) * s >= n + lo:
        count -= 1
    return max(0, (count - 1) * s + span - (n + lo + hi))


def padded(t: Tensor, padding: Pairs, value: bool = False) -> Tensor:
    """The last axes padded by (before, after) elements of a constant."""
    if all(lo == hi == 0 for lo, hi in padding):
        return t
    flat = [p for pair in reversed(padding) for p in pair]
    return F.pad(t, flat, value=value)


def copy_padded(activity: Tensor, padding: Pairs, mode: str) -> Tensor:
    """The last axes padded with copies: reflect, replicate or circular."""
    if all(lo == hi == 0 for lo, hi in padding):
        return activity
    flat = [p for pair in reversed(padding) for p in pair]
    # F.pad needs floats of shape (N, C, *grid) here
    grid = activity.shape[-len(padding) :]
    lead = activity.shape[: -len(padding)]
    padded = F.pad(activity.reshape(-1, 1, *grid).to(torch.float32), flat, mode=mode) > 0.5
    return padded.reshape(*lead, *padded.shape[2:])
